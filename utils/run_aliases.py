"""Short names of runs: ``irra`` or ``CUHK-PEDES/irra`` for the newest ``logs/CUHK-PEDES/<time>_irra``."""
import os
import re

from utils.errors import UserError, abbreviate, suggest_name
from utils.recipes import find_recipe

LOGS = 'logs'                                # the folder that aliases are below, the default of --output_dir
TIME = re.compile(r'^\d{8}_\d{6}_(?=.)')     # the start of a folder's name that train.py gives


def remove_time(folder_name):
    """The name of a run from the name of its folder.

    Example:
        >>> remove_time('20260131_120000_irra'), remove_time('irra')
        ('irra', 'irra')
    """
    return TIME.sub('', folder_name)


def run_alias(folder):
    """The short name of a run's folder: its dataset and its name, such as ``CUHK-PEDES/irra``."""
    parent, name = os.path.split(os.path.abspath(folder))
    return f'{os.path.basename(parent)}/{remove_time(name)}'


def find_aliased_folders(logs=LOGS):
    """List the folders of runs below ``logs``, as lists of their parts: ``[['CUHK-PEDES', '20260131_120000_irra']]``.

    A folder in a run's folder is not searched.
    """
    folders = []
    for folder, children, files in os.walk(logs):
        if 'configs.yaml' in files and folder != logs:
            folders.append(os.path.relpath(folder, logs).split(os.sep))
            children.clear()
    return sorted(folders)


def find_run_folder(word, logs=LOGS):
    """Find the folder of a run by its path or its alias.

    An alias is the end of the path below ``logs``, with or without the time in the folder's name. If several runs of
    one folder have the name, the newest is meant. Runs at ``logs/<dataset>/<run>`` come before deeper ones.

    Args:
        word: what the user wrote.
        logs: the folder with the runs.

    Returns:
        The folder, or None if no run has this name.

    Raises:
        UserError: runs in several folders have this name.
    """
    if os.path.isdir(word):
        return word
    *parents, name = word.strip('/').split('/')
    folders = [parts for parts in find_aliased_folders(logs)
               if name in (parts[-1], remove_time(parts[-1])) and parts[:-1][len(parts) - 1 - len(parents):] == parents]
    matches = [parts for parts in folders if len(parts) == 2] or folders
    paths = sorted({'/'.join([*parts[:-1], name]) for parts in matches})
    if len(paths) > 1:
        raise UserError(f"{len(paths)} runs below {logs} are named '{word}': give one of {abbreviate(paths, 10)}")
    return os.path.join(logs, *matches[-1]) if matches else None


def find_run_config(word, option='--config_file', logs=LOGS):
    """Find the configs.yaml of a run by its path, its folder or its alias (:func:`find_run_folder`).

    Args:
        word: what the user wrote. A path that ends in .yaml or .yml, and the name of a recipe that no run has, are
            returned as they are.
        option: the option, for the error.
        logs: the folder with the runs.

    Raises:
        UserError: there is no such run, or several.
    """
    if os.path.isfile(word) or word.endswith(('.yaml', '.yml')):
        return word
    folder = find_run_folder(word, logs)
    if folder is None and find_recipe(word) != word:
        return word
    if folder is None:
        raise UserError(f'{option}: {missing_run(word, logs)}')
    config = os.path.join(folder, 'configs.yaml')
    if not os.path.isfile(config):
        raise UserError(f'{option}: {folder} is a folder without a configs.yaml{suggest_run(folder, logs)}')
    return config


def suggest_run(folder, logs=LOGS):
    """The end of an error for a folder that is not a run's: the runs in it, and those that have its name.

    A folder comes before a run of its name (:func:`find_run_folder`), so a folder of photos can hide a run.
    """
    folder = os.path.normpath(folder)
    runs = [alias for alias in alias_names(logs)
            if folder in (os.path.basename(alias), os.path.join(logs, os.path.dirname(alias)))]
    if not runs:
        return '; give the folder of a run'
    return f'; give {runs[0]}' if len(runs) == 1 else f'; give one of {abbreviate(runs)}'


def missing_run(word, logs=LOGS):
    """The end of an error for a run that does not exist."""
    known = alias_names(logs)
    return (f"there is no file or folder {word}, and no run of this name below {logs}"
            f"{suggest_name(word, known) if known else ''}")


def alias_names(logs=LOGS):
    """The aliases of all runs ``logs/<dataset>/<run>``, for errors and the tab key."""
    return sorted({f'{dataset}/{remove_time(name)}' for dataset, name in
                   (parts for parts in find_aliased_folders(logs) if len(parts) == 2)})

"""The names of programs in messages: files of the repository, or the command ``pedestal`` of the installed package."""
import os
import re
import shlex

from utils.paths import relative_path
from utils.plugins import PREFIX

IS_INSTALLED = bool(PREFIX)
REPOSITORY_COMMAND = re.compile(r'python (?:(train|test)\.py|-m (?:run_scripts|datasets)\.(\w+))')
TORCHRUN_COMMAND = re.compile(r'(torchrun(?: --\w+ \S+)*) (train|test)\.py')


def program_name(file, is_installed=IS_INSTALLED):
    """Return how a program is called in usage lines and errors.

    Args:
        file: the name of its file or module.
        is_installed: whether the command ``pedestal`` starts it.

    Example:
        >>> program_name('search.py', is_installed=True), program_name('search.py', is_installed=False)
        ('pedestal search', 'search.py')
    """
    return f"pedestal {file.removesuffix('.py').removeprefix('datasets.')}" if is_installed else file


def command_line(file, words, is_installed=IS_INSTALLED):
    """Return the command that starts a program again.

    Args:
        file: the path of the program's file.
        words: its arguments.
        is_installed: whether the command ``pedestal`` starts it.

    Example:
        >>> command_line('run_scripts/ablate.py', ['--seeds', '1'], is_installed=True)
        'pedestal ablate --seeds 1'
    """
    start = program_name(os.path.basename(file), True) if is_installed else f'python {shlex.quote(relative_path(file))}'
    return f'{start} {shlex.join(words)}'


def rename_commands(text, is_installed=IS_INSTALLED):
    """Replace the commands of the repository in a message by those of the installed package.

    Example:
        >>> rename_commands('resume with: python train.py --resume; python -m run_scripts.cost', is_installed=True)
        'resume with: pedestal train --resume; pedestal cost'
        >>> rename_commands('torchrun --nproc_per_node 2 train.py --resume', is_installed=True)
        'torchrun --nproc_per_node 2 --no-python pedestal train --resume'
    """
    if not is_installed:
        return text
    text = REPOSITORY_COMMAND.sub(lambda match: f'pedestal {match[1] or match[2]}', text)
    return TORCHRUN_COMMAND.sub(r'\1 --no-python pedestal \2', text)

"""Find the folders of runs."""
import os

from utils.errors import UserError
from utils.iotools import walk_folders
from utils.run_aliases import find_run_folder


def find_run_folders(logs):
    """List the folders with a configs.yaml, sorted.

    Args:
        logs: the folder to search, at any depth, or a run's name (:mod:`utils.run_aliases`).

    Raises:
        UserError: the folder is missing, or it has no runs.
    """
    logs = find_run_folder(logs) or logs
    if not os.path.isdir(logs):
        raise UserError(f'no folder {logs}: name the folder that holds the runs')
    folders = sorted(folder for folder, _, files in walk_folders(logs) if 'configs.yaml' in files)
    if not folders:
        raise UserError(f'no run below {logs}: a run is a folder with a configs.yaml and a best.pth')
    return folders

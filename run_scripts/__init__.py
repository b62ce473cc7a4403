"""Command-line tools.

A tool runs as a module and as a file: ``python -m run_scripts.retrieve`` and ``python run_scripts/retrieve.py``. Python
searches the folder of such a file for imports, so a tool first puts the repository in place of this folder.
"""
import os
import sys

from utils.plugins import PREFIX

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def program_words(name, root=ROOT):
    """Return the words after ``python`` that start one of Pedestal's programs in a child process.

    Args:
        name: the program's name, such as 'train' (:func:`run_scripts.__main__.find_programs`).
        root: the folder of train.py and run_scripts.
    """
    if PREFIX:      # a file of the installed package would find Pedestal's packages under their names in the repository
        return [os.path.join(os.path.dirname(sys.modules[PREFIX[:-1]].__file__), '__main__.py'), name]
    path = os.path.join(root, f'{name}.py')
    return [path] if os.path.exists(path) else [os.path.join(root, 'run_scripts', '__main__.py'), name]

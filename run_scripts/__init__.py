"""Command-line tools.

A tool runs as a module and as a file: ``python -m run_scripts.retrieve`` and ``python run_scripts/retrieve.py``. Python
searches the folder of such a file for imports, so a tool first puts the repository in place of this folder.
"""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

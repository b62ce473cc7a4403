"""Command-line tools.

A tool runs as a module and as a file: ``python -m run_scripts.retrieve`` and ``python run_scripts/retrieve.py``. To
make both work, a tool imports ``run_scripts`` before any other package of this repository.
"""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def start(main):
    """Run a tool's ``main()`` as train.py and test.py run theirs: one line per error, and a quiet end on Ctrl-C."""
    from utils.errors import run
    run(main)

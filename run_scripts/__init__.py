"""What people run: shell recipes and tools.

A tool runs as a file and as a module: ``python run_scripts/retrieve.py`` and ``python -m run_scripts.retrieve``. For that its
first import of ours is ``run_scripts``.
"""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def start(main):
    """Run a tool's ``main()`` as train.py and test.py are run: errors are sentences, and Ctrl-C ends it quietly."""
    from utils.errors import run
    run(main)

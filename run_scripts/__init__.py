"""What people run: shell recipes and tools. A tool runs both ways, ``python -m run_scripts.retrieve`` and ``python run_scripts/retrieve.py``."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def start(main):
    """Run a tool's ``main()`` as train.py and test.py are run: errors are sentences, and Ctrl-C ends it quietly."""
    from utils.errors import run
    run(main)

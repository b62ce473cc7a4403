"""``python run_scripts/benchmark.py``: the same as ``python -m run_scripts.benchmark``."""
from run_scripts import start
from run_scripts.benchmark.__main__ import main

if __name__ == '__main__':
    start(main)

"""Run the benchmark as a file: ``python run_scripts/benchmark.py`` equals ``python -m run_scripts.benchmark``."""
from run_scripts import start
from run_scripts.benchmark.__main__ import main

if __name__ == '__main__':
    start(main)

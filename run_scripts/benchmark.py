"""Run the benchmark as a file: ``python run_scripts/benchmark.py`` equals ``python -m run_scripts.benchmark``."""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts.benchmark.__main__ import main
from utils.errors import run_program

if __name__ == '__main__':
    run_program(main)

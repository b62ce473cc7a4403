"""Benchmark of Pedestal and of the reference implementation: ``python -m run_scripts.benchmark --help``."""
import os

os.environ.setdefault('KINETO_LOG_LEVEL', '99')   # silences the log of PyTorch's profiler

"""The benchmark: our way to train, read, encode and rank beside the released way. ``python -m run_scripts.benchmark --help``"""
import os

os.environ.setdefault('KINETO_LOG_LEVEL', '99')   # PyTorch's profiler would report on itself

"""Run a program that caches annotations and tokens also of a few captions.

python -m tests.campaign.small_caches train.py ...
"""
import os
import runpy
import sys

from datasets import array_cache

if __name__ == '__main__':
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    array_cache.MIN_CACHED_CAPTIONS = 8
    sys.argv = sys.argv[1:]
    runpy.run_path(os.path.join(root, sys.argv[0]), run_name='__main__')

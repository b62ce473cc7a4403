"""What the forked processes of tests find done: modules are imported, and all recipes and heads have been read.

The garbage collector of a forked process looks at its own objects only (tests/several.py).
"""
import gc
import importlib

import PIL.Image

from utils.options import get_args

LATE_MODULES = ('numpy.ma', 'datasets.preprocessing.irra', 'processor.dry_run', 'processor.test_run', 'tests.several')

for name in LATE_MODULES:
    importlib.import_module(name)
PIL.Image.init()
get_args([])
gc.collect()
gc.freeze()     # 360,000 objects; looking at one also copies its page of memory

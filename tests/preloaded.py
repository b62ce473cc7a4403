"""What the forked processes of tests find done: modules are imported, and all recipes and heads have been read.

The garbage collector of a forked process looks at its own objects only (tests/several.py).
"""
import gc

import numpy.ma         # PyTorch's data loader imports it late
import PIL.Image

import datasets.preprocessing.irra  # noqa: F401
import processor.dry_run
import processor.test_run
import tests.several    # noqa: F401
from utils.options import get_args

PIL.Image.init()
get_args([])
gc.collect()
gc.freeze()     # 360,000 objects; looking at one also copies its page of memory

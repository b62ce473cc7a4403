"""Add the repository to the path of its tests, limit each test process to one thread, and let Ctrl-C stop it.

The tensors are small. Several processes with several threads each would be a hundred times slower.
"""
import gc
import os
import signal

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')
gc.disable()        # until the tests are collected: the garbage collector looks again and again at what imports create
# A shell starts background processes with an ignored SIGINT, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST_FILES = ('test_campaign.py', 'test_windows.py', 'test_train_and_test.py')


def pytest_collection_modifyitems(items):
    """Start the longest tests first. At the end, one process would run them while the other has nothing to do."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


def pytest_collection_finish():
    """Let the garbage collector look at the objects of tests, but not at those of modules."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def file_size_limit(capsys):
    """Return a function that limits the size of files, in bytes, until the test ends.

    Larger writes fail as on a full disk. ``capsys`` keeps the output in memory, because pytest's own file would also be
    limited.
    """
    resource = pytest.importorskip('resource', reason='needs POSIX limits')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

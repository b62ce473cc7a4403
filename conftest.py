"""Puts the repository on the path of its tests, and gives each test process one thread: the tensors are small, and
threads of several processes in each other's way make them a hundred times slower."""
import os

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture
def file_size_limit():
    """A function that limits the size of files, in bytes, until the test ends: writes beyond it fail as on a full disk."""
    resource = pytest.importorskip('resource', reason='needs limits of POSIX')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)

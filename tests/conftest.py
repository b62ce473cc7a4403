"""Processes that tests in several folders share."""
import pytest

from tests.several import Processes


@pytest.fixture(scope='session')
def started_processes():
    """The list of the :class:`~tests.several.Processes` that tests started. Only the last may still run."""
    started = []
    yield started
    if started and not started[-1].is_closed:
        started[-1].close()


@pytest.fixture
def processes(started_processes):
    """Two processes that train together. They start once, and again after a test in which they failed."""
    if not started_processes or started_processes[-1].is_closed:
        started_processes.append(Processes(2))
    return started_processes[-1]

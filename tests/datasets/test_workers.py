"""Workers of the loaders, as real processes: they end with their parent, by whatever way it ends, and not before."""
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import HANG_TIMEOUT

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = '''
import os, signal, sys, time
os.sched_getaffinity = lambda process: range(8)
sys.path.insert(0, {root!r})
from datasets import build_dataloader
from tests.support import options
from utils.errors import run

def main():
    loader, images, _, _ = build_dataloader(options(root_dir={data!r}, img_size=(24, 8), batch_size=6, loss_names='sdm',
                                                    num_workers={workers}))
    batches = iter(loader)
    next(batches)
    children = open(f'/proc/self/task/{{os.getpid()}}/children').read().split()
    assert len(children) == {workers}
    print(*children, flush=True)
    {end}

{call}
'''
ENDS = {   # how a parent ends: (what it does, its exit status)
    'at the end of the script': ('pass', 0),
    'exception': ('raise ValueError("unheard of")', 1),
    'SystemExit while the workers are busy': ('iter(images); raise SystemExit(5)', 5),
    'kill -9': ('os.kill(os.getpid(), signal.SIGKILL)', -signal.SIGKILL),
}
needs_proc = pytest.mark.skipif(not os.path.exists(f'/proc/self/task/{os.getpid()}/children'), reason='finds children in /proc')


@pytest.fixture
def start(make_dataset, tmp_path):
    """A function that starts a script over our loaders which does ``end`` once ``workers`` have begun, and gives (process,
    numbers of the workers). ``program``: as one of our programs does, with utils.errors.run."""
    make_dataset()

    @contextlib.contextmanager
    def started(workers, end, program=False):
        code = SCRIPT.format(root=ROOT, data=str(tmp_path), workers=workers, end=end, call='run(main)' if program else 'main()')
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        try:
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return started


def runs(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except OSError:
        return False


def all_end(pids):
    until = time.monotonic() + HANG_TIMEOUT
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(runs, pids))


@needs_proc
@pytest.mark.parametrize('way, workers', [
    ('at the end of the script', 1), ('exception', 1), ('exception', 8), ('SystemExit while the workers are busy', 1), ('kill -9', 8)])
def test_workers_end_with_their_parent(start, way, workers):
    end, status = ENDS[way]
    with start(workers, end) as (process, children):
        assert len(children) == workers
        _, errors = process.communicate(timeout=HANG_TIMEOUT)   # did not return before: Python waited for workers that heeded no SIGTERM
        assert process.returncode == status, errors
        assert all_end(children)


@needs_proc
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_workers_survive_a_signal_to_the_group(start, number):
    end = f'signal.signal({int(number)}, lambda *_: None); print("ready", flush=True); time.sleep(3); print(len(list(batches)), flush=True)'
    with start(2, end) as (process, children):
        assert process.stdout.readline() == 'ready\n'
        os.killpg(process.pid, number)
        time.sleep(0.3)
        assert all(map(runs, children))
        rest, errors = process.communicate(timeout=HANG_TIMEOUT)
        assert process.returncode == 0 and rest.strip() == '2', errors   # three batches in all, one of them read before
        assert all_end(children)


@needs_proc
def test_workers_survive_a_signal_to_the_group_while_they_start(start):
    """Before start_worker runs, nothing that is theirs would hold the signal off."""
    end = ('signal.signal(signal.SIGTERM, lambda *_: None); plain = images.worker_init_fn;'
           'images.__dict__["worker_init_fn"] = lambda worker: (time.sleep(2), plain(worker));'
           'others = iter(images); print("ready", flush=True); time.sleep(1); print(len(list(others)), flush=True)')
    with start(2, end) as (process, _):
        assert process.stdout.readline() == 'ready\n'
        os.killpg(process.pid, signal.SIGTERM)
        rest, errors = process.communicate(timeout=HANG_TIMEOUT)
        assert process.returncode == 0 and rest.strip() == '1', errors


@needs_proc
def test_a_worker_that_the_system_kills_is_a_sentence(start):
    killing = 'time.sleep(1); os.kill(int(children[0]), signal.SIGKILL); time.sleep(5); list(batches)'
    with start(2, killing, program=True) as (process, children):
        _, errors = process.communicate(timeout=HANG_TIMEOUT)
        assert errors == (f'-c: error: a process that reads images (pid {children[0]}) was killed, most likely by the system because '
                          'memory ran out: lower --num_workers or --batch_size\n')
        assert process.returncode == 2 and all_end(children)

"""Workers of the loaders, as real processes: they end with their parent, however it ends, and not before."""
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import HANG_TIMEOUT
from utils.errors import explain_worker_error

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = '''
import os, signal, sys, time
os.sched_getaffinity = lambda process: range(8)
sys.path.insert(0, {root!r})
from datasets import build_dataloader
from tests.support import options
from utils.errors import run_program

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
needs_proc = pytest.mark.skipif(not os.path.exists(f'/proc/self/task/{os.getpid()}/children'),
                                reason='finds children in /proc')


@pytest.fixture
def start(make_dataset, tmp_path):
    """A function that starts a script with a loader. The script runs ``end`` after its ``workers`` have started.

    It yields (process, pids of the workers). With ``program`` the script ends as the programs do.
    """
    make_dataset()

    @contextlib.contextmanager
    def started(workers, end, program=False):
        code = SCRIPT.format(root=ROOT, data=str(tmp_path), workers=workers, end=end,
                             call='run_program(main)' if program else 'main()')
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True)
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
    ('at the end of the script', 1), ('exception', 1), ('exception', 8), ('SystemExit while the workers are busy', 1),
    ('kill -9', 8)])
def test_workers_end_with_their_parent(start, way, workers):
    end, status = ENDS[way]
    with start(workers, end) as (process, children):
        assert len(children) == workers
        # Must return: Python waits without a limit for workers that ignore SIGTERM.
        _, errors = process.communicate(timeout=HANG_TIMEOUT)
        assert process.returncode == status, errors
        assert all_end(children)


@needs_proc
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_workers_survive_a_signal_to_the_group(start, number):
    end = (f'signal.signal({int(number)}, lambda *_: None); print("ready", flush=True); time.sleep(3); '
           'print(len(list(batches)), flush=True)')
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
    """Before start_worker runs, workers have no signal handler of their own."""
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
        assert errors == (f'-c: error: a process that reads images (pid {children[0]}) was killed, most likely by the '
                          'system because memory ran out: lower --num_workers or --batch_size\n')
        assert process.returncode == 2 and all_end(children)


# -- batches that never come -------------------------------------------------------------------------------------------

LOADER = '''
import sys
sys.path.insert(0, {root!r})
import numpy as np, os, signal, time, torch
from datasets import workers
from utils.errors import run_program

class Samples:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.zeros(100_000)

def {collate}

def main():
    {before}
    loader = workers.Loader(Samples(), 8, num_workers=2, worker_init_fn=workers.start_worker, collate_fn=collate)
    print(sum(len(batch) for batch in loader), flush=True)

run_program(main)
'''
# default_collate allocates shared memory for the batch; torch.stack's result is moved there when it is sent.
IN_THE_BATCH = 'collate(samples): return torch.utils.data.default_collate(samples)'
ON_SENDING = 'collate(samples): return torch.stack(samples)'
MANY_TENSORS = 'collate(samples): return [torch.stack(samples[:2]) for _ in range(40)]'
HANGING = 'collate(samples): time.sleep(1000)'
KILLED = 'collate(samples): os.kill(os.getpid(), signal.{name})'


def printed_by_loader(collate, before='pass', shell='exec "$@"'):
    """(status, output) of a program whose loader has two workers, run by a shell after a command."""
    code = LOADER.format(root=ROOT, collate=collate, before=before)
    done = subprocess.run(['bash', '-c', shell, 'bash', sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=240)
    return done.returncode, done.stdout + done.stderr


def can_mount():
    return subprocess.run(['unshare', '-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/dev/shm'],
                          capture_output=True).returncode == 0


@pytest.mark.parametrize('collate', [IN_THE_BATCH, ON_SENDING])
@pytest.mark.skipif(not os.path.isdir('/dev/shm') or not can_mount(), reason='mounts a small /dev/shm')
def test_too_little_shared_memory_is_a_sentence(collate):
    small = 'exec unshare -m bash -c \'mount -t tmpfs -o size=8m tmpfs /dev/shm; exec "$@"\' bash "$@"'
    status, printed = printed_by_loader(collate, shell=small)
    assert status == 2 and 'Traceback' not in printed, printed
    assert 'no shared memory left (/dev/shm has 8 MB)' in printed and '--shm-size' in printed
    assert 'lower --num_workers' in printed


@pytest.mark.parametrize('name, sentence', [('SIGKILL', 'was killed, most likely by the system because memory ran out'),
                                            ('SIGBUS', 'had no shared memory left')])
def test_workers_that_die_while_the_loader_waits_are_a_sentence(name, sentence):
    status, printed = printed_by_loader(KILLED.format(name=name))
    assert status == 2 and 'Traceback' not in printed, printed
    assert printed.count(': error: ') == 1 and sentence in printed, printed


@needs_proc
def test_too_few_open_files_are_a_sentence():
    """With this limit a worker starts, but cannot send a batch of many tensors."""
    status, printed = printed_by_loader(MANY_TENSORS, shell='ulimit -n 24; exec "$@"')
    assert status == 2, printed
    sentence, = [line for line in printed.splitlines() if ': error: ' in line]
    assert 'too many open files' in sentence and 'ulimit -n' in sentence and 'lower --num_workers' in sentence


def test_a_loader_does_not_wait_forever():
    status, printed = printed_by_loader(HANGING, before='workers.MAX_WAIT_SECONDS = 3')
    assert status == 2 and 'Traceback' not in printed, printed
    assert 'the 2 data loader workers sent no batch for 3 s' in printed and '--num_workers 0' in printed


@pytest.mark.parametrize('message, sentence', [   # of PyTorch 2.6 and later, on Linux and macOS
    ('unable to write to file </torch_12_34_0>: No space left on device (28)', 'no shared memory left'),
    ('unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)',
     'no shared memory left'),
    ('unable to allocate shared memory(shm) for file </torch_1_2_0>: Resource temporarily unavailable (11)',
     'no shared memory left'),
    ('unable to allocate shared memory(shm) for file </torch_1_2_0>: Success (0)', 'no shared memory left'),
    ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
     'shared memory.', 'pid 7) had no shared memory left'),
    ('unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)',
     'too many open files'),
    ('Too many open files. Communication with the workers is no longer possible.', 'too many open files'),
    ('received 0 items of ancdata', 'too many open files'),
    ('Caught OSError of a DataLoader worker.\nOriginal Traceback ...\nOSError: [Errno 24] Too many open files',
     'too many open files'),
    ('the image cache needs 5 GB: No space left on device', None)])
def test_what_pytorch_says_of_workers_is_a_sentence(message, sentence):
    explained = explain_worker_error(RuntimeError(message))
    assert sentence in explained if sentence else explained is None


def test_too_many_open_files_while_workers_start_are_a_sentence():
    assert 'ulimit -n' in explain_worker_error(OSError(errno.EMFILE, 'Too many open files'))

"""Workers of the loaders, as real processes: they end with their parent, however it ends, and not before."""
import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.support import HANG_TIMEOUT
from utils.errors import explain_worker_error

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WARM = '''
import gc, json, os, sys
sys.path.insert(0, {root!r})
import numpy, torch
from datasets import build_dataloader, workers
from tests.support import options
from utils.errors import run_program

gc.freeze()     # else each end of a script looks at all objects of PyTorch
for line in sys.stdin:
    code, output, errors = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
for descriptor, path in enumerate((os.devnull, output, errors)):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
exec(code)
'''
SCRIPT = '''
import os, signal, sys, time
os.sched_getaffinity = lambda process: range(8)

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


class WarmPython:
    """A Python that has imported PyTorch and forks scripts. They end as those of a new Python do: it is their main.

    Args:
        prefix: a command that starts another one.
    """

    def __init__(self, *prefix):
        self.process = subprocess.Popen([*prefix, sys.executable, '-c', WARM.format(root=ROOT)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def start(self, code, folder):
        """Start a script, whose output is below ``folder``."""
        return Script(self.process, code, folder)

    def close(self):
        self.process.stdin.close()
        self.process.wait(HANG_TIMEOUT)


class Script:
    """A script of a :class:`WarmPython` in its own group of processes."""

    def __init__(self, python, code, folder):
        self.python, self.paths = python, [folder / 'output.txt', folder / 'errors.txt']
        for path in self.paths:
            path.write_text('')
        self.is_running = True
        python.stdin.write(json.dumps([code, *map(str, self.paths)]) + '\n')
        python.stdin.flush()
        self.pid, self.output = int(python.stdout.readline()), self.paths[0].open()

    def readline(self):
        """The next line of the output; what there is of it if the script has ended."""
        line = ''
        while not line.endswith('\n'):
            has_ended = not runs(self.pid)
            part = self.output.readline()
            line += part
            if has_ended and not part:
                break
            time.sleep(0.01)
        return line

    def wait(self):
        """Wait for the end: (status, the rest of the output, errors)."""
        if not select.select([self.python.stdout], [], [], HANG_TIMEOUT)[0]:
            os.killpg(self.pid, signal.SIGKILL)
        status, self.is_running = int(self.python.stdout.readline()), False
        # The frozen modules make nanobind, which Triton has from PyTorch 2.15 on, count its own types as leaked.
        return status, self.output.read(), self.paths[1].read_text().split('nanobind: leaked')[0]

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.is_running:
            self.wait()
        self.output.close()


@pytest.fixture(scope='module')
def python():
    warm = WarmPython()
    yield warm
    warm.close()


@pytest.fixture
def start(make_dataset, python, tmp_path):
    """A function that starts a script with a loader. The script runs ``end`` after its ``workers`` have started.

    It yields (script, pids of the workers). With ``program`` the script ends as the programs do.
    """
    make_dataset()

    @contextlib.contextmanager
    def started(workers, end, program=False):
        script = python.start(SCRIPT.format(data=str(tmp_path), workers=workers, end=end,
                                            call='run_program(main)' if program else 'main()'), tmp_path)
        try:
            yield script, [int(pid) for pid in script.readline().split()]
        finally:
            script.end()
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
    with start(workers, end) as (script, children):
        assert len(children) == workers
        # Must return: Python waits without a limit for workers that ignore SIGTERM.
        exit_status, _, errors = script.wait()
        assert exit_status == status, errors
        assert all_end(children)


@needs_proc
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_workers_survive_a_signal_to_the_group(start, number):
    end = (f'signal.signal({int(number)}, lambda *_: None); print("ready", flush=True); time.sleep(3); '
           'print(len(list(batches)), flush=True)')
    with start(2, end) as (script, children):
        assert script.readline() == 'ready\n'
        os.killpg(script.pid, number)
        time.sleep(0.3)
        assert all(map(runs, children))
        status, rest, errors = script.wait()
        assert status == 0 and rest.strip() == '2', errors   # three batches in all, one of them read before
        assert all_end(children)


@needs_proc
def test_workers_survive_a_signal_to_the_group_while_they_start(start):
    """Before start_worker runs, workers have no signal handler of their own."""
    end = ('signal.signal(signal.SIGTERM, lambda *_: None); plain = images.worker_init_fn;'
           'images.__dict__["worker_init_fn"] = lambda worker: (time.sleep(2), plain(worker));'
           'others = iter(images); print("ready", flush=True); time.sleep(1); print(len(list(others)), flush=True)')
    with start(2, end) as (script, _):
        assert script.readline() == 'ready\n'
        os.killpg(script.pid, signal.SIGTERM)
        status, rest, errors = script.wait()
        assert status == 0 and rest.strip() == '1', errors


@needs_proc
def test_workers_end_although_two_signals_arrive_as_one(start):
    """A scheduler's SIGTERM is pending, so that the parent's adds nothing to it: the worker sees the scheduler's."""
    end = ('import subprocess; sys.used_until_the_end = batches;'
           '[os.kill(int(child), signal.SIGSTOP) for child in children]; subprocess.run(["kill", *children]);'
           'subprocess.Popen(["sh", "-c", "sleep 1; kill -CONT " + " ".join(children)])')
    with start(2, end) as (script, children):
        status, _, errors = script.wait()
        assert status == 0, errors
        assert all_end(children)


@needs_proc
def test_a_worker_that_the_system_kills_is_a_sentence(start):
    killing = 'time.sleep(1); os.kill(int(children[0]), signal.SIGKILL); time.sleep(5); list(batches)'
    with start(2, killing, program=True) as (script, children):
        status, _, errors = script.wait()
        assert errors == (f'-c: error: a process that reads images (pid {children[0]}) was killed, most likely by the '
                          'system because memory ran out: lower --num_workers or --batch_size\n')
        assert status == 2 and all_end(children)


# -- batches that never come -------------------------------------------------------------------------------------------

LOADER = '''
import os, resource, signal, time

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


@pytest.fixture
def printed_by_loader(python, tmp_path):
    """A function that returns (status, output) of a program whose loader has two workers."""
    def run(collate, before='pass', warm=python):
        script = warm.start(LOADER.format(collate=collate, before=before), tmp_path)
        try:
            status, output, errors = script.wait()
        finally:
            script.end()
        return status, output + errors
    return run


def can_mount():
    return subprocess.run(['unshare', '-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/dev/shm'],
                          capture_output=True).returncode == 0


@pytest.fixture(scope='module')
def cramped_python():
    """A Python that has a small /dev/shm."""
    if not os.path.isdir('/dev/shm') or not can_mount():
        pytest.skip('mounts a small /dev/shm')
    mount = 'mount -t tmpfs -o size=8m tmpfs /dev/shm; exec "$@"'
    warm = WarmPython('unshare', '-m', 'bash', '-c', mount, 'bash')
    yield warm
    warm.close()


@pytest.mark.parametrize('collate', [IN_THE_BATCH, ON_SENDING])
def test_too_little_shared_memory_is_a_sentence(collate, printed_by_loader, cramped_python):
    status, printed = printed_by_loader(collate, warm=cramped_python)
    assert status == 2 and 'Traceback' not in printed, printed
    assert 'no shared memory left (/dev/shm has 8 MB)' in printed and '--shm-size' in printed
    assert 'lower --num_workers' in printed


@pytest.mark.parametrize('name, sentence', [('SIGKILL', 'was killed, most likely by the system because memory ran out'),
                                            ('SIGBUS', 'had no shared memory left')])
def test_workers_that_die_while_the_loader_waits_are_a_sentence(name, sentence, printed_by_loader):
    status, printed = printed_by_loader(KILLED.format(name=name))
    assert status == 2 and 'Traceback' not in printed, printed
    assert printed.count(': error: ') == 1 and sentence in printed, printed


@needs_proc
def test_too_few_open_files_are_a_sentence(printed_by_loader):
    """With this limit a worker starts, but cannot send a batch of many tensors."""
    status, printed = printed_by_loader(MANY_TENSORS, 'resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))')
    assert status == 2, printed
    sentence, = [line for line in printed.splitlines() if ': error: ' in line]
    assert 'too many open files' in sentence and 'ulimit -n' in sentence and 'lower --num_workers' in sentence


def test_a_loader_does_not_wait_forever(printed_by_loader):
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

"""Several processes on this machine that train together, for tests: ``processes.each(function, *inputs)``."""
import contextlib
import multiprocessing
import os
import pickle
import queue
import socket
import sys
import traceback

import torch
import torch.distributed as dist

from tests.support import HANG_TIMEOUT
from utils.errors import run


class Processes:
    """``count`` processes of one gloo group, each with one thread; they live until :meth:`close`."""

    def __init__(self, count):
        context = multiprocessing.get_context('spawn')
        with socket.socket() as found:
            found.bind(('127.0.0.1', 0))
            port = found.getsockname()[1]
        self.tasks, self.answers = [context.Queue() for _ in range(count)], context.Queue()
        self.processes = [context.Process(target=work, args=(rank, count, port, self.tasks[rank], self.answers), daemon=True)
                          for rank in range(count)]
        for process in self.processes:
            process.start()

    def each(self, function, *inputs):
        """[what ``function(*inputs)``, of a test module, returns on each process], by its number."""
        for tasks in self.tasks:
            tasks.put((function, inputs))
        found = {}
        while len(found) < len(self.processes):
            try:
                rank, answer, problem = self.answers.get(timeout=HANG_TIMEOUT)
            except queue.Empty:
                self.close(kill=True)
                raise AssertionError(f'after {HANG_TIMEOUT} s only the processes {sorted(found)} have answered') from None
            if problem:
                self.close(kill=True)   # the others wait for it
                raise AssertionError(f'process {rank}: {problem}')
            found[rank] = pickle.loads(answer)
        return [found[rank] for rank in range(len(found))]

    def close(self, kill=False):
        for tasks in self.tasks:
            tasks.put(None)
        for process in self.processes:
            if kill:
                process.kill()
            process.join(HANG_TIMEOUT)


def work(rank, count, port, tasks, answers):
    from utils import comm
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with comm.process_group():
        while (task := tasks.get()) is not None:
            function, inputs = task
            try:
                answers.put((rank, pickle.dumps(function(*inputs)), None))
            except Exception:   # told where the test is
                answers.put((rank, None, traceback.format_exc()))


class Launched:
    """A program as torchrun starts it, ``count`` times, without torchrun: ``Launched(main, argv, folder)``. The processes are forked from
    one that has loaded PyTorch.

    Args:
        main: of a module.
        folder: where what they print goes.
        again: the :class:`Launched` in whose stead these are started, as by ``--max_restarts``.
    """

    def __init__(self, main, argv, folder, count=2, again=None):
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['torch', 'torchvision', 'torch.utils.tensorboard', 'train'])
        self.store = again.store if again else dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
        self.attempt = again.attempt + 1 if again else 0
        shared = dict(WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR='127.0.0.1', MASTER_PORT=self.store.port,
                      TORCHELASTIC_USE_AGENT_STORE=True, TORCHELASTIC_RESTART_COUNT=self.attempt)
        self.paths = [os.path.join(folder, f'{self.attempt}_{rank}.txt') for rank in range(count)]
        self.processes = [context.Process(target=run_as_program, args=(main, argv, {**shared, 'RANK': rank, 'LOCAL_RANK': rank}, path))
                          for rank, path in enumerate(self.paths)]
        for process in self.processes:
            process.start()

    def send(self, rank, number):
        """A signal, to a process that may have left already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    def wait(self):
        """(their statuses, all that they printed)"""
        for process in self.processes:
            process.join(HANG_TIMEOUT)
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return statuses, self.printed()

    def printed(self):
        return ''.join(open(path, errors='replace').read() for path in self.paths if os.path.exists(path))


def run_as_program(main, argv, environment, path):
    os.environ.update({name: str(value) for name, value in environment.items()})
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    multiprocessing.set_start_method('fork', force=True)    # of a loader's workers, as in a program of its own
    sys.argv = ['train.py', *argv]
    torch.set_num_threads(1)
    run(main)

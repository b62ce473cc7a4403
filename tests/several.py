"""Several processes on this machine that train together, for tests: ``processes.run(function, *inputs)``."""
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import queue
import socket
import sys
import traceback

import torch
import torch.distributed as dist

from tests.support import HANG_TIMEOUT, small_vocabulary, vocabulary_size
from utils.errors import run_program


class Processes:
    """``count`` processes of one gloo group, each with one thread. They run until :meth:`close`.

    Attributes:
        is_closed: whether they have ended. If a function fails on one process, all of them end.
    """
    is_closed = False

    def __init__(self, count):
        context = fork_server()
        with socket.socket() as free_socket:
            free_socket.bind(('127.0.0.1', 0))
            port = free_socket.getsockname()[1]
        self.tasks, self.answers = [context.Queue() for _ in range(count)], context.Queue()
        self.processes = [context.Process(target=run_tasks, args=(rank, count, port, self.tasks[rank], self.answers),
                                          daemon=True) for rank in range(count)]
        for process in self.processes:
            process.start()

    def run(self, function, *inputs):
        """Call ``function(*inputs)``, of a test module, on each process, and return the results by rank."""
        for tasks in self.tasks:
            tasks.put((function, inputs, vocabulary_size()))
        results = {}
        while len(results) < len(self.processes):
            try:
                rank, result, problem = self.answers.get(timeout=HANG_TIMEOUT)
            except queue.Empty:
                self.close(kill=True)
                raise AssertionError(f'after {HANG_TIMEOUT} s only processes {sorted(results)} have answered') from None
            if problem:
                self.close(kill=True)   # the others wait for it
                raise AssertionError(f'process {rank}: {problem}')
            results[rank] = pickle.loads(result)
        return [results[rank] for rank in range(len(results))]

    def close(self, kill=False):
        self.is_closed = True
        for tasks in self.tasks:
            tasks.put(None)
        for process in self.processes:
            if kill:
                process.kill()
            process.join(HANG_TIMEOUT)


def run_tasks(rank, count, port, tasks, answers):
    """Run the tasks of a process until there is None."""
    from utils import comm
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count),
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with comm.process_group():
        while (task := tasks.get()) is not None:
            function, inputs, vocabulary = task
            try:
                with small_vocabulary(vocabulary):
                    answers.put((rank, pickle.dumps(function(*inputs)), None))
            except Exception:   # the test raises it
                answers.put((rank, None, traceback.format_exc()))


class Launched:
    """A program that runs in ``count`` processes as under torchrun, but without torchrun.

    Args:
        main: a function of a module.
        argv: the program's arguments.
        folder: the folder for the output of the processes.
        count: the number of processes.
        again: the :class:`Launched` that these processes restart, as by ``--max_restarts``.
    """

    def __init__(self, main, argv, folder, count=2, again=None):
        self.store = again.store if again else dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
        self.attempt = again.attempt + 1 if again else 0
        shared = dict(WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR='127.0.0.1', MASTER_PORT=self.store.port,
                      TORCHELASTIC_USE_AGENT_STORE=True, TORCHELASTIC_RESTART_COUNT=self.attempt)
        self.paths = [os.path.join(folder, f'{self.attempt}_{rank}.txt') for rank in range(count)]
        environments = [{**shared, 'RANK': rank, 'LOCAL_RANK': rank} for rank in range(count)]
        self.processes = [start_program(main, argv, path, environment)
                          for environment, path in zip(environments, self.paths)]

    def send(self, rank, number):
        """Send a signal to a process, which may have exited already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    def wait(self):
        """Wait for all processes: ``(exit statuses, output of all)``."""
        for process in self.processes:
            process.join(HANG_TIMEOUT)
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return statuses, self.output()

    def output(self):
        """Return the output of all processes."""
        return ''.join(open(path, errors='replace').read() for path in self.paths if os.path.exists(path))


class ForkedProgram:
    """A program of :func:`start_program`, with what the tools that start train.py read of a ``Popen``.

    Args:
        main, argv, path, name: see :func:`start_program`.
    """

    def __init__(self, main, argv, path, name='train.py'):
        self.process, self.path = start_program(main, argv, path, name=name), path
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self):
        self.process.join(HANG_TIMEOUT)
        return self.poll()

    def communicate(self):
        self.wait()
        return None, self.read_output()

    def read_output(self):
        with open(self.path) as file:
            return file.read()

    def send_signal(self, number):
        os.kill(self.pid, number)


def fork_server():
    """Return the context of processes that are forked from one that has imported PyTorch and Pedestal.

    That process starts now, so that the first caller decides what it has imported: it is the only one of its parent.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'torch.utils.tensorboard', 'processor.training_run', 'train',
                                    'run_scripts.benchmark.rows', 'tests.preloaded'])
    multiprocessing.forkserver.ensure_running()
    return context


def start_program(main, argv, path, environment=None, name='train.py', errors_path=None):
    """Start a program, forked from a process that has loaded PyTorch, and return its process.

    Args:
        main: a function of a module.
        argv: the program's arguments.
        path: the file for its output and its errors.
        environment: ``{name: value}`` of variables to set.
        name: the program's name, for its messages.
        errors_path: the file for its errors, if they have their own.
    """
    process = fork_server().Process(target=run_as_program, args=(main, [name, *argv], environment or {},
                                                                 [path, errors_path or path], vocabulary_size()))
    process.start()
    return process


def run_forked(main, argv, folder, name):
    """Run a program with :func:`start_program`, with its output below ``folder``: (status, output, errors)."""
    paths = [folder / f'{name}.{kind}.txt' for kind in ('output', 'errors')]
    process = start_program(main, argv, paths[0], name=name, errors_path=paths[1])
    process.join(HANG_TIMEOUT)
    return process.exitcode, *(path.read_text() for path in paths)


def run_as_program(main, argv, environment, paths, vocabulary):
    os.environ.update({name: str(value) for name, value in environment.items()})
    for descriptor, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    multiprocessing.set_start_method('fork', force=True)    # for data loader workers, as in a program of its own
    sys.argv = argv
    torch.set_num_threads(1)
    with small_vocabulary(vocabulary):
        run_program(main)

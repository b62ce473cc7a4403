"""Several processes on this machine that train together, for tests: ``processes.each(function, *inputs)``."""
import multiprocessing
import os
import pickle
import queue
import socket
import traceback

import torch

PATIENCE = 120      # seconds for one call


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
                rank, answer, problem = self.answers.get(timeout=PATIENCE)
            except queue.Empty:
                self.close(kill=True)
                raise AssertionError(f'after {PATIENCE} s only the processes {sorted(found)} have answered') from None
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
            process.join(PATIENCE)


def work(rank, count, port, tasks, answers):
    from utils import comm
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with comm.joined():
        while (task := tasks.get()) is not None:
            function, inputs = task
            try:
                answers.put((rank, pickle.dumps(function(*inputs)), None))
            except Exception:   # told where the test is
                answers.put((rank, None, traceback.format_exc()))

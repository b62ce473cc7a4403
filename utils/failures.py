"""How one of several processes leaves: the first that does speaks for all and decides their status; the others follow without a word."""
import os
import signal
import socket
import threading
import time

import torch.distributed as dist

from utils.errors import UserError, explain_worker_error, tell_error

NOTE = 'left'       # what the store holds once a process leaves: its number and its status
PATIENCE = 1.0      # seconds until the system has told that a process is gone
LOOK_EVERY = 2.0    # seconds between looks after the others
GRACE = 15.0        # seconds to notice by oneself that another has left; torchrun gives 30
STOPPED = 130, 143  # statuses of a process that SIGINT or SIGTERM ended
# What PyTorch says of a process that it cannot reach, by gloo and by NCCL.
BROKEN = ('Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'Connection refused', 'Timed out', 'timed out', 'Timeout',
          'timeout', 'remote process exited', 'ncclRemoteError', 'Failed to recv', 'failed to recv', 'Failed to send')


class LeftAlone(RuntimeError):
    """Another process has left, and what this one waits for will not come."""


class Parting:
    """What the processes of a run tell each other when they leave.

    Args:
        store: of torch.distributed, whom all reach.
        rank: this process's number.
        processes: ``[place()]`` of all.
    """

    def __init__(self, store, rank, processes):
        self.store, self.rank = store, rank
        here, _ = place()
        self.neighbours = {other: pid for other, (machine, pid) in enumerate(processes)
                           if machine == here and other != rank and not is_gone(pid)}
        self.leaves = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        """End this process where another has left and it does not notice: NCCL may wait for that one without end, and no signal is heeded
        meanwhile."""
        while not self.leaves.wait(LOOK_EVERY):
            if (self.lost() or self.status() is not None) and not self.leaves.wait(GRACE):
                first, status = self.note(2)
                if first:
                    tell_error(self.sentence())
                os._exit(status)

    @staticmethod
    def how_to_go_on():
        """In words that follow what happened."""
        return '; start it again'

    def note(self, status):
        """(whether this process is the first to leave, the status that all leave with)"""
        try:
            self.store.set(f'{NOTE} {self.rank}', '')
            rank, status = self.store.compare_set(NOTE, '', f'{self.rank} {status}').split()
        except RuntimeError:    # the store went with the process that kept it
            return all(is_gone(pid) for other, pid in self.neighbours.items() if other < self.rank), status
        return int(rank) == self.rank, int(status)

    def status(self):
        """The status that another process left with; None if none has told one."""
        try:
            rank, status = self.store.get(NOTE).split() if self.store.check([NOTE]) else (self.rank, None)
        except RuntimeError:
            return None
        return None if int(rank) == self.rank else int(status)

    def lost(self, wait=0.0):
        """The numbers of this machine's processes that have ended without telling so, if need be after ``wait`` seconds."""
        deadline = time.monotonic() + wait
        while not (gone := [other for other, pid in self.neighbours.items() if is_gone(pid) and not self.told(other)]):
            if time.monotonic() >= deadline:
                break
            time.sleep(PATIENCE / 10)
        return gone

    def told(self, rank):
        """Whether a process has told that it leaves."""
        try:
            return self.store.check([f'{NOTE} {rank}'])
        except RuntimeError:
            return False

    def sentence(self):
        """What happened to the others, for whom a connection broke off."""
        gone = ' and '.join(f'process {other} (pid {self.neighbours[other]})' for other in self.lost(PATIENCE))
        if gone:
            return f'{gone} of this run ended without a word, most likely killed, by hand or because memory ran out{self.how_to_go_on()}'
        return f'another process of this run, its machine or the network to it went away{self.how_to_go_on()}'

    def after(self, error):
        """What this process, which cannot go on because of ``error``, is to raise."""
        self.leaves.set()
        first, status = self.note(status_of(error))
        if not first:
            return SystemExit(status)
        return UserError(self.sentence()) if is_broken(error) or (status in STOPPED and self.lost()) else error


def place():
    """(this machine, this process's number on it)"""
    return socket.gethostname(), os.getpid()


def is_gone(pid):
    """Whether a process of this machine has ended; its parent may not have heard of it yet."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
            return file.read().rsplit(')', 1)[1].split()[0] in 'ZX'
    except OSError:     # gone, or no Linux
        pass
    if os.name != 'posix':      # there os.kill ends the process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def is_broken(error):
    """Whether ``error`` says that another process cannot be reached. PyTorch's types do not: gloo raises plain RuntimeErrors, in a backward
    pass, too."""
    of_ours = isinstance(error, dist.DistError) or 'gloo' in str(error) or 'NCCL' in str(error)
    return isinstance(error, LeftAlone) or (isinstance(error, RuntimeError) and of_ours and any(words in str(error) for words in BROKEN))


def status_of(error):
    """The status that a program ends with because of ``error`` (:func:`utils.errors.run`)."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if isinstance(error, UserError) or is_broken(error) or explain_worker_error(error) else 1


def heed_signals():
    """From here on SIGTERM ends this process as Ctrl-C does, by an exception, and with status 143: what it holds is given back, and the
    others are told."""
    own = os.getpid()

    def leave(number, frame):
        if os.getpid() != own:     # of a loader's worker before it is one
            os._exit(128 + number)
        ignore_signals()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def ignore_signals():
    """Of those that come while this process leaves: torchrun passes a signal on to processes that got it already, and asks all to end when
    the first has."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

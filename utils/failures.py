"""Failures of one of several processes: the first that exits reports the error, and all exit with its status."""
import os
import signal
import socket
import threading
import time

import torch.distributed as dist

from utils.errors import UserError, explain_worker_error, print_error

EXIT_KEY = 'exit'           # key in the store: rank and exit status of the first process that exits
EXIT_TIMEOUT = 1.0          # seconds until the system reports that a process has exited
CHECK_INTERVAL = 2.0        # seconds between checks of the other processes
GRACE = 15.0                # seconds in which a process can notice the failure by itself; torchrun allows 30
SIGNAL_STATUSES = 130, 143  # exit statuses after SIGINT and SIGTERM
# Parts of PyTorch's messages if another process is unreachable, from gloo and from NCCL.
CONNECTION_MESSAGES = (
    'Connection closed by peer', 'Connection reset by peer', 'Broken pipe', 'Connection refused', 'Timed out',
    'timed out', 'Timeout', 'timeout', 'remote process exited', 'ncclRemoteError', 'Failed to recv', 'failed to recv',
    'Failed to send')


class PeerExitedError(RuntimeError):
    """Another process has exited, so that a wait for it would never end."""


class FailureMonitor:
    """Share the first failure of a run between its processes, and end this process if another has exited.

    Args:
        store: the store of torch.distributed that all processes can reach.
        rank: the rank of this process.
        processes: ``[process_identity()]`` of all ranks.
    """

    def __init__(self, store, rank, processes):
        self.store, self.rank = store, rank
        this_host, _ = process_identity()
        self.local_peers = {peer: pid for peer, (host, pid) in enumerate(processes)
                            if host == this_host and peer != rank and not has_exited(pid)}
        self.is_exiting = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        """End this process if another has exited and this one does not notice.

        NCCL may wait for the other process forever, and no signal is handled meanwhile.
        """
        while not self.is_exiting.wait(CHECK_INTERVAL):
            has_failed = self.exited_peers() or self.peer_exit_status() is not None
            if has_failed and not self.is_exiting.wait(GRACE):
                is_first, status = self.record_exit(2)
                if is_first:
                    print_error(self.failure_message())
                os._exit(status)

    @staticmethod
    def resume_hint():
        """Return what the user can do: the end of an error message."""
        return '; start it again'

    def record_exit(self, status):
        """Record that this process exits.

        Returns:
            ``(is_first, status)``: whether this process is the first that exits, and the status of the first.
        """
        try:
            self.store.set(f'{EXIT_KEY} {self.rank}', '')
            rank, status = self.store.compare_set(EXIT_KEY, '', f'{self.rank} {status}').split()
        except RuntimeError:    # the process that hosted the store has exited
            return all(has_exited(pid) for peer, pid in self.local_peers.items() if peer < self.rank), status
        return int(rank) == self.rank, int(status)

    def peer_exit_status(self):
        """Return the exit status of the first other process that recorded one, else None."""
        try:
            rank, status = self.store.get(EXIT_KEY).split() if self.store.check([EXIT_KEY]) else (self.rank, None)
        except RuntimeError:
            return None
        return None if int(rank) == self.rank else int(status)

    def stop_status(self, error):
        """Return the exit status of a process that a signal stopped if ``error`` follows from this, else None."""
        status = self.peer_exit_status() if is_connection_error(error) else None
        return status if status in SIGNAL_STATUSES else None

    def exited_peers(self, timeout=0.0):
        """List the ranks on this machine that exited without a record.

        Args:
            timeout: seconds to wait until there is one.
        """
        deadline = time.monotonic() + timeout
        while True:
            exited = [peer for peer, pid in self.local_peers.items()
                      if has_exited(pid) and not self.has_recorded_exit(peer)]
            if exited or time.monotonic() >= deadline:
                return exited
            time.sleep(EXIT_TIMEOUT / 10)

    def has_recorded_exit(self, rank):
        """Whether a rank has recorded its exit."""
        try:
            return self.store.check([f'{EXIT_KEY} {rank}'])
        except RuntimeError:
            return False

    def failure_message(self):
        """Describe the failure of the other processes."""
        exited = ' and '.join(f'process {peer} (pid {self.local_peers[peer]})'
                              for peer in self.exited_peers(EXIT_TIMEOUT))
        if exited:
            return (f'{exited} of this run exited without an error message, most likely killed, by hand or because '
                    f'memory ran out{self.resume_hint()}')
        return ('this run lost the connection to another process: it, its machine or the network failed'
                f'{self.resume_hint()}')

    def exit_error(self, error):
        """Return the exception that this process raises after ``error``, which ends it."""
        self.is_exiting.set()
        is_first, status = self.record_exit(exit_status(error))
        if not is_first:
            return SystemExit(status)
        is_peer_failure = is_connection_error(error) or (status in SIGNAL_STATUSES and self.exited_peers())
        return UserError(self.failure_message()) if is_peer_failure else error


def process_identity():
    """Return ``(host name, process id)`` of this process."""
    return socket.gethostname(), os.getpid()


def has_exited(pid):
    """Whether a process on this machine has exited, also if its parent has not yet waited for it."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
            return file.read().rsplit(')', 1)[1].split()[0] in 'ZX'
    except OSError:     # it has exited, or the system is not Linux
        pass
    if os.name != 'posix':      # on Windows os.kill would end the process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def is_connection_error(error):
    """Whether ``error`` says that another process is unreachable.

    The type alone does not say it: gloo raises plain RuntimeErrors, also in a backward pass.
    """
    if isinstance(error, PeerExitedError):
        return True
    message = str(error)
    is_distributed = isinstance(error, dist.DistError) or 'gloo' in message or 'NCCL' in message
    return isinstance(error, RuntimeError) and is_distributed and any(text in message for text in CONNECTION_MESSAGES)


def exit_status(error):
    """Return the status that a program exits with after ``error`` (:func:`utils.errors.run_program`)."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if isinstance(error, UserError) or is_connection_error(error) or explain_worker_error(error) else 1


def install_signal_handlers():
    """Let SIGINT and SIGTERM end this process by an exception, so that it frees its resources and records its exit."""
    main_pid = os.getpid()

    def raise_exit(number, frame):
        if os.getpid() != main_pid:     # a forked data loader worker that has not yet set its own handlers
            os._exit(128 + number)
        ignore_signals()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, raise_exit)


def ignore_signals():
    """Ignore SIGINT and SIGTERM while this process exits.

    torchrun repeats a signal that the processes have already received. It also signals all after the first has exited.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

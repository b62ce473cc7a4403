"""The processes that read for a loader: a signal to their whole group leaves them alone, and they never outlive their parent."""
import contextlib
import multiprocessing
import os
import signal
import threading

from torch.utils.data import DataLoader

SIGNALS = {signal.SIGINT, signal.SIGTERM}
LOOK_EVERY = 1.0   # seconds between looks after the parent


class Loader(DataLoader):
    """A DataLoader whose workers are not to be ended by a signal, not even before :func:`start_worker` has run in them."""

    def __iter__(self):
        with held() if self._iterator is None else contextlib.nullcontext():
            return super().__iter__()


@contextlib.contextmanager
def held():
    """Signals that come meanwhile reach this process afterwards; a process that is started meanwhile is born deaf to them."""
    if not hasattr(signal, 'pthread_sigmask'):   # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(worker):
    """What a worker does first.

    Ctrl-C and a scheduler's SIGTERM reach the whole group: the parent saves, which takes its workers, and then ends them. Python
    ends them by a SIGTERM of its own and waits for them without a limit, so that one is to be heeded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigtimedwait'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=leave_with_parent, args=(multiprocessing.parent_process(), os.getppid()), daemon=True).start()
    elif hasattr(signal, 'pthread_sigmask'):     # macOS cannot tell whose signal it is; PyTorch's own handler leaves
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def leave_with_parent(parent, forked_by):
    """End this process once ``parent`` asks for it or is gone; ``forked_by`` is the number of who forked it."""
    while parent.is_alive() and os.getppid() == forked_by:
        received = signal.sigtimedwait({signal.SIGTERM}, LOOK_EVERY)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)

"""The processes that read for a loader: a signal to their whole group leaves them alone, and they never outlive their parent."""
import contextlib
import multiprocessing
import multiprocessing.queues
import os
import signal
import threading

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from utils.errors import UserError, explain_worker_error

SIGNALS = {signal.SIGINT, signal.SIGTERM}
PARENT_POLL_SECONDS = 1.0   # seconds between looks after the parent
POLL_SECONDS = 1           # seconds of waiting for a batch between calls of on_wait
# Seconds until a batch counts as lost. Known causes are reported at once, so this one is for a worker that hangs.
# A network file system may stand still for minutes and recover; other ranks wait for an hour (utils.comm.PATIENCE).
MAX_WAIT_SECONDS = 1800


class Loader(DataLoader):
    """A DataLoader that never waits forever, and whose workers survive signals, even before :func:`start_worker`.

    ``on_wait()`` is called each second while the next batch isn't there, and may raise. Iterating raises
    :class:`~utils.errors.UserError` if a worker died, cannot send its batch, or sends none for half an hour.
    """

    def __init__(self, dataset, *args, num_workers=0, **settings):
        if num_workers:
            settings = {'timeout': MAX_WAIT_SECONDS, 'multiprocessing_context': loader_context(), **settings}
        self.on_wait = lambda: None
        super().__init__(dataset, *args, num_workers=num_workers, **settings)

    def __iter__(self):
        with explain_loader_errors(), block_signals() if self._iterator is None else contextlib.nullcontext():
            return BatchIterator(super().__iter__(), self)


class BatchIterator:
    """The iterator of a :class:`Loader`. It waits in short steps, so that the main process can act on signals."""

    def __init__(self, iterator, loader):
        self.iterator, self.loader = iterator, loader

    def __iter__(self):
        return self

    def __next__(self):
        if not self.loader.num_workers:
            return next(self.iterator)
        self.iterator._timeout = POLL_SECONDS
        try:
            return self.wait_for_batch()
        finally:
            self.iterator._timeout = self.loader.timeout    # starting the next epoch waits for its workers, too

    def wait_for_batch(self):
        for _ in range(MAX_WAIT_SECONDS // POLL_SECONDS):
            with contextlib.suppress(BatchNotReady), explain_loader_errors():
                return next(self.iterator)
            try:
                self.loader.on_wait()
            except BaseException:
                self.terminate_workers()
                raise
        self.terminate_workers()
        raise UserError(f'no batch came from the {self.loader.num_workers} processes that read images for {MAX_WAIT_SECONDS} s: '
                        'the disk or network file system of --root_dir may hang; --num_workers 0 reads without such '
                        'processes and shows where')

    def terminate_workers(self):
        """End workers that may hang. PyTorch would wait five seconds for each."""
        for worker in self.iterator._workers:
            worker.terminate()


class BatchNotReady(Exception):
    """The next batch isn't there yet. Asking again goes on waiting."""


@contextlib.contextmanager
def explain_loader_errors():
    """Turn what PyTorch raises for a problem between a loader and its workers into :class:`UserError`."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if str(error).startswith('DataLoader timed out'):
            raise BatchNotReady from None
        sentence = explain_worker_error(error)
        if sentence:
            raise UserError(sentence) from None
        raise


class BatchQueue(multiprocessing.queues.Queue):
    """A worker's queue that sends the reason in place of a batch that it cannot send.

    Python would only print the reason, and the loader would wait.
    """

    def _on_queue_feeder_error(self, error, item):
        if not isinstance(item, tuple) or len(item) != 2 or isinstance(item[1], ExceptionWrapper):
            super()._on_queue_feeder_error(error, item)
        else:
            number, _ = item
            reason = ExceptionWrapper((type(error), error, error.__traceback__), where='of a DataLoader worker')
            self.put((number, reason))


def loader_context():
    """The multiprocessing context in use, with a :class:`BatchQueue` as its queue."""
    context = type(multiprocessing.get_context())

    class Context(context):
        def Queue(self, maxsize=0):
            return BatchQueue(maxsize, ctx=self.get_context())
    return Context()


@contextlib.contextmanager
def block_signals():
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
        threading.Thread(target=exit_with_parent, args=(multiprocessing.parent_process(), os.getppid()), daemon=True).start()
    elif hasattr(signal, 'pthread_sigmask'):     # macOS cannot tell whose signal it is; PyTorch's own handler leaves
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def exit_with_parent(parent, forked_by):
    """End this process once ``parent`` asks for it or is gone; ``forked_by`` is the number of who forked it."""
    while parent.is_alive() and os.getppid() == forked_by:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_POLL_SECONDS)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)

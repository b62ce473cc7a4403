"""Data loader workers that ignore signals to their process group and always exit with their parent process."""
import contextlib
import functools
import multiprocessing.connection
import multiprocessing.queues
import multiprocessing.util
import os
import signal
import threading

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from utils.errors import UserError, explain_worker_error

SIGNALS = {signal.SIGINT, signal.SIGTERM}
PARENT_POLL_SECONDS = 1.0   # between a worker's checks that its parent is alive
TERMINATE_SECONDS = 0.2     # between signals to workers that have not ended
EXIT_SECONDS = 5            # until a worker that has disconnected has exited
POLL_SECONDS = 1            # between calls of on_wait while the loader waits for a batch
# Until a batch counts as lost. Known causes are reported at once, so this limit is for a worker that hangs. A network
# file system can hang for minutes and recover; other ranks wait for an hour (utils.comm.COLLECTIVE_TIMEOUT).
MAX_WAIT_SECONDS = 1800


class Loader(DataLoader):
    """A DataLoader with bounded waiting, whose workers survive signals, even before :func:`start_worker` has run.

    Iterating raises :class:`~utils.errors.UserError` if a worker died, cannot send its batch, or sends none for half an
    hour.

    Attributes:
        on_wait: a function that is called each second while the loader waits for a batch. It may raise.
    """

    def __init__(self, dataset, *args, num_workers=0, **settings):
        if num_workers:
            settings = {'timeout': MAX_WAIT_SECONDS, 'multiprocessing_context': loader_context(), **settings}
        self.on_wait = lambda: None
        super().__init__(dataset, *args, num_workers=num_workers, **settings)

    def __iter__(self):
        if self.num_workers:
            terminate_at_exit(os.getpid())
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
            with explain_loader_errors():
                return self.wait_for_batch()
        finally:
            self.iterator._timeout = self.loader.timeout    # the start of the next epoch also waits for workers

    def wait_for_batch(self):
        for _ in range(MAX_WAIT_SECONDS // POLL_SECONDS):
            with contextlib.suppress(BatchNotReadyError):
                return self.get_batch()
            try:
                self.loader.on_wait()
            except BaseException:
                self.terminate_workers()
                raise
        self.terminate_workers()
        raise UserError(f'the {self.loader.num_workers} data loader workers sent no batch for {MAX_WAIT_SECONDS} s: '
                        'the disk or network file system of --root_dir may hang; --num_workers 0 reads without workers '
                        'and shows the path')

    def get_batch(self):
        """Return the next batch. If a worker died, raise PyTorch's error with the signal that killed the worker."""
        try:
            return next(self.iterator)
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith('DataLoader timed out'):
                raise BatchNotReadyError from None
            self.ignore_further_exits()
            workers = self.iterator._workers
            if isinstance(error, (EOFError, ConnectionError)):      # a dying worker disconnects before it has exited
                multiprocessing.connection.wait([worker.sentinel for worker in workers], EXIT_SECONDS)
            killed = [worker for worker in workers if (worker.exitcode or 0) < 0]
            if not killed:
                raise
            self.terminate_workers()
            raise RuntimeError(f'DataLoader worker (pid {killed[0].pid}) is killed by signal: '
                               f'{signal.strsignal(-killed[0].exitcode)}') from None

    def ignore_further_exits(self):
        """Stop PyTorch's SIGCHLD handler. If another worker died, it would raise in whatever this process does then."""
        if self.iterator._worker_pids_set:
            _remove_worker_pids(id(self.iterator))
            self.iterator._worker_pids_set = False

    def terminate_workers(self):
        """Terminate workers that may hang. PyTorch would wait five seconds for each."""
        for worker in self.iterator._workers:
            worker.terminate()


class BatchNotReadyError(Exception):
    """The next batch is not ready yet. The caller can ask again."""


@contextlib.contextmanager
def explain_loader_errors():
    """Convert PyTorch's errors about workers to :class:`UserError`."""
    try:
        yield
    except (RuntimeError, OSError) as error:
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
    """The current multiprocessing context, with a :class:`BatchQueue` as its queue."""
    context = type(multiprocessing.get_context())

    class Context(context):
        def Queue(self, maxsize=0):
            return BatchQueue(maxsize, ctx=self.get_context())
    return Context()


@contextlib.contextmanager
def block_signals():
    """Block signals. This process handles them after the block; processes that start in the block inherit the mask."""
    if not hasattr(signal, 'pthread_sigmask'):   # Windows
        yield
        return
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


@functools.lru_cache(maxsize=1)
def terminate_at_exit(process_id):
    """Let this process terminate its workers when it exits, before Python does. ``process_id`` is its own.

    Python sends one SIGTERM, and waits without a limit. If a scheduler's SIGTERM is still pending, the worker gets both
    as one, from the scheduler, and ignores it (:func:`exit_with_parent`).
    """
    multiprocessing.util.Finalize(None, terminate_until_ended, exitpriority=0)


def terminate_until_ended():
    """Send SIGTERM to the daemon processes of this one until each has ended."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    while workers:
        for worker in workers:
            worker.terminate()
        multiprocessing.connection.wait([worker.sentinel for worker in workers], TERMINATE_SECONDS)
        workers = [worker for worker in workers if worker.is_alive()]


def start_worker(worker):
    """Initialize a worker: ignore signals to the process group, and exit with the parent.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group. The parent needs its workers to save a checkpoint,
    and ends them afterwards. Python ends workers by SIGTERM and waits for them without a limit, so a SIGTERM from the
    parent must end the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigtimedwait'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        parent = multiprocessing.parent_process(), os.getppid()
        threading.Thread(target=exit_with_parent, args=parent, daemon=True).start()
    elif hasattr(signal, 'pthread_sigmask'):     # macOS does not say who sent a signal; PyTorch's own handler exits
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def exit_with_parent(parent, parent_pid):
    """Exit this process when ``parent`` sends SIGTERM or has exited. ``parent_pid`` is the process that forked it."""
    while parent.is_alive() and os.getppid() == parent_pid:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_POLL_SECONDS)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)

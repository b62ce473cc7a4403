"""Ctrl-C and SIGTERM during training: the run saves its state and exits, on all ranks at the same step."""
import contextlib
import functools
import logging
import os
import signal
import threading
import time

from utils import comm

logger = logging.getLogger('Pedestal.train')

STDERR = 2
STOP_NOTICE = b'\nstopping after this step; Ctrl-C again stops at once and does not save this step\n'
MAX_BATCH_WAIT = 20  # seconds from a signal until a rank that waits for a batch exits; torchrun kills after 30


class Interrupted(Exception):
    """Training stops because of a signal. The state is already saved.

    Args:
        signal_number: the number of the signal.
    """

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


class InterruptHandler:
    """Context manager that handles SIGINT and SIGTERM during training.

    The first signal only sets ``signal_number``; the training loop reads it between two steps. After Ctrl-C a line in
    the terminal says so, because a step and the end of many workers can take seconds. Inside
    :meth:`raising_immediately`, the handler raises :class:`Interrupted` instead. A second signal to a single process
    always raises. With several processes it does not: torchrun may forward the first signal again.

    Args:
        save: a function that saves the training state.

    Attributes:
        signal_number: the number of the received signal; None if there is none.
        signal_time: the ``time.monotonic()`` of the first signal.
    """

    def __init__(self, save):
        self.save = save
        self.signal_number = self.signal_time = None
        self._raises_immediately = False
        self._previous_handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, error_type, *_):
        # While several processes exit, torchrun sends more signals.
        ignores_signals = error_type and comm.get_world_size() > 1
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_IGN if ignores_signals else handler)

    def _handle(self, number, frame):
        is_repeated = self.signal_number is not None and comm.get_world_size() == 1
        self.signal_number = number
        self.signal_time = self.signal_time or time.monotonic()
        if is_repeated or self._raises_immediately:
            raise Interrupted(number)
        if number == signal.SIGINT and comm.get_world_size() == 1 and os.isatty(STDERR):
            os.write(STDERR, STOP_NOTICE)   # print() is not safe in a signal handler

    @contextlib.contextmanager
    def raising_immediately(self):
        """Let a signal raise in the middle of the ``with`` block, because nothing in it needs to be saved."""
        self._raises_immediately = True
        self.raise_if_requested()
        yield
        self._raises_immediately = False

    def is_requested(self):
        """Whether any rank received a signal, so that all ranks exit at the same step with the same status."""
        signal_number = comm.all_reduce_max(self.signal_number or 0)
        if signal_number:   # do not overwrite a signal that came during the reduction
            self.signal_number = signal_number
        return signal_number

    def raise_if_requested(self):
        """Raise Interrupted if any rank received a signal."""
        if self.is_requested():
            raise Interrupted(self.signal_number)

    def raise_while_waiting(self):
        """Raise Interrupted if a signal came while this rank waits for a batch, which may never come.

        A single process saves its state first. One of several ranks cannot, because saving needs all ranks.
        """
        if not self.signal_number:
            return
        if comm.get_world_size() == 1:
            self.save()
        elif time.monotonic() - self.signal_time < MAX_BATCH_WAIT:
            return
        raise Interrupted(self.signal_number)


@contextlib.contextmanager
def exit_if_interrupted(checkpoint_path):
    """Exit with status 130 after Ctrl-C and 143 after SIGTERM, and log how to resume the run.

    Args:
        checkpoint_path: the path of ``last.pth``.
    """
    hint = functools.partial(resume_hint, checkpoint_path)
    monitor = comm.failure_monitor()
    if monitor:
        monitor.resume_hint = hint
    try:
        yield
    except Interrupted as error:
        status = 128 + error.signal_number
    except RuntimeError as error:   # the connection to a rank that a signal stopped
        status = monitor and monitor.stop_status(error)
        if status is None:
            raise
    else:
        return
    logger.info('stopped%s', hint())
    raise SystemExit(status)


def resume_hint(checkpoint_path):
    """Return the end of a message that says how to resume the run."""
    if not os.path.isfile(checkpoint_path):
        return ' before the first checkpoint'
    program = 'python'
    if comm.get_world_size() > 1:
        program = f'torchrun --nproc_per_node {comm.get_local_world_size()}'
    return f'; resume with: {program} train.py --resume --resume_ckpt_file {checkpoint_path}'

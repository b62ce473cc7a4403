"""Ctrl-C and SIGTERM during training: the run saves its state and exits."""
import signal
import threading
import time

from utils import comm


class Interrupted(Exception):
    """Training stops because of a signal. The state is already saved."""


class InterruptHandler:
    """Context manager that handles SIGINT and SIGTERM during training.

    The first signal only sets ``signal_number``; the training loop reads it between two steps. If
    ``raise_immediately`` is set, the handler raises :class:`Interrupted` instead. A second signal to a single process
    always raises. With several processes it does not: torchrun may forward the first signal again.

    Attributes:
        signal_number: the number of the received signal; None if there is none.
        signal_time: the ``time.monotonic()`` of the first signal.
        raise_immediately: whether a signal raises in the middle of the current operation.
    """

    def __init__(self):
        self.signal_number = self.signal_time = None
        self.raise_immediately = False
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
        if is_repeated or self.raise_immediately:
            raise Interrupted

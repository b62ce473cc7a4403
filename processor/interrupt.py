"""Ctrl-C and SIGTERM: save, then leave."""
import signal
import threading
import time

from utils import comm


class Stopped(Exception):
    """A signal asks the program to leave, and everything worth keeping is on disk."""


class Interrupt:
    """While active, the first SIGINT or SIGTERM is noted in ``requested`` for the loop to act on between two steps; where
    ``at_once`` is set it raises :class:`Stopped` on the spot. A second one always does where this process is alone. With several
    processes it may be the first one again, for torchrun passes signals on."""

    def __init__(self):
        self.requested = self.requested_at = None
        self.at_once = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, error, *_):
        for number, handler in self._previous.items():    # torchrun sends more while the processes leave
            signal.signal(number, signal.SIG_IGN if error and comm.get_world_size() > 1 else handler)

    def _handle(self, number, frame):
        again, self.requested = self.requested is not None and comm.get_world_size() == 1, number
        self.requested_at = self.requested_at or time.monotonic()
        if again or self.at_once:
            raise Stopped

"""The log of a run: on the console, and in a file in the run's folder."""
import contextlib
import logging
import os
import sys

from tqdm import tqdm

from utils.commands import rename_commands
from utils.errors import UserError
from utils.terminal import escape_controls


class Formatter(logging.Formatter):
    """Escapes control characters, because names and captions come from files, and names commands as users type them."""

    def format(self, record):
        return escape_controls(rename_commands(super().format(record)))


class ConsoleHandler(logging.Handler):
    """Writes lines above a progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record))


class LogFile(logging.FileHandler):
    """A log file. If the disk is full, the console reports it once, and the program continues."""

    has_reported = False

    def handleError(self, record):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_reported:
            self.has_reported = True
            tqdm.write(f'{self.baseFilename} cannot be written ({error.strerror or error}): further lines are on the '
                       'console only')

    def close(self):
        with contextlib.suppress(OSError):      # its buffer still holds lines that it could not write
            super().close()


def setup_logger(name, save_dir, if_train, distributed_rank=0):
    """Let a logger and Pedestal's own write to the console, and to a file if ``save_dir`` is given.

    Args:
        name: the logger's name.
        save_dir: the folder of the file, '' for none. An existing file is appended to.
        if_train: whether the file is ``train_log.txt`` rather than ``test_log.txt``.
        distributed_rank: the rank of this process; only rank 0 writes.

    Returns:
        The logger.

    Raises:
        UserError: the file cannot be written.
    """
    logger, pedestal_logger = logging.getLogger(name), logging.getLogger('Pedestal')
    handlers = [logging.NullHandler()]   # without a handler, Python prints warnings itself
    if distributed_rank == 0:
        handlers.append(ConsoleHandler())
        if save_dir:
            try:
                os.makedirs(save_dir, exist_ok=True)
                file = os.path.join(save_dir, 'train_log.txt' if if_train else 'test_log.txt')
                # names of files may hold bytes that are not text
                handlers.append(LogFile(file, encoding='utf-8', errors='backslashreplace'))
            except OSError as error:
                raise UserError(f'cannot write into {save_dir}: {error.strerror}; '
                                'choose another --output_dir') from None
    for handler in handlers:
        handler.setFormatter(Formatter('%(asctime)s %(name)s %(levelname)s: %(message)s'))
    for target in {logger, pedestal_logger}:
        for old in target.handlers[:]:
            target.removeHandler(old)
            old.close()
        target.setLevel(logging.DEBUG)
        target.propagate = False
        target.handlers = list(handlers)
    return logger

"""A run's log: the console and a file in the run's folder."""
import contextlib
import logging
import os
import sys

from tqdm import tqdm

from utils.errors import UserError
from utils.terminal import escape_controls


class Formatter(logging.Formatter):
    """Lines without control characters: names and captions come from files."""

    def format(self, record):
        return escape_controls(super().format(record))


class ConsoleHandler(logging.Handler):
    """Writes lines above a progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record))


class LogFile(logging.FileHandler):
    """A log file. If it cannot be written any more (a full disk), the console says so once, and the program goes on."""

    reported = False

    def handleError(self, record):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.reported:
            self.reported = True
            tqdm.write(f'{self.baseFilename} cannot be written ({error.strerror or error}): what follows is on the console alone')

    def close(self):
        with contextlib.suppress(OSError):      # the lines that it could not write are still in its buffer
            super().close()


def setup_logger(name, save_dir, if_train, distributed_rank=0):
    """The logger ``name`` and Pedestal's own, writing to the console and to ``train_log.txt`` or ``test_log.txt`` in
    ``save_dir`` (appending; no file if it is empty). Processes other than rank 0 stay silent."""
    logger, ours = logging.getLogger(name), logging.getLogger('Pedestal')
    handlers = [logging.NullHandler()]   # without any, Python prints warnings itself
    if distributed_rank == 0:
        handlers.append(ConsoleHandler())
        if save_dir:
            try:
                os.makedirs(save_dir, exist_ok=True)
                file = os.path.join(save_dir, 'train_log.txt' if if_train else 'test_log.txt')
                handlers.append(LogFile(file, encoding='utf-8', errors='backslashreplace'))   # names may be no text
            except OSError as error:
                raise UserError(f'cannot write into {save_dir}: {error.strerror}; choose another --output_dir') from None
    for handler in handlers:
        handler.setFormatter(Formatter('%(asctime)s %(name)s %(levelname)s: %(message)s'))
    for target in {logger, ours}:
        for old in target.handlers[:]:
            target.removeHandler(old)
            old.close()
        target.setLevel(logging.DEBUG)
        target.propagate = False
        target.handlers = list(handlers)
    return logger

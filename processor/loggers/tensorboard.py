"""``--logger tensorboard``: TensorBoard events in the run's folder."""
import threading

from torch.utils.tensorboard import SummaryWriter

from processor.loggers import MetricsLogger
from utils.errors import UserError


class TensorBoardLogger(MetricsLogger):
    """TensorBoard events in the run's folder.

    Raises:
        UserError: the folder is not writable.
    """

    name = 'tensorboard'
    package = 'tensorboard'
    records = 'TensorBoard events'
    rewinds = True

    def __init__(self, folder, options, step=0, history=()):
        super().__init__(folder, options, step, history)
        self.writer, self.excepthook = None, threading.excepthook
        threading.excepthook = self._handle_thread_error
        try:
            self.writer = SummaryWriter(folder, purge_step=step + 1 if step else None)
        except OSError as error:
            self.close()
            raise UserError(f'cannot write into {folder}: {error.strerror}') from None

    def _handle_thread_error(self, args):
        """Print errors of other threads only. An error of TensorBoard's thread is raised again by its next call."""
        if not type(args.thread).__module__.startswith('tensorboard.'):
            self.excepthook(args)

    def log(self, metrics, step, epoch):
        try:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)
        except OSError:
            self.writer = None      # its thread has ended
            raise

    def close(self):
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            self.writer = None
            if threading.excepthook == self._handle_thread_error:
                threading.excepthook = self.excepthook

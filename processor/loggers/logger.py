"""The base class of all loggers."""
import os
import re

from utils.errors import UserError
from utils.iotools import atomic_write


class MetricsLogger:
    """A place where a run writes its metrics besides ``metrics.jsonl``. ``--logger <name>`` selects it.

    Only the main process has loggers. If a method raises an exception, the log has one warning, and the run continues
    without the logger. A :class:`~utils.errors.UserError` in ``__init__`` ends the program before the first step.

    Args:
        folder: the run's folder.
        options: ``{option: plain value}`` of the run.
        step: the number of training steps before the checkpoint that the run resumes from; 0 for a new run.
        history: ``[(metrics, step, epoch), ...]``, what the run has logged before that checkpoint.

    Attributes:
        name: the value of ``--logger``.
        package: the Python package that the logger imports, with the name that pip knows; '' for none.
        records: what it writes, in the plural, for the warning.
        rewinds: whether ``__init__`` removes what an earlier process logged after the checkpoint. If not, :meth:`log`
            does not get the metrics again that a resumed run computes a second time.

    Example:
        >>> class Printer(MetricsLogger):
        ...     name = 'printer'
        ...
        ...     def log(self, metrics, step, epoch):
        ...         print(step, metrics)
        >>> Printer('logs/run', {}).log({'train/loss': 2.5}, step=100, epoch=1)
        100 {'train/loss': 2.5}
    """

    name = ''
    package = ''
    records = 'the records of a logger'
    rewinds = False

    def __init__(self, folder, options, step=0, history=()):
        self.folder, self.options = folder, options

    def log(self, metrics, step, epoch):
        """Write metrics.

        Args:
            metrics: ``{kind/name: number}``, such as ``train/sdm_loss``, ``epoch/loss``, ``evaluation/R1``.
            step: the number of training steps of the run so far.
            epoch: the epoch, from 1.
        """
        raise NotImplementedError

    def log_history(self, history):
        """Log what the run has logged before, if ``--logger`` names this logger for the first time."""
        self.rewinds = True
        for metrics, step, epoch in history:
            self.log(metrics, step, epoch)

    def close(self):
        """Write what is left and release files and connections. It is the last call."""

    @property
    def run_name(self):
        """The name of the run's folder."""
        return os.path.basename(os.path.abspath(self.folder))

    @property
    def run_id_path(self):
        return os.path.join(self.folder, f'{self.name}_run_id.txt')

    def read_run_id(self):
        """Read the id that a resumed run has at a service; '' if the run is new there.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with open(self.run_id_path, encoding='utf-8') as file:
                run_id = file.read().strip()
        except FileNotFoundError:
            return ''
        except (OSError, ValueError):
            run_id = ''
        if not re.fullmatch(r'[\w-]{1,64}', run_id):
            raise UserError(f'{self.run_id_path} has no id of a run: delete it, and --logger {self.name} starts a new '
                            'one')
        return run_id

    def write_run_id(self, run_id):
        """Store the id that the run has at a service, for a resumed run."""
        with atomic_write(self.run_id_path) as file:
            file.write(f'{run_id}\n')

"""``--logger csv``: a table of all metrics in the run's folder."""
import os

from processor.loggers import MetricsLogger
from utils.csv_files import write_csv
from utils.iotools import atomic_write


class CsvLogger(MetricsLogger):
    """``metrics.csv`` in the run's folder, one row per number, with the columns step, epoch, metric and value.

    The rows of all kinds of metrics have the same columns, so that a row is appended without a change of those before.
    A resumed run writes the file again from its history, because a kill may cut off the last row.
    """

    name = 'csv'
    records = 'rows of metrics.csv'
    rewinds = True

    def __init__(self, folder, options, step=0, history=()):
        super().__init__(folder, options, step, history)
        self.path = os.path.join(folder, 'metrics.csv')
        with atomic_write(self.path) as file:
            write_csv(file, [('step', 'epoch', 'metric', 'value')])
            for metrics, logged_step, epoch in history:
                write_csv(file, build_rows(metrics, logged_step, epoch))

    def log(self, metrics, step, epoch):
        with open(self.path, 'a', encoding='utf-8', newline='') as file:
            write_csv(file, build_rows(metrics, step, epoch))


def build_rows(metrics, step, epoch):
    """List the rows of one call of :meth:`CsvLogger.log`."""
    return [(step, epoch, name, value) for name, value in metrics.items()]

"""Reports of a training run: log lines, ``metrics.jsonl``, loggers, and a progress bar."""
import contextlib
import logging
import time

from tqdm import tqdm

from processor.interrupt import Interrupted
from processor.loggers import registry
from processor.results import Record, append_record, discard_records_after, metrics_log_path, read_metrics_log
from utils import comm
from utils.errors import UserError
from utils.run_config import as_dict

logger = logging.getLogger('Pedestal.train')


def format_log_line(*fields, eta=None):
    """Join the facts of a log line. Every INFO line of a training run has this form.

    Args:
        fields: texts, and dictionaries ``{name: number}``.
        eta: remaining seconds of the run.

    >>> metrics = {'loss': 12.3, 'lr': 1e-5, 'samples_per_second': 812.4}
    >>> format_log_line('epoch 3/60', metrics, eta=7500)
    'epoch 3/60 | loss 12.3 | lr 1.0e-05 | 812 samples/s | eta 2 h 05 min'
    """
    facts = []
    for field in fields:
        facts += [field] if isinstance(field, str) else [format_metric(name, value) for name, value in field.items()]
    if eta is not None:
        facts.append(f'eta {format_duration(eta)}')
    return ' | '.join(facts)


def format_metric(name, value):
    """Format a number with its name or unit.

    >>> format_metric('sdm_loss', 3.14159), format_metric('lr', 1e-5), format_metric('samples_per_second', 2.345)
    ('sdm_loss 3.142', 'lr 1.0e-05', '2.3 samples/s')
    """
    if name == 'samples_per_second':
        return f'{value:.0f} samples/s' if value >= 10 else f'{value:.1f} samples/s'
    return f'{name} {value:.1e}' if name == 'lr' else f'{name} {value:.4g}'


def format_duration(seconds):
    """Format a duration.

    >>> format_duration(7500), format_duration(430), format_duration(40)
    ('2 h 05 min', '7 min', '40 s')
    """
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f'{minutes // 60} h {minutes % 60:02d} min'
    return f'{minutes} min' if seconds >= 90 else f'{seconds:.0f} s'


def log_skipped_images(paths):
    """Log the images of a batch that cannot be read on any rank.

    Args:
        paths: the images that this rank cannot read.

    Returns:
        The number of these images of all ranks.
    """
    if not comm.all_reduce_max(len(paths)):
        return 0
    paths = [path for paths_of_rank in comm.all_gather_object(paths) for path in paths_of_rank]
    for path in paths:
        logger.warning('skipped: image %s cannot be read', path)
    return len(paths)


class RunningMeans:
    """Running means of losses and other metrics, weighted by batch size."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def update(self, metrics, count):
        """Add the metrics ``{name: number}`` of a step with ``count`` samples."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
        self.count += count

    def compute(self):
        """Return ``{name: mean}``."""
        return {name: value / self.count for name, value in self.sums.items()}

    def state_dict(self):
        return {'sums': dict(self.sums), 'count': self.count}

    def load_state_dict(self, state):
        self.sums, self.count = dict(state['sums']), state['count']


class MetricsLog:
    """The ``metrics.jsonl`` in a run's folder, and the loggers of ``--logger``.

    A resumed run first discards the lines that follow its checkpoint, so that each step has one line. It also discards
    the evaluation that it repeats: a kill may come between an evaluation and the checkpoint after it.

    Args:
        folder: the run's folder.
        step: the number of training steps before the checkpoint.
        pending_evaluation: the epoch that is evaluated next; None if no evaluation is due.
        loggers: names of the loggers.
        options: ``{option: plain value}`` of the run, for the loggers.

    Raises:
        UserError: the folder is not writable, or metrics.jsonl is not a file.
    """

    def __init__(self, folder, step=0, pending_evaluation=None, loggers=('tensorboard',), options=None):
        self.folder, self.loggers, self.failed_loggers = folder, [], []
        self.logged = {record[:3] for record in read_metrics_log(folder)}       # by an earlier process
        foreign_count = discard_records_after(folder, step, pending_evaluation)
        if foreign_count:
            logger.warning('%s: %d lines that this program did not write are removed', metrics_log_path(folder),
                           foreign_count)
        history = [(record.tagged_metrics, record.step, record.epoch) for record in read_metrics_log(folder)]
        try:
            for name in loggers:
                self.open_logger(registry()[name], options or {}, step, history)
        except BaseException:
            self.close()
            raise

    def open_logger(self, logger_class, *arguments):
        try:
            self.loggers.append(logger_class(self.folder, *arguments))
        except UserError:
            raise
        except Exception as error:
            warn_of_failure(logger_class, error)

    def write(self, kind, epoch, step, values):
        """Write a :class:`~processor.results.Record` of these fields, and give its numbers to the loggers."""
        record = Record(kind, epoch, step, values)
        append_record(self.folder, record)
        is_repeated = record[:3] in self.logged
        for metrics_logger in list(self.loggers):
            if metrics_logger.rewinds or not is_repeated:
                self.call(metrics_logger, metrics_logger.log, record.tagged_metrics, step, epoch)

    def call(self, metrics_logger, method, *arguments):
        """Call a method of a logger. If it fails, warn, and do not call :meth:`log` again."""
        try:
            method(*arguments)
        except Interrupted:
            raise
        except Exception as error:      # of a library or of a user's own logger: it must not end the training
            self.loggers.remove(metrics_logger)
            self.failed_loggers.append(metrics_logger)
            warn_of_failure(metrics_logger, error)

    def close(self):
        for metrics_logger in list(self.loggers):
            self.call(metrics_logger, metrics_logger.close)
        for metrics_logger in self.failed_loggers:
            with contextlib.suppress(Exception):
                metrics_logger.close()
        self.loggers, self.failed_loggers = [], []


def warn_of_failure(metrics_logger, error):
    """Warn that the run continues without a logger, an instance or a class, because of an error."""
    reason = getattr(error, 'strerror', None) or next(iter(str(error).splitlines()), '') or type(error).__name__
    logger.warning('%s cannot be written (%s): the run continues without them; metrics.jsonl has all metrics',
                   metrics_logger.records, reason)


class NullMetricsLog:
    """A :class:`MetricsLog` that writes nothing. Ranks other than the main process have it."""

    def write(self, kind, epoch, step, values):
        pass

    def close(self):
        pass


@contextlib.contextmanager
def open_metrics_log(args, step, pending_evaluation):
    """Open the :class:`MetricsLog` of a run on the main process, and a :class:`NullMetricsLog` on other ranks."""
    metrics_log = NullMetricsLog()
    if comm.is_main_process():
        metrics_log = MetricsLog(args.output_dir, step, pending_evaluation, args.logger, as_dict(args))
    with contextlib.closing(metrics_log):
        yield metrics_log


class ProgressBar:
    """The progress bar of an epoch on a terminal: losses, learning rate, samples per second, remaining time.

    Args:
        epoch: the epoch, from 1.
        epochs: the number of epochs.
        steps: the number of steps of the epoch.
        first_step: the number of steps that were done before, if the epoch is resumed.
        title: a text after the epoch.
    """

    def __init__(self, epoch, epochs, steps, first_step=0, title=''):
        self.bar = tqdm(total=steps, initial=first_step, desc=f'epoch {epoch}/{epochs} {title}'.strip(), unit='step',
                        disable=None if comm.is_main_process() else True, dynamic_ncols=True, leave=False)
        self.start_time, self.steps, self.samples = time.perf_counter(), 0, 0

    def update(self, samples):
        """Count a step with a number of samples."""
        self.steps += 1
        self.samples += samples
        self.bar.update()

    @property
    def seconds(self):
        """Seconds since the bar was created."""
        return max(time.perf_counter() - self.start_time, 1e-9)

    @property
    def samples_per_second(self):
        return self.samples / self.seconds

    @property
    def seconds_per_step(self):
        return self.seconds / max(self.steps, 1)

    def show_metrics(self, metrics, lr):
        """Show the losses among the metrics ``{name: number}``."""
        losses = ' '.join(f"{name.removesuffix('_loss')} {value:.3f}"
                          for name, value in metrics.items() if name.endswith('loss'))
        self.bar.set_postfix_str(f'{losses} lr {lr:.1e} {self.samples_per_second:.0f} samples/s')

    def close(self):
        self.bar.close()

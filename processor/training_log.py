"""The reports of a training run: lines of ``train_log.txt`` and records of ``metrics.jsonl``."""
import logging

from processor.history import format_summary, summarize_evaluations
from processor.progress import format_log_line
from processor.results import read_evaluations

logger = logging.getLogger('Pedestal.train')


class TrainingLog:
    """The reports of a training run.

    Args:
        args: the options.
        state: the :class:`~processor.run_state.RunState`, which is read at each report.
        loader: the loader of training batches, whose length can change from epoch to epoch.
        metrics_log: the :class:`~processor.progress.MetricsLog` of the run.

    Attributes:
        seconds_per_step, seconds_per_evaluation: the latest measurements, for the remaining time.
    """

    def __init__(self, args, state, loader, metrics_log):
        self.args, self.state, self.loader, self.metrics_log = args, state, loader, metrics_log
        self.seconds_per_step = self.seconds_per_evaluation = 0.0

    def log_step(self, lr, samples_per_second):
        """Report the means of the epoch so far."""
        state = self.state
        values = {**state.means.compute(), 'lr': lr, 'samples_per_second': samples_per_second}
        self.metrics_log.write('train', state.epoch, state.total_steps, values)
        position = f'epoch {state.epoch}/{self.args.num_epoch} step {state.step}/{len(self.loader)}'
        logger.info(format_log_line(position, values))

    def log_epoch(self, lr, samples_per_second):
        """Report the means of a finished epoch."""
        state = self.state
        values = {**state.means.compute(), 'lr': lr, 'samples_per_second': samples_per_second}
        self.metrics_log.write('epoch', state.epoch, state.total_steps, values)
        remaining = remaining_seconds(state.epoch, self.args.num_epoch, self.args.eval_period,
                                      len(self.loader) * self.seconds_per_step, self.seconds_per_evaluation)
        logger.info(format_log_line(f'epoch {state.epoch}/{self.args.num_epoch}', values, eta=remaining))
        if state.skipped_images:
            logger.warning('epoch %d: %d unreadable images skipped', state.epoch, state.skipped_images)

    def write_evaluation(self, metrics, other_metrics):
        """Write the metrics of an evaluation into ``metrics.jsonl``.

        Args:
            metrics: ``{name: value}`` of the split that selects the best epoch.
            other_metrics: ``{dataset: {name: value}}`` of other datasets.
        """
        epoch, step, split = self.state.pending_evaluation, self.state.total_steps, {'split': self.args.val_dataset}
        self.metrics_log.write('evaluation', epoch, step, {**metrics, **split})
        for name, values in other_metrics.items():
            self.metrics_log.write(f'evaluation/{name}', epoch, step, {**values, **split})

    def log_evaluation(self, value):
        """Log the metric that selects the best epoch, and the best so far."""
        state = self.state
        logger.info(format_log_line(f'epoch {state.pending_evaluation}', f'{state.measure.label} {value:.3f}',
                                    f'best {state.best_value:.3f} at epoch {state.best["epoch"]}'))

    def log_early_stop(self):
        """Log why the run ends before ``--num_epoch``."""
        count = self.args.early_stop
        epochs = f"{count} epoch{'s' if count > 1 else ''}"
        logger.info(format_log_line(f'stopped early after epoch {self.state.epoch - 1}',
                                    f'no better evaluation in {epochs} (--early_stop)'))

    def log_summary(self, best_path):
        """Log the best epoch, its checkpoint and the last evaluations at the end of the run."""
        if not self.state.best['epoch']:
            return
        logger.info(format_log_line('done', self.state.format_best(), f'{self.args.val_dataset} split', best_path))
        summary = summarize_evaluations(read_evaluations(self.args.output_dir))
        if summary:
            logger.info('%s', format_summary(summary))


def remaining_seconds(epoch, epochs, eval_period, seconds_per_epoch, seconds_per_evaluation):
    """Estimate the seconds of the epochs and evaluations after an epoch, with the evaluation that is due.

    >>> remaining_seconds(4, epochs=10, eval_period=2, seconds_per_epoch=60.0, seconds_per_evaluation=60.0)
    600.0
    """
    evaluations = 1 + epochs // eval_period - epoch // eval_period
    return (epochs - epoch) * seconds_per_epoch + evaluations * seconds_per_evaluation

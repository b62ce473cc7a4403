"""The state of a training run: the position, the metrics and the best evaluation, saved in ``last.pth`` and resumed."""
import logging
import os

from processor.progress import RunningMeans, format_log_line
from utils import comm
from utils.checkpoint import is_reference_checkpoint
from utils.errors import UserError
from utils.seeding import get_random_states, restore_random_states
from utils.training_state import RUN_ENTRIES

logger = logging.getLogger('Pedestal.train')


class RunState:
    """The state of a training run.

    Args:
        measure: the :class:`~utils.measures.Measure` that selects the best epoch.
        epoch: the first epoch to train, from 1.

    Attributes:
        epoch, step, total_steps: the current epoch, its finished steps, and the finished steps of the run.
        pending_evaluation: the epoch that is evaluated next; None if no evaluation is due.
        best: ``{measure's key: value, 'epoch': number}`` of the best evaluation.
        means: the means of the epoch's metrics.
        skipped_images: the number of unreadable images of the epoch.
    """

    def __init__(self, measure, epoch):
        self.measure, self.epoch, self.step, self.total_steps = measure, epoch, 0, 0
        self.pending_evaluation = None
        self.best = {measure.key: -1.0, 'epoch': 0}
        self.means, self.skipped_images = RunningMeans(), 0

    @property
    def best_value(self):
        return self.best[self.measure.key]

    def format_best(self):
        return f'best {self.measure.label} {self.best_value:.3f} at epoch {self.best["epoch"]}'

    def start_next_epoch(self):
        self.epoch, self.step, self.means, self.skipped_images = self.epoch + 1, 0, RunningMeans(), 0

    def save(self, checkpointer, clean_pairs, pair_states, scaler, **entries):
        """Write ``last.pth``.

        Args:
            checkpointer: the :class:`~utils.checkpoint.Checkpointer` of the run's folder.
            clean_pairs: the :class:`~processor.clean_pairs.CleanPairs` of the run.
            pair_states: the :class:`~processor.pair_states.PairStates` of the run.
            scaler: the gradient scaler of the training step.
            entries: further entries.
        """
        checkpointer.save(
            'last', training_state=True, epoch=self.epoch, step=self.step, total_steps=self.total_steps, best=self.best,
            unevaluated=self.pending_evaluation, means=self.means.state_dict(), skipped=self.skipped_images,
            clean=clean_pairs.weights, pair_states=pair_states.state_dict(), scaler=scaler.state_dict(),
            random_states=get_random_states(), **entries)
        comm.synchronize()     # no rank exits while the main process writes

    def load(self, checkpointer, clean_pairs, pair_states, scaler, steps):
        """Continue from the checkpoint that ``checkpointer.resume`` read, if any.

        A checkpoint of a reference implementation has only an epoch. Its model is evaluated before the first step.

        Args:
            checkpointer, clean_pairs, pair_states, scaler: see :meth:`save`.
            steps: the number of steps of an epoch.

        Raises:
            UserError: the state is incomplete or does not fit the training set.
        """
        entries = checkpointer.resumed
        if not entries:
            return
        if is_reference_checkpoint(entries):
            self.pending_evaluation = self.epoch - 1 or None
            logger.info(format_log_line(f'resumed after epoch {self.epoch - 1} of a reference implementation',
                                        'evaluated first'))
            return
        check_entries(entries, steps)
        self.step, self.total_steps = entries['step'], entries['total_steps']
        self.pending_evaluation, best = entries['unevaluated'], entries['best']
        self.best = {self.measure.key: self.measure.value_in(best, -1.0), 'epoch': best['epoch']}
        self.skipped_images, clean_pairs.weights = entries.get('skipped', 0), entries.get('clean')
        pair_states.load_state_dict(entries.get('pair_states', {}))
        self.means.load_state_dict(entries['means'])
        if entries.get('scaler'):
            scaler.load_state_dict(entries['scaler'])
        restore_random_states(entries['random_states'])
        self.handle_missing_best(checkpointer.path('best'))
        best = self.format_best() if self.best['epoch'] else 'not evaluated yet'
        logger.info(format_log_line(f'resumed at epoch {self.epoch} step {self.step}/{steps}', best))

    def handle_missing_best(self, path):
        """Restart the search for the best epoch if best.pth is missing, because its weights cannot be restored."""
        if not self.best['epoch'] or comm.broadcast_object(os.path.isfile(path)):
            return
        logger.warning('%s is missing (epoch %d, %s %.3f): the best of the next evaluations becomes best.pth',
                       path, self.best['epoch'], self.measure.label, self.best_value)
        self.best = {self.measure.key: -1.0, 'epoch': 0}
        if not self.step:
            self.pending_evaluation = self.epoch - 1 or None


def check_entries(entries, steps):
    """Raise :class:`UserError` unless a checkpoint has each entry of a run, at a step that an epoch has."""
    missing = [name for name in RUN_ENTRIES if name not in entries]
    if missing:
        raise UserError(f"{', '.join(missing)}: missing from the checkpoint, which another program wrote: start a "
                        'new run from its weights with --init_from')
    if entries['step'] > steps:
        raise UserError(f"the checkpoint is {entries['step']} steps into an epoch, but an epoch has only "
                        f'{steps} steps: resume with the dataset and the batch size of the run')

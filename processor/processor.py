"""The training loop and the inference loop."""
import logging
import math
import os
import time

import torch

from model.build import total_loss
from model.heads import HasSchedule
from processor.clean_pairs import CleanPairs
from processor.evaluation import Evaluator
from processor.history import format_summary, summarize_evaluations
from processor.interrupt import Interrupted, InterruptHandler
from processor.progress import MetricsLog, NullMetricsLog, ProgressBar, RunningMeans, format_log_line
from processor.results import read_evaluations
from processor.build import build_step
from utils import comm
from utils.batch_shard import sync_batch_shards
from utils.checkpoint import is_reference_checkpoint
from utils.errors import UserError
from utils.measures import RANK1
from utils.run_config import complete
from utils.seeding import derive_seed, get_random_states, restore_random_states, seed_all
from utils.training_state import RUN_ENTRIES

logger = logging.getLogger('Pedestal.train')

MAX_BATCH_WAIT = 20  # seconds from a signal until a rank that waits for a batch exits; torchrun kills after 30
FLUSH_PERIOD = 20    # steps between reads of the losses on a GPU; each read waits for the GPU


def do_train(start_epoch, args, model, train_loader, evaluator, optimizer, scheduler, checkpointer):
    """Train from ``start_epoch`` to ``args.num_epoch`` and write ``best.pth`` and ``last.pth``.

    The model is evaluated every ``args.eval_period`` epochs and after the last one.

    Args:
        start_epoch: 1 for a new run, ``checkpointer.resume(...)['epoch']`` for a resumed one.
        args: the options (:func:`utils.options.get_args`).
        model: a :class:`~model.build.RetrievalModel` on its device.
        train_loader: the loader of training batches.
        evaluator: ``evaluator.eval(model)`` returns the metric that selects the best epoch, in percent.
        optimizer: the optimizer of the model's parameters.
        scheduler: the learning rate schedule.
        checkpointer: the :class:`~utils.checkpoint.Checkpointer` of the run's folder.

    Raises:
        UserError: a loss is not finite, or a checkpoint cannot be written.
        SystemExit: with status 130 after Ctrl-C or 143 after SIGTERM, after the state is saved.
    """
    Trainer(complete(args), model, train_loader, evaluator, optimizer, scheduler, checkpointer).run(start_epoch)


class Trainer:
    """One call of :func:`do_train`. All ranks call the same methods at the same time; the main process writes files.

    Attributes:
        epoch, step, total_steps: the current epoch, its finished steps, and the finished steps of the run.
        pending_evaluation: the epoch that is evaluated next; None if no evaluation is due.
        measure: the :class:`~utils.measures.Measure` that selects the best epoch.
        best: ``{measure's key: value, 'epoch': number}`` of the best evaluation.
        pending_metrics: ``(step, image ids, sample count, names, values)`` of steps whose results are still on
            the device.
        skipped_images: the number of unreadable images of the current epoch.
    """

    def __init__(self, args, model, train_loader, evaluator, optimizer, scheduler, checkpointer):
        self.args, self.model, self.loader, self.evaluator = args, model, train_loader, evaluator
        self.optimizer, self.scheduler, self.checkpointer = optimizer, scheduler, checkpointer
        self.training_step = build_step(model, optimizer, args.micro_batch, args.shard)
        self.clean_pairs = CleanPairs(model, train_loader, args.seed)
        self.flush_period = FLUSH_PERIOD if next(model.parameters()).device.type != 'cpu' else 1
        self.epoch, self.step, self.total_steps, self.pending_evaluation = 1, 0, 0, None
        self.measure = getattr(evaluator, 'measure', RANK1)   # an evaluator of a user's own script may lack it
        self.best = self.initial_best()
        self.means = RunningMeans()
        self.pending_metrics = []
        self.skipped_images = 0
        self.seconds_per_step = self.seconds_per_evaluation = 0.0

    def initial_best(self):
        """Return the value of ``best`` before the first evaluation."""
        return {self.measure.key: -1.0, 'epoch': 0}

    def format_best(self):
        return f'best {self.measure.label} {self.best[self.measure.key]:.3f} at epoch {self.best["epoch"]}'

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, start_epoch):
        self.epoch = start_epoch
        self.load_training_state(self.checkpointer.resumed)
        if comm.failure_monitor():
            comm.failure_monitor().resume_hint = self.resume_hint
        self.metrics_log = NullMetricsLog()
        if comm.is_main_process():
            self.metrics_log = MetricsLog(self.args.output_dir, self.total_steps, self.pending_evaluation)
        try:
            with InterruptHandler() as self.interrupt:
                self.loader.on_wait = self.check_interrupt_while_waiting
                if not self.total_steps:
                    self.save_last()  # a full disk shows now, and an early interrupt can be resumed
                self.evaluate()
                while self.epoch <= self.args.num_epoch:
                    self.train_epoch()
                    self.evaluate()
            if self.best['epoch']:
                logger.info(format_log_line('done', self.format_best(), f'{self.args.val_dataset} split',
                                            self.checkpointer.path('best')))
                summary = summarize_evaluations(read_evaluations(self.args.output_dir))
                if summary:
                    logger.info('%s', format_summary(summary))
        except Interrupted:
            self.exit(128 + (self.interrupt.signal_number or 2))
        except RuntimeError as error:
            status = comm.failure_monitor() and comm.failure_monitor().stop_status(error)
            if status is None:
                raise
            self.exit(status)
        finally:
            self.metrics_log.close()

    def exit(self, status):
        logger.info('stopped%s', self.resume_hint())
        raise SystemExit(status)

    def resume_hint(self):
        """Return the end of a message that says how to resume the run."""
        path = self.checkpointer.path('last')
        if not os.path.isfile(path):
            return ' before the first checkpoint'
        program = 'python'
        if comm.get_world_size() > 1:
            program = f'torchrun --nproc_per_node {comm.get_local_world_size()}'
        return f'; resume with: {program} train.py --resume --resume_ckpt_file {path}'

    def train_epoch(self):
        if not self.step:
            with self.training_step.unsharded():
                self.clean_pairs.select(self.epoch, self.args.num_epoch, self.raise_if_interrupted)
        self.model.train()
        if hasattr(self.loader.batch_sampler, 'set_epoch'):
            self.loader.batch_sampler.set_epoch(self.epoch, self.step)
        first_step = self.step
        bar = ProgressBar(self.epoch, self.args.num_epoch, len(self.loader), first_step)
        for batch in self.loader:
            self.log_skipped_images(batch.pop('skipped', ()))
            shard, batch = sync_batch_shards(batch)
            self.step += 1
            self.total_steps += 1
            count = shard.global_size(batch['pids']) if shard else 0
            if shard:
                self.train_step(batch, shard)
            bar.update(count)
            self.report_step(bar)
            self.save_if_due()
        bar.close()
        self.flush_metrics()
        self.seconds_per_step = bar.seconds / max(self.step - first_step, 1)
        self.finish_epoch(bar.samples_per_second)

    def train_step(self, batch, shard):
        # The seed depends only on the position in the run, so that a resumed run repeats the step.
        seed_all(derive_seed(self.args.seed, self.epoch, self.step))
        self.scheduler.before_step(self.epoch, self.step, len(self.loader))
        for head in self.model.heads_with(HasSchedule):
            head.before_step(self.epoch, self.step, len(self.loader))
        results = self.training_step(self.clean_pairs.add_weights(batch), shard)
        metrics = {name: value for name, value in results.items() if name != 'temperature'}
        metrics = {'loss': total_loss(results), **metrics}
        values = torch.stack([value.float() for value in metrics.values()])   # stays on the device until flush_metrics
        count = shard.global_size(batch['pids'])
        self.pending_metrics.append((self.step, batch['image_ids'], count, tuple(metrics), values))

    def finish_epoch(self, samples_per_second):
        """Log the epoch's means, step the schedule, and save a checkpoint at the start of the next epoch."""
        if not self.means.count:
            raise UserError('no training image can be read; run python -m datasets.check to list the broken ones')
        values = {**self.means.compute(), 'lr': self.lr, 'samples_per_second': samples_per_second}
        self.metrics_log.write('epoch', self.epoch, self.total_steps, values)
        logger.info(format_log_line(f'epoch {self.epoch}/{self.args.num_epoch}', values, eta=self.remaining_seconds()))
        if self.skipped_images:
            logger.warning('epoch %d: %d unreadable images skipped', self.epoch, self.skipped_images)
        self.scheduler.step()
        if self.epoch % self.args.eval_period == 0 or self.epoch == self.args.num_epoch:
            self.pending_evaluation = self.epoch
        self.epoch, self.step, self.means, self.skipped_images = self.epoch + 1, 0, RunningMeans(), 0
        self.save_last()
        finished = self.epoch - 1
        if self.args.save_period and finished % self.args.save_period == 0:
            self.checkpointer.save(f'epoch_{finished}', epoch=finished, val_dataset=None)  # no split selected it

    def remaining_seconds(self):
        """Estimate the seconds of the remaining epochs and evaluations, with the evaluation that is due."""
        epochs, period = self.args.num_epoch - self.epoch, self.args.eval_period
        evaluations = 1 + self.args.num_epoch // period - self.epoch // period
        return epochs * len(self.loader) * self.seconds_per_step + evaluations * self.seconds_per_evaluation

    def evaluate(self):
        """Run the evaluation that is due. A signal may interrupt it at any time; a resumed run repeats it."""
        if self.pending_evaluation is None:
            return
        epoch = self.pending_evaluation
        self.interrupt.raise_immediately = True
        self.raise_if_interrupted()
        start = time.perf_counter()
        with self.training_step.unsharded():
            figure = self.evaluator.eval(self.model)
        self.seconds_per_evaluation = time.perf_counter() - start
        self.interrupt.raise_immediately = False
        metrics = dict(getattr(self.evaluator, 'metrics', None) or {self.measure.key: float(figure)})
        split = {'split': self.args.val_dataset}
        self.metrics_log.write('evaluation', epoch, self.total_steps, {**metrics, **split})
        for name, other_metrics in getattr(self.evaluator, 'other_metrics', {}).items():
            self.metrics_log.write(f'evaluation/{name}', epoch, self.total_steps, {**other_metrics, **split})
        if figure > self.best[self.measure.key]:
            self.best = {self.measure.key: float(figure), 'epoch': epoch}
            self.checkpointer.save('best', epoch=epoch, metrics=metrics, val_dataset=self.args.val_dataset,
                                   noise=getattr(self.loader.dataset, 'noise', None))
        best = f'best {self.best[self.measure.key]:.3f} at epoch {self.best["epoch"]}'
        logger.info(format_log_line(f'epoch {epoch}', f'{self.measure.label} {figure:.3f}', best))
        self.pending_evaluation = None
        self.save_last()

    # -- reports -------------------------------------------------------------------------------------------------------

    @property
    def lr(self):
        """The base learning rate of this epoch."""
        return self.scheduler.compute_lr(self.scheduler.last_epoch, self.args.lr)

    def report_step(self, bar):
        if self.step % self.flush_period == 0:
            bar.show_metrics(self.flush_metrics(), self.lr)
        if self.step % self.args.log_period == 0:
            self.flush_metrics()
            values = {**self.means.compute(), 'lr': self.lr, 'samples_per_second': bar.samples_per_second}
            self.metrics_log.write('train', self.epoch, self.total_steps, values)
            position = f'epoch {self.epoch}/{self.args.num_epoch} step {self.step}/{len(self.loader)}'
            logger.info(format_log_line(position, values))

    def log_skipped_images(self, paths):
        if not comm.all_reduce_max(len(paths)):
            return
        paths = [path for paths_of_rank in comm.all_gather_object(paths) for path in paths_of_rank]
        for path in paths:
            logger.warning('skipped: image %s cannot be read', path)
        self.skipped_images += len(paths)

    def flush_metrics(self):
        """Read the pending metrics from the device and add them to the means.

        Returns:
            The metrics of the latest step; empty if none are pending.

        Raises:
            UserError: one of them is not finite.
        """
        if not self.pending_metrics:
            return {}
        numbers = torch.cat([values for *_, values in self.pending_metrics]).tolist()   # waits for the device, once
        for step, image_ids, count, names, _ in self.pending_metrics:
            latest, numbers = dict(zip(names, numbers)), numbers[len(names):]
            if not all(map(math.isfinite, latest.values())):
                self.fail_on_non_finite(step, image_ids, latest)
            self.means.update(latest, count)
        self.pending_metrics = []
        return latest

    def fail_on_non_finite(self, step, image_ids, metrics):
        bad = ', '.join(f'{name} is {value}' for name, value in metrics.items() if not math.isfinite(value))
        images = ', '.join(comm.all_gather_object(self.list_images(image_ids)))
        raise UserError(f'at epoch {self.epoch}, step {step}, {bad}: lower --lr, or check the images of the batch '
                        f'({images}); {self.checkpointer.describe_last_checkpoint()}')

    def list_images(self, image_ids):
        """List the image files of a batch."""
        paths = {image_id: path for _, image_id, path, _ in getattr(self.loader.dataset, 'samples', [])}
        return ', '.join(str(paths.get(int(image_id), f'image {int(image_id)}')) for image_id in image_ids)

    # -- interrupts and checkpoints ------------------------------------------------------------------------------------

    def raise_if_interrupted(self):
        if self.is_interrupt_requested():
            raise Interrupted

    def check_interrupt_while_waiting(self):
        """Raise Interrupted if a signal came while this rank waits for a batch, which may never come.

        A single process saves its state first. One of several ranks cannot, because saving needs all ranks.
        """
        if not self.interrupt.signal_number:
            return
        if comm.get_world_size() == 1:
            self.save_last()
        elif time.monotonic() - self.interrupt.signal_time < MAX_BATCH_WAIT:
            return
        raise Interrupted

    def is_interrupt_requested(self):
        """Whether any rank received a signal, so that all ranks exit at the same step with the same status."""
        signal_number = comm.all_reduce_max(self.interrupt.signal_number or 0)
        if signal_number:   # do not overwrite a signal that came during the reduction
            self.interrupt.signal_number = signal_number
        return signal_number

    def save_if_due(self):
        """Save last.pth between two steps every ``--save_steps`` steps, and before an exit."""
        if self.step == len(self.loader):
            return
        is_due = self.args.save_steps and self.step % self.args.save_steps == 0
        is_interrupted = self.is_interrupt_requested()
        if is_due or is_interrupted:
            self.save_last()
        if is_interrupted:
            raise Interrupted

    def save_last(self):
        self.flush_metrics()
        self.checkpointer.save(
            'last', training_state=True, epoch=self.epoch, step=self.step, total_steps=self.total_steps, best=self.best,
            unevaluated=self.pending_evaluation, means=self.means.state_dict(), skipped=self.skipped_images,
            clean=self.clean_pairs.weights, scaler=self.training_step.scaler.state_dict(),
            random_states=get_random_states())
        comm.synchronize()     # no rank exits while the main process writes

    def load_training_state(self, state):
        """Continue from the state that :meth:`save_last` wrote.

        A checkpoint of a reference implementation has only an epoch. Its model is evaluated before the first step.

        Raises:
            UserError: the state is incomplete or does not fit the training set.
        """
        if not state:
            return
        if is_reference_checkpoint(state):
            self.pending_evaluation = self.epoch - 1 or None
            logger.info(format_log_line(f'resumed after epoch {self.epoch - 1} of a reference implementation',
                                        'evaluated first'))
            return
        missing = [name for name in RUN_ENTRIES if name not in state]
        if missing:
            raise UserError(f"{', '.join(missing)}: missing from the checkpoint, which another program wrote: start a "
                            'new run from its weights with --init_from')
        if state['step'] > len(self.loader):
            raise UserError(f"the checkpoint is {state['step']} steps into an epoch, but an epoch has only "
                            f'{len(self.loader)} steps: resume with the dataset and the batch size of the run')
        self.step, self.total_steps = state['step'], state['total_steps']
        self.pending_evaluation, best = state['unevaluated'], state['best']
        self.best = {self.measure.key: self.measure.value_in(best, -1.0), 'epoch': best['epoch']}
        self.skipped_images, self.clean_pairs.weights = state.get('skipped', 0), state.get('clean')
        self.means.load_state_dict(state['means'])
        if state.get('scaler'):
            self.training_step.scaler.load_state_dict(state['scaler'])
        restore_random_states(state['random_states'])
        self.handle_missing_best()
        best = self.format_best() if self.best['epoch'] else 'not evaluated yet'
        logger.info(format_log_line(f'resumed at epoch {self.epoch} step {self.step}/{len(self.loader)}', best))

    def handle_missing_best(self):
        """Restart the search for the best epoch if best.pth is missing, because its weights cannot be restored."""
        path = self.checkpointer.path('best')
        if not self.best['epoch'] or comm.broadcast_object(os.path.isfile(path)):
            return
        logger.warning('%s is missing (epoch %d, %s %.3f): the best of the next evaluations becomes best.pth',
                       path, self.best['epoch'], self.measure.label, self.best[self.measure.key])
        self.best = self.initial_best()
        if not self.step:
            self.pending_evaluation = self.epoch - 1 or None


def do_inference(model, test_img_loader, test_txt_loader):
    """Log the metrics of a test split and return text-to-image Rank-1 in percent."""
    return Evaluator(test_img_loader, test_txt_loader).eval(model.eval())

"""The training loop and the inference loop."""
import time

from model.build import total_loss
from model.heads import HasSchedule
from processor.build import build_step
from processor.clean_pairs import CleanPairs
from processor.evaluation import Evaluator
from processor.interrupt import Interrupted, InterruptHandler, exit_if_interrupted
from processor.pair_states import PairStates
from processor.pending_metrics import FLUSH_PERIOD, PendingMetrics
from processor.progress import ProgressBar, log_skipped_images, open_metrics_log
from processor.run_state import RunState
from processor.step import get_image_stats
from processor.training_log import TrainingLog
from processor.weight_average import WeightAverage
from utils.batch_shard import sync_batch_shards
from utils.errors import UserError
from utils.measures import RANK1
from utils.run_config import complete
from utils.seeding import derive_seed, seed_all


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
    model.image_stats = get_image_stats(train_loader, model)    # of the images that the step normalizes
    Trainer(complete(args), model, train_loader, evaluator, optimizer, scheduler, checkpointer).run(start_epoch)


class Trainer:
    """The training loop. All ranks call the same methods at the same time; the main process writes files.

    Attributes:
        state: the :class:`~processor.run_state.RunState`: epoch, step, means of the metrics, best evaluation.
        measure: the :class:`~utils.measures.Measure` that selects the best epoch.
    """

    def __init__(self, args, model, train_loader, evaluator, optimizer, scheduler, checkpointer):
        self.args, self.model, self.loader, self.evaluator = args, model, train_loader, evaluator
        self.scheduler, self.checkpointer = scheduler, checkpointer
        self.training_step = build_step(model, optimizer, args.micro_batch, args.shard,
                                        clip_grad_norm=args.clip_grad_norm, accumulate=args.accumulate)
        self.average = WeightAverage(model, optimizer, args.ema)
        self.pair_states = PairStates(model, len(train_loader.dataset))
        self.clean_pairs = CleanPairs(model, train_loader, args.seed, self.pair_states)
        self.pending_metrics = PendingMetrics(train_loader.dataset, checkpointer)
        self.flush_period = FLUSH_PERIOD if next(model.parameters()).device.type != 'cpu' else 1
        self.measure = getattr(evaluator, 'measure', RANK1)   # an evaluator of a user's own script may lack it

    def run(self, start_epoch):
        """Train from an epoch, or from the position in it that ``checkpointer.resume`` read."""
        self.state = state = RunState(self.measure, start_epoch)
        state.load(self.checkpointer, self.clean_pairs, self.pair_states, self.training_step.scaler, len(self.loader))
        self.average.load(self.checkpointer.resumed)
        with (exit_if_interrupted(self.checkpointer.path('last')),
              open_metrics_log(self.args, state.total_steps, state.pending_evaluation) as metrics_log,
              InterruptHandler(self.save_last) as self.interrupt):
            self.log = TrainingLog(self.args, state, self.loader, metrics_log)
            self.loader.on_wait = self.interrupt.raise_while_waiting
            if not state.total_steps:
                self.save_last()  # a full disk shows now, and an early interrupt can be resumed
            self.evaluate()
            while state.epoch <= self.args.num_epoch and not self.has_stopped_improving():
                self.train_epoch()
                self.evaluate()
        if state.epoch <= self.args.num_epoch:
            self.log.log_early_stop()
        self.log.log_summary(self.checkpointer.path('best'))
        if self.args.keep != 'all':
            self.checkpointer.keep_only(self.args.keep)

    def has_stopped_improving(self):
        """Whether the latest evaluation is ``--early_stop`` or more epochs after the best one."""
        best_epoch, period = self.state.best['epoch'], self.args.eval_period
        latest_epoch = (self.state.epoch - 1) // period * period
        return bool(self.args.early_stop and best_epoch and latest_epoch - best_epoch >= self.args.early_stop)

    def train_epoch(self):
        state = self.state
        if not state.step:
            with self.training_step.unsharded():
                self.clean_pairs.select(state.epoch, self.args.num_epoch, self.interrupt.raise_if_requested)
        self.model.train()
        if hasattr(self.loader.batch_sampler, 'set_epoch'):
            self.loader.batch_sampler.set_epoch(state.epoch, state.step)
        bar = ProgressBar(state.epoch, self.args.num_epoch, len(self.loader), state.step)
        for batch in self.loader:
            state.skipped_images += log_skipped_images(batch.pop('skipped', ()))
            shard, batch = sync_batch_shards(batch)     # no shard if no rank can read an image of the batch
            state.step += 1
            state.total_steps += 1
            if shard:
                self.train_step(batch, shard)
            bar.update(shard.global_size(batch['pids']) if shard else 0)
            if state.step % self.flush_period == 0:
                bar.show_metrics(self.flush_metrics(), self.lr)
            if state.step % self.args.log_period == 0:
                self.flush_metrics()
                self.log.log_step(self.lr, bar.samples_per_second)
            self.save_if_due()
        self.training_step.update()     # with the batches that --accumulate leaves over
        bar.close()
        self.flush_metrics()
        self.log.seconds_per_step = bar.seconds_per_step
        self.finish_epoch(bar.samples_per_second)

    def train_step(self, batch, shard):
        epoch, step = self.state.epoch, self.state.step
        # The seed depends only on the position in the run, so that a resumed run repeats the step.
        seed_all(derive_seed(self.args.seed, epoch, step))
        self.scheduler.before_step(epoch, step, len(self.loader))
        for head in self.model.heads_with(HasSchedule):
            head.before_step(epoch, step, len(self.loader))
        batch = self.pair_states.add_values(self.clean_pairs.add_weights(batch), shard)
        results = self.training_step(batch, shard)
        self.pair_states.store(batch, self.model.pair_values, shard)
        metrics = {'loss': total_loss(results), **results}
        metrics.pop('temperature', None)
        self.pending_metrics.add((epoch, step), metrics, shard.global_size(batch['pids']), batch['image_ids'])

    def finish_epoch(self, samples_per_second):
        """Log the epoch's means, step the schedule, and save a checkpoint at the start of the next epoch."""
        epoch = self.state.epoch
        if not self.state.means.count:
            raise UserError('no training image can be read; run python -m datasets.check to list the broken ones')
        self.log.log_epoch(self.lr, samples_per_second)
        self.scheduler.step()
        if epoch % self.args.eval_period == 0 or epoch == self.args.num_epoch:
            self.state.pending_evaluation = epoch
        self.state.start_next_epoch()
        self.save_last()
        if self.args.save_period and epoch % self.args.save_period == 0:
            with self.average.applied():
                self.checkpointer.save(f'epoch_{epoch}', epoch=epoch, val_dataset=None)     # no split selected it

    def evaluate(self):
        """Run the evaluation that is due. A signal may interrupt it at any time; a resumed run repeats it."""
        state, epoch = self.state, self.state.pending_evaluation
        if epoch is None:
            return
        with self.interrupt.raising_immediately():
            start = time.perf_counter()
            with self.training_step.unsharded(), self.average.applied():
                value = self.evaluator.eval(self.model)
            self.log.seconds_per_evaluation = time.perf_counter() - start
        # An evaluator of a user's own script may lack these attributes.
        metrics = dict(getattr(self.evaluator, 'metrics', None) or {self.measure.key: float(value)})
        self.log.write_evaluation(metrics, getattr(self.evaluator, 'other_metrics', {}))
        if value > state.best_value:
            state.best = {self.measure.key: float(value), 'epoch': epoch}
            selected_by = getattr(self.evaluator, 'selected_by', None)
            with self.average.applied():
                self.checkpointer.save('best', epoch=epoch, metrics=metrics, val_dataset=self.args.val_dataset,
                                       noise=getattr(self.loader.dataset, 'noise', None),
                                       **({'selected_by': selected_by} if selected_by else {}))
        self.log.log_evaluation(value)
        state.pending_evaluation = None
        self.save_last()

    def save_if_due(self):
        """Save last.pth between two updates about every ``--save_steps`` steps, and before an exit."""
        step = self.state.step
        if step == len(self.loader) or self.training_step.accumulated_batches:
            return
        # With --accumulate, the first update after a multiple of --save_steps is due.
        is_due = self.args.save_steps and step % self.args.save_steps < self.args.accumulate
        is_interrupted = self.interrupt.is_requested()
        if is_due or is_interrupted:
            self.save_last()
        if is_interrupted:
            raise Interrupted(self.interrupt.signal_number)

    @property
    def lr(self):
        """The current learning rate of the parameters with the base rate ``--lr``."""
        return self.scheduler.compute_lr(self.args.lr)

    def flush_metrics(self):
        """Add the metrics that wait on the device to the means of the epoch, and return those of the latest step."""
        return self.pending_metrics.flush(self.state.means)

    def save_last(self):
        if self.training_step.accumulated_batches:  # a worker hangs: the last.pth before this update stays
            return
        self.flush_metrics()
        self.state.save(self.checkpointer, self.clean_pairs, self.pair_states, self.training_step.scaler,
                        **self.average.state_dict())


def do_inference(model, test_img_loader, test_txt_loader):
    """Log the metrics of a test split and return text-to-image Rank-1 in percent."""
    return Evaluator(test_img_loader, test_txt_loader).eval(model.eval())

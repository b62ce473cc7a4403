"""The training loop and the inference loop."""
import logging
import math
import os
import time

import torch

from model.build import total_loss
from processor.division import Division
from processor.evaluation import Evaluator
from processor.history import best_last_mean, read_evaluations
from processor.history import in_words as history_in_words
from processor.interrupt import Interrupt, Stopped
from processor.progress import Bar, Journal, Means, NoJournal
from processor.step import Step
from utils import comm
from utils.checkpoint import is_released
from utils.errors import UserError
from utils.failures import STOPPED, is_broken
from utils.batch_shard import sync_batch_shards
from utils.resumption import OF_A_RUN
from utils.seeding import derive_seed, random_states, restore_random_states, seed_all

logger = logging.getLogger('Pedestal.train')

WAIT_FOR_BATCH = 20  # seconds after a signal that one of several processes waits for its batch; torchrun kills after 30
LOOK_EVERY = 20  # steps between reads of the losses from a GPU, each of which waits for it


def do_train(start_epoch, args, model, train_loader, evaluator, optimizer, scheduler, checkpointer):
    """Train from ``start_epoch`` (1 for a new run, ``checkpointer.resume(...)['epoch']`` for a resumed one) to
    ``args.num_epoch``, evaluate each ``args.eval_period`` epochs and after the last one, and keep ``best.pth`` and ``last.pth``.

    Leaves with status 130 (Ctrl-C) or 143 (SIGTERM) once the state is saved. A loss that is not finite raises
    :class:`~utils.errors.UserError`.
    """
    Trainer(args, model, train_loader, evaluator, optimizer, scheduler, checkpointer).run(start_epoch)


class Trainer:
    """One call of :func:`do_train`. Several processes have one each, and call everything of it together; the first one writes."""

    def __init__(self, args, model, train_loader, evaluator, optimizer, scheduler, checkpointer):
        self.args, self.model, self.loader, self.evaluator = args, model, train_loader, evaluator
        self.optimizer, self.scheduler, self.checkpointer = optimizer, scheduler, checkpointer
        self.learn = Step(model, optimizer, args.micro_batch, getattr(args, 'shard', False))
        self.division = Division(model, train_loader, args.seed)
        self.look_every = LOOK_EVERY if next(model.parameters()).device.type != 'cpu' else 1
        # Where the run is: the epoch to go on with, the steps done in it, all steps done, the epoch still to be evaluated.
        self.epoch, self.step, self.total_steps, self.unevaluated = 1, 0, 0, None
        # A script's own evaluator may say nothing of what it measures, and is one of Rank-1 then.
        self.measure, self.metric = getattr(evaluator, 'measure', 'Rank-1'), getattr(evaluator, 'metric', 'R1')
        self.best = self.no_best()
        self.means = Means()
        self.unseen = []   # (step, image ids, samples, names, results) of steps whose losses nobody has looked at yet
        self.skipped = 0
        self.seconds_per_step = self.seconds_per_evaluation = 0.0

    def no_best(self):
        """The best evaluation before the first one."""
        return {self.metric: -1.0, 'epoch': 0}

    # -- the run ---------------------------------------------------------------------------------------------------------

    def run(self, start_epoch):
        self.epoch = start_epoch
        self.restore(self.checkpointer.resumed)
        if comm.failure_monitor():
            comm.failure_monitor().how_to_go_on = self.how_to_go_on
        self.journal = Journal(self.args.output_dir, self.total_steps, self.unevaluated) if comm.is_main_process() else NoJournal()
        try:
            with Interrupt() as self.interrupt:
                self.loader.on_wait = self.stop_while_waiting
                if not self.total_steps:
                    self.save_last()  # from here on there is something to resume, and a full disk shows at once
                self.evaluate()
                while self.epoch <= self.args.num_epoch:
                    self.train_epoch()
                    self.evaluate()
            if self.best['epoch']:
                logger.info('done: best %s %.3f at epoch %d (%s split): %s', self.measure, self.best[self.metric],
                            self.best['epoch'], self.args.val_dataset, self.checkpointer.path('best'))
                course = best_last_mean(read_evaluations(self.args.output_dir))
                if course:   # a script of one's own may keep no journal
                    logger.info('%s', history_in_words(course))
        except Stopped:
            self.leave(128 + (self.interrupt.requested or 2))
        except RuntimeError as error:
            if not is_broken(error) or comm.failure_monitor().status() not in STOPPED:
                raise
            self.leave(comm.failure_monitor().status())
        finally:
            self.journal.close()

    def leave(self, status):
        logger.info('stopped%s', self.how_to_go_on())
        raise SystemExit(status)

    def how_to_go_on(self):
        last, processes = self.checkpointer.path('last'), comm.get_world_size()
        if not os.path.isfile(last):
            return ' before anything was saved'
        program = f'torchrun --nproc_per_node {comm.get_local_world_size()}' if processes > 1 else 'python'
        return f'; go on with: {program} train.py --resume --resume_ckpt_file {last}'

    def train_epoch(self):
        if not self.step:
            with self.learn.whole():
                self.division.begin(self.epoch, self.args.num_epoch, self.stop_if_asked)
        self.model.train()
        if hasattr(self.loader.batch_sampler, 'set_epoch'):
            self.loader.batch_sampler.set_epoch(self.epoch, self.step)
        bar, first = Bar(self.epoch, self.args.num_epoch, len(self.loader), self.step), self.step
        for batch in self.loader:
            self.report_skipped(batch.pop('skipped', ()))
            shard, batch = sync_batch_shards(batch)
            self.step += 1
            self.total_steps += 1
            count = shard.global_size(batch['pids']) if shard else 0
            if shard:
                self.train_step(batch, shard)
            bar.advance(count)
            self.report(bar)
            self.save_between_steps()
        bar.close()
        self.look()
        self.seconds_per_step = bar.seconds / max(self.step - first, 1)
        self.end_epoch(bar.samples_per_second)

    def train_step(self, batch, shard):
        # What is random in a step follows from its place in the run, so that a resumed run repeats it.
        seed_all(derive_seed(self.args.seed, self.epoch, self.step))
        self.scheduler.before_step(self.epoch, self.step, len(self.loader))
        for head in self.model.heads:
            head.before_step(self.epoch, self.step, len(self.loader))
        results = self.learn(self.division.mark(batch), shard)
        results = {'loss': total_loss(results), **{name: value for name, value in results.items() if name != 'temperature'}}
        values = torch.stack([value.float() for value in results.values()])   # stays on the device until somebody looks
        self.unseen.append((self.step, batch['image_ids'], shard.global_size(batch['pids']), tuple(results), values))

    def end_epoch(self, samples_per_second):
        """The epoch's means into the log, the schedule's step, and a checkpoint that goes on with the next epoch."""
        if not self.means.count:
            raise UserError('none of the training images could be read; python -m datasets.check lists them')
        values = {**self.means.read(), 'lr': self.lr, 'samples_per_second': samples_per_second}
        self.journal.write('epoch', self.epoch, self.total_steps, values)
        logger.info('epoch %d/%d: %s, %s left', self.epoch, self.args.num_epoch, in_words(values), duration(self.seconds_left()))
        if self.skipped:
            logger.warning('epoch %d left out %d broken images', self.epoch, self.skipped)
        self.scheduler.step()
        if self.epoch % self.args.eval_period == 0 or self.epoch == self.args.num_epoch:
            self.unevaluated = self.epoch
        self.epoch, self.step, self.means, self.skipped = self.epoch + 1, 0, Means(), 0
        self.save_last()
        if self.args.save_period and (self.epoch - 1) % self.args.save_period == 0:
            self.checkpointer.save(f'epoch_{self.epoch - 1}', epoch=self.epoch - 1, val_dataset=None)  # no split chose it

    def seconds_left(self):
        """About how long the epochs after this one take, with their evaluations and the one that is due."""
        epochs, period = self.args.num_epoch - self.epoch, self.args.eval_period
        evaluations = 1 + self.args.num_epoch // period - self.epoch // period
        return epochs * len(self.loader) * self.seconds_per_step + evaluations * self.seconds_per_evaluation

    def evaluate(self):
        """The evaluation that is due, if one is. It may be stopped at any moment: a resumed run does it again."""
        if self.unevaluated is None:
            return
        epoch = self.unevaluated
        self.interrupt.at_once = True
        self.stop_if_asked()
        began = time.perf_counter()
        with self.learn.whole():
            top1 = self.evaluator.eval(self.model)
        self.seconds_per_evaluation = time.perf_counter() - began
        self.interrupt.at_once = False
        figures = dict(getattr(self.evaluator, 'results', {}).get('t2i', {self.metric: float(top1)}))
        self.journal.write('evaluation', epoch, self.total_steps, {**figures, 'split': self.args.val_dataset})
        for name, summary in getattr(self.evaluator, 'others', {}).items():
            self.journal.write(f'evaluation/{name}', epoch, self.total_steps, {**summary, 'split': self.args.val_dataset})
        if top1 > self.best[self.metric]:
            self.best = {self.metric: float(top1), 'epoch': epoch}
            self.checkpointer.save('best', epoch=epoch, metrics=figures, val_dataset=self.args.val_dataset,
                                   noise=getattr(self.loader.dataset, 'noise', None))
        logger.info('epoch %d: %s %.3f, best %.3f at epoch %d', epoch, self.measure, top1, self.best[self.metric],
                    self.best['epoch'])
        self.unevaluated = None
        self.save_last()

    # -- reports ---------------------------------------------------------------------------------------------------------

    @property
    def lr(self):
        """The base learning rate of this epoch."""
        return self.scheduler.lr_after(self.scheduler.last_epoch, self.args.lr)

    def report(self, bar):
        if self.step % self.look_every == 0:
            latest = self.look()
            bar.show(latest, self.lr)
        if self.step % self.args.log_period == 0:
            self.look()
            values = {**self.means.read(), 'lr': self.lr, 'samples_per_second': bar.samples_per_second}
            self.journal.write('train', self.epoch, self.total_steps, values)
            logger.info('epoch %d/%d step %d/%d: %s', self.epoch, self.args.num_epoch, self.step, len(self.loader), in_words(values))

    def report_skipped(self, paths):
        if not comm.all_reduce_max(len(paths)):
            return
        paths = [path for of_process in comm.all_gather_object(paths) for path in of_process]
        for path in paths:
            logger.warning('left out: %s cannot be read', path)
        self.skipped += len(paths)

    def look(self):
        """Read the results of the steps since the last look and add them to the means; one that isn't finite stops the run. Returns
        the newest."""
        if not self.unseen:
            return {}
        rows = torch.cat([values for *_, values in self.unseen]).tolist()   # waits for the device, once
        for step, image_ids, count, names, _ in self.unseen:
            latest, rows = dict(zip(names, rows)), rows[len(names):]
            if not all(map(math.isfinite, latest.values())):
                self.stop_at(step, image_ids, latest)
            self.means.add(latest, count)
        self.unseen = []
        return latest

    def stop_at(self, step, image_ids, values):
        bad = ', '.join(f'{name} is {value}' for name, value in values.items() if not math.isfinite(value))
        names = ', '.join(comm.all_gather_object(self.name_samples(image_ids)))
        raise UserError(f'at epoch {self.epoch}, step {step}, {bad}; the batch: {names}; '
                        f'{self.checkpointer.last_good()}')

    def name_samples(self, image_ids):
        """The image files of a batch."""
        paths = {image_id: path for _, image_id, path, _ in getattr(self.loader.dataset, 'dataset', [])}
        return ', '.join(str(paths.get(int(image_id), f'image {int(image_id)}')) for image_id in image_ids)

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def stop_if_asked(self):
        if self.asked_to_stop():
            raise Stopped

    def stop_while_waiting(self):
        """Stop if a signal came while this process waits for a batch, which may never come.

        One of several processes cannot save then, because the others are elsewhere.
        """
        if not self.interrupt.requested:
            return
        if comm.get_world_size() == 1:
            self.save_last()
        elif time.monotonic() - self.interrupt.requested_at < WAIT_FOR_BATCH:
            return
        raise Stopped

    def asked_to_stop(self):
        """Whether a signal reached this process, or another one of several: all leave at the same step, with the same status."""
        asked = comm.all_reduce_max(self.interrupt.requested or 0)
        if asked:   # else one may be noted meanwhile, for the next time
            self.interrupt.requested = asked
        return asked

    def save_between_steps(self):
        if self.step == len(self.loader):
            return
        due, stops = self.args.save_steps and self.step % self.args.save_steps == 0, self.asked_to_stop()
        if due or stops:
            self.save_last()
        if stops:
            raise Stopped

    def save_last(self):
        self.look()
        self.checkpointer.save(
            'last', training_state=True, epoch=self.epoch, step=self.step, total_steps=self.total_steps, best=self.best,
            unevaluated=self.unevaluated, means=self.means.state_dict(), skipped=self.skipped, clean=self.division.clean,
            scaler=self.learn.scaler.state_dict(), random_states=random_states())
        comm.synchronize()     # nobody leaves while the first process writes

    def restore(self, state):
        """Go on from what :meth:`save_last` kept. A released checkpoint has no more than its epoch: how good it is is measured before
        the first step."""
        if not state:
            return
        if is_released(state):
            self.unevaluated = self.epoch - 1 or None
            logger.info('going on with a released run after its epoch %d, which is evaluated first', self.epoch - 1)
            return
        missing = [name for name in OF_A_RUN if name not in state]
        if missing:
            raise UserError(f"{', '.join(missing)}: missing from the checkpoint, which is none that this training loop wrote; start a new "
                            'run from its weights with --init_from')
        if state['step'] > len(self.loader):
            raise UserError(f"the checkpoint is {state['step']} steps into an epoch, and the training set gives {len(self.loader)}: "
                            'it is of other data, or damaged')
        self.step, self.total_steps = state['step'], state['total_steps']
        self.unevaluated, best = state['unevaluated'], state['best']
        # Checkpoints of older code call each measure R1.
        self.best = {self.metric: best.get(self.metric, best.get('R1', -1.0)), 'epoch': best['epoch']}
        self.skipped, self.division.clean = state.get('skipped', 0), state.get('clean')
        self.means.load_state_dict(state['means'])
        if state.get('scaler'):
            self.learn.scaler.load_state_dict(state['scaler'])
        restore_random_states(state['random_states'])
        self.miss_best()
        best = f'best {self.measure} so far {self.best[self.metric]:.3f}' if self.best['epoch'] else 'not evaluated yet'
        logger.info('resumed at epoch %d after %d of its steps; %s', self.epoch, self.step, best)

    def miss_best(self):
        """Where best.pth is gone, its weights are, too: the best of what follows takes its place, beginning with what there is."""
        path = self.checkpointer.path('best')
        if not self.best['epoch'] or comm.broadcast_object(os.path.isfile(path)):
            return
        logger.warning('there is no %s any more, of epoch %d with %s %.3f: the best from here on becomes best.pth',
                       path, self.best['epoch'], self.measure, self.best[self.metric])
        self.best = self.no_best()
        if not self.step:
            self.unevaluated = self.epoch - 1 or None


def duration(seconds):
    """Seconds in words: '2 h 05 min', '7 min', '40 s'."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f'{minutes // 60} h {minutes % 60:02d} min'
    return f'{minutes} min' if seconds >= 90 else f'{seconds:.0f} s'


def in_words(values):
    return ', '.join(f'{name} {value:.2e}' if name == 'lr' else f'{name} {value:.4g}' for name, value in values.items())


def do_inference(model, test_img_loader, test_txt_loader):
    """Log the table of a test split and return text-to-image Rank-1 in percent."""
    return Evaluator(test_img_loader, test_txt_loader).eval(model.eval())

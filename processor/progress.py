"""What a run reports while it trains: a progress bar, the log, JSON lines and TensorBoard."""
import json
import logging
import os
import threading
import time

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import comm
from utils.errors import UserError
from utils.iotools import atomic_write, parse_json

logger = logging.getLogger('Pedestal.train')


class Means:
    """Running means of the steps' losses and read-outs, weighted by batch size."""

    def __init__(self):
        self.sums, self.count = {}, 0

    def add(self, results, count):
        """``{name: number}`` of a step of ``count`` samples."""
        for name, value in results.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
        self.count += count

    def read(self):
        """{name: mean}"""
        return {name: value / self.count for name, value in self.sums.items()}

    def state_dict(self):
        return {'sums': dict(self.sums), 'count': self.count}

    def load_state_dict(self, state):
        self.sums, self.count = dict(state['sums']), state['count']


class Journal:
    """``metrics.jsonl`` and TensorBoard events in a run's folder. A resumed run first takes back what was written after
    the checkpoint that it goes on from, so that each step is in them once; and the evaluation of epoch ``unevaluated``, which it is
    going to do (again, if a kill came between an evaluation and the checkpoint that says so)."""

    def __init__(self, folder, step=0, unevaluated=None):
        self.path = os.path.join(folder, 'metrics.jsonl')
        self._take_back(step, unevaluated)
        try:
            self.board = Board(folder, purge_step=step + 1 if step else None)
        except OSError as error:
            raise UserError(f'cannot write into {folder}: {error.strerror}') from None

    def _take_back(self, step, unevaluated):
        if not os.path.exists(self.path):
            return
        if not os.path.isfile(self.path):
            raise UserError(f'{self.path} is no file, and the metrics go there; move it away')
        kept, foreign = [], 0
        with open(self.path, 'rb') as file:
            for line in file:
                fact = fact_of(line)
                if fact is None:
                    foreign += line.endswith(b'\n')  # the line that a kill cut short has no end
                elif fact['step'] <= step and (not str(fact['kind']).startswith('evaluation') or fact['epoch'] != unevaluated):
                    kept.append(line)
        if foreign:
            logger.warning('left out of %s: %d lines that this program did not write', self.path, foreign)
        with atomic_write(self.path, 'wb') as file:
            file.writelines(kept)

    def write(self, kind, epoch, step, values):
        """One line: ``{"kind": "train" | "epoch" | "evaluation" | "evaluation/<dataset>", "epoch", "step" (of the run), ...values}``."""
        line = json.dumps({'kind': kind, 'epoch': epoch, 'step': step, **values})
        try:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write(line + '\n')
        except OSError as error:
            raise UserError(f'cannot write {self.path}: {error.strerror}') from None
        self.board.add(kind, values, step)

    def close(self):
        self.board.close()


class Board:
    """TensorBoard's events in a run's folder. They are a copy of ``metrics.jsonl`` for the eye, so a run goes on without them if they
    cannot be written any more, which the log says once. ``settings``: ``SummaryWriter``'s."""

    def __init__(self, folder, **settings):
        self.writer, self.excepthook = None, threading.excepthook
        threading.excepthook = self.pass_on
        try:
            self.writer = SummaryWriter(folder, **settings)
        except OSError:
            self.close()
            raise

    def pass_on(self, args):
        """Leave an error of TensorBoard's thread to :meth:`stop_at`, for the next call raises it again; Python would print it."""
        if not type(args.thread).__module__.startswith('tensorboard.'):
            self.excepthook(args)

    def add(self, kind, values, step):
        """``{name: value}`` of a step; values that are no numbers are left out."""
        try:
            for name, value in values.items():
                if self.writer is not None and isinstance(value, (int, float)):
                    self.writer.add_scalar(f'{kind}/{name}', value, step)
        except OSError as error:
            self.stop_at(error)

    def stop_at(self, error):
        self.writer = None
        logger.warning("TensorBoard's events cannot be written (%s): the run goes on without them, and metrics.jsonl has all figures",
                       error.strerror or error)

    def close(self):
        try:
            if self.writer is not None:
                self.writer.close()
        except OSError as error:
            self.stop_at(error)
        finally:
            self.writer = None
            if threading.excepthook == self.pass_on:
                threading.excepthook = self.excepthook


def fact_of(line):
    """The dict in a line of ``metrics.jsonl``; None if it is no such line."""
    try:
        fact = parse_json(line)
    except ValueError:
        return None
    if not isinstance(fact, dict) or not all(type(fact.get(name)) is int for name in ('epoch', 'step')) or 'kind' not in fact:
        return None
    return fact


class NoJournal:
    """Of the processes that leave the writing to the first."""

    def write(self, *line):
        pass

    def close(self):
        pass


class Bar:
    """An epoch's progress bar on a terminal: losses, learning rate, samples a second, time left."""

    def __init__(self, epoch, epochs, steps, first_step=0, what=''):
        self.bar = tqdm(total=steps, initial=first_step, desc=f'epoch {epoch}/{epochs} {what}'.strip(), unit='step',
                        disable=None if comm.is_main_process() else True,
                        dynamic_ncols=True, leave=False)
        self.began, self.samples = time.perf_counter(), 0

    def advance(self, samples):
        self.samples += samples
        self.bar.update()

    @property
    def seconds(self):
        """Since the epoch, or what was left of it, began."""
        return max(time.perf_counter() - self.began, 1e-9)

    @property
    def samples_per_second(self):
        return self.samples / self.seconds

    def show(self, values, lr):
        losses = ' '.join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in values.items() if name.endswith('loss'))
        self.bar.set_postfix_str(f'{losses} lr {lr:.2e} {self.samples_per_second:.0f} samples/s')

    def close(self):
        self.bar.close()

"""The trial of a training run: ``train.py --dry_run``."""
import contextlib
import gc
import logging
import os
import shutil
import time
from dataclasses import dataclass

import torch

from datasets.build import loader_settings
from datasets.image_cache import format_bytes
from datasets.sampler import FirstBatches
from datasets.workers import Loader
from processor.clean_pairs import compute_pair_losses
from processor.estimates import RunEstimate, measure_sample_seconds
from processor.loggers import require_packages
from processor.processor import Trainer
from processor.progress import format_duration
from processor.training_run import build_run_evaluator, prepare_training
from utils import comm
from utils.checkpoint import read_checkpoint
from utils.comm import pick_device
from utils.errors import UserError
from utils.logger import setup_logger
from utils.machine import peak_bytes, synchronize
from utils.options import replace_options
from utils.rerank_options import PairScores, read_rerank_settings
from utils.temporary import temporary_sibling

logger = logging.getLogger('Pedestal.dry_run')

STEPS = 2                   # before the checkpoint; one more step follows after it is resumed
EVALUATED_IMAGES = 64       # at most; the captions are the same fraction of the split


def do_dry_run(args):
    """Try the run that the options describe, and print what it takes.

    The run uses its dataset, weights and options. It makes two steps, an evaluation of a few samples and a checkpoint,
    resumes the checkpoint and makes one more step. Its files are in a temporary folder next to ``--output_dir``, which
    is removed at the end. Caches next to the dataset stay, as those of a run.

    Raises:
        UserError: the run fails, or the options resume a run.
    """
    if args.resume:
        raise UserError('--dry_run tries a new run and cannot be combined with --resume: leave out one of them')
    device = pick_device(args.device)
    require_packages(args.logger)
    with temporary_output(args.output_dir) as folder:
        # A logger may send metrics to a server, which would keep them.
        args = replace_options(args, output_dir=folder, keep='all', logger=('none',))
        result = try_run(args, device)
        lines = format_result(result, args, shutil.disk_usage(folder).free, device)
    if comm.is_main_process():
        print('\n'.join(lines), flush=True)


@contextlib.contextmanager
def temporary_output(output_dir):
    """Make a temporary folder on the disk of ``output_dir``, which may not exist yet, and yield its name on all ranks.

    The log file in it is closed before it is removed.
    """
    target = os.path.abspath(output_dir)
    while not os.path.isdir(os.path.dirname(target)):
        target = os.path.dirname(target)
    if os.path.exists(target) and not os.path.isdir(target):
        raise UserError(f'--output_dir {output_dir}: {target} is a file; choose another folder')
    if not comm.is_main_process():
        yield comm.broadcast_object(None)
        comm.synchronize()
        return
    try:
        with temporary_sibling(target, folder=True) as folder:
            try:
                yield comm.broadcast_object(folder)
                comm.synchronize()      # no other rank works in the folder
            finally:
                setup_logger('Pedestal', save_dir='', if_train=True)
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(target):
            raise
        raise UserError(f'cannot write next to {target}: {error.strerror}; choose another --output_dir') from None


@dataclass
class DryRunResult:
    """The measurements of a dry run.

    Attributes:
        estimate: the :class:`~processor.estimates.RunEstimate`.
        step_seconds: the seconds of each step, in order.
        resumed_seconds: the seconds of the step after the resumption.
        peak_bytes: the largest memory of the first part: of the GPU's tensors, or of the process.
        checkpoint_bytes: ``{file: bytes}``.
        pair_count: the number of training pairs.
    """
    estimate: RunEstimate
    step_seconds: list
    resumed_seconds: float
    peak_bytes: int
    checkpoint_bytes: dict
    pair_count: int


def try_run(args, device):
    """Train two steps, evaluate, save, resume, and train one more step: a :class:`DryRunResult`."""
    run = prepare_training(args, device)
    full_loader, fraction = run.loaders.train, limit_evaluations(args, run.loaders)
    trainer = train_shortly(args, run, epochs=1, steps=STEPS)
    logger.info('%d steps and an evaluation of %s work', len(trainer.seconds), describe_evaluated(run.loaders))
    peak = comm.all_reduce_max(peak_bytes(device))
    paths = {name: os.path.join(args.output_dir, name) for name in ('best.pth', 'last.pth')}
    sizes = {name: os.path.getsize(path) for name, path in paths.items() if os.path.exists(path)}
    estimate = RunEstimate(
        step_seconds=trainer.seconds[-1], sample_seconds=measure_sample_seconds(full_loader),
        batch_size=-(-args.batch_size // comm.get_world_size()), workers=full_loader.num_workers,
        steps=len(full_loader), epochs=args.num_epoch, eval_period=args.eval_period,
        evaluation_seconds=trainer.log.seconds_per_evaluation / fraction,
        selection_seconds=trainer.measure_selection_seconds() * len(full_loader))
    first_seconds, pair_count = trainer.seconds, len(full_loader.dataset)
    del run, trainer, full_loader
    gc.collect()            # the resumed run has the memory for itself, as in a new process
    if device.type == 'cuda':
        torch.cuda.empty_cache()

    args = replace_options(args, resume=True, resume_ckpt_file=paths['last.pth'])
    with quiet_logs():      # the first part has logged the same
        run = prepare_training(args, device, read_checkpoint(paths['last.pth']))
    limit_evaluations(args, run.loaders)
    trainer = train_shortly(args, run, epochs=2, steps=1)
    logger.info('last.pth is resumed, and 1 more step works')
    return DryRunResult(estimate, first_seconds, trainer.seconds[-1], peak, sizes, pair_count)


def train_shortly(args, run, epochs, steps):
    """Train with the first steps of each epoch, up to an epoch.

    Args:
        args: the options.
        run: a :class:`~processor.training_run.PreparedRun`.
        epochs: the number of the last epoch.
        steps: the number of steps of an epoch.

    Returns:
        The :class:`TimedTrainer`.
    """
    full = run.loaders.train
    loader = Loader(full.dataset, batch_sampler=FirstBatches(full.batch_sampler, steps), collate_fn=full.collate_fn,
                    **loader_settings(args))
    trainer = TimedTrainer(replace_options(args, num_epoch=epochs), run.model, loader,
                           build_run_evaluator(args, run), run.optimizer, run.scheduler, run.checkpointer)
    with quiet_logs():
        trainer.run(run.start_epoch)
    if not trainer.seconds:
        raise UserError('no training image of the first batches can be read; run python -m datasets.check to list the '
                        'broken ones')
    return trainer


class TimedTrainer(Trainer):
    """A :class:`~processor.processor.Trainer` that measures its steps.

    Attributes:
        seconds: the seconds of each step, without the time to read its batch.
    """

    def __init__(self, args, *parts):
        super().__init__(args, *parts)
        self.device, self.seconds, self.latest_batch = next(self.model.parameters()).device, [], None

    def train_step(self, batch, shard):
        self.latest_batch = batch, shard
        synchronize(self.device)
        start = time.perf_counter()
        super().train_step(batch, shard)
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - start)

    def measure_selection_seconds(self):
        """Measure the seconds per batch of the selection of clean pairs; 0 if no head selects them."""
        if self.clean_pairs.head is None:
            return 0.0
        batch, shard = self.latest_batch
        self.model.eval()
        start = time.perf_counter()
        with self.training_step.unsharded():
            compute_pair_losses(self.model, self.pair_states.add_values(batch, shard), shard)
        synchronize(self.device)
        return time.perf_counter() - start


@contextlib.contextmanager
def quiet_logs():
    """Log warnings and errors only, inside the ``with`` block: the figures of a few steps mean nothing."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def limit_evaluations(args, loaders):
    """Limit the evaluation to a few images of each dataset, and return the smallest fraction that is left."""
    settings = read_rerank_settings(args, '--val_rerank')
    count = max(EVALUATED_IMAGES, settings.count if isinstance(settings, PairScores) else 0)
    return min(limit_evaluation(images, captions, count) for images, captions in loaders.evaluations.values())


def limit_evaluation(images, captions, count):
    """Limit the loaders of a split to the first images and the same fraction of the captions; return the fraction."""
    image_count, caption_count = len(images.sampler), len(captions.sampler)
    kept = min(count, image_count)
    images.sampler.limit(kept)
    captions.sampler.limit(-(-caption_count * kept // image_count))
    if getattr(images.dataset, 'attributes', None):
        labels, prompts = images.dataset.attributes
        images.dataset.attributes = labels[:kept], prompts
    return kept / image_count


def describe_evaluated(loaders):
    counts = [(len(images.sampler), len(captions.sampler)) for images, captions in loaders.evaluations.values()]
    images, captions = map(sum, zip(*counts))
    return f'{images} images and {captions} captions'


def format_result(result, args, free_bytes, device):
    """The lines that a dry run prints at its end.

    Args:
        result: a :class:`DryRunResult`.
        args: the options.
        free_bytes: the free bytes of the disk of ``--output_dir``.
        device: the device of the model.
    """
    estimate, first = result.estimate, result.step_seconds[0]
    rate, workers = args.batch_size / estimate.step_seconds, estimate.workers
    lines = {'steps': f'{estimate.step_seconds:.2f} s (the first {first:.2f} s, after the resumption '
                      f'{result.resumed_seconds:.2f} s): {rate:.3g} images/s at batch {args.batch_size}'}
    if estimate.sample_seconds:
        speed = max(workers, 1) / estimate.sample_seconds
        verdict = ('fast enough' if workers and not estimate.waits_for_data else
                   'a step waits for them: raise --num_workers, or add --image_cache')
        lines['images'] = f'about {speed:.3g} images/s with {workers} workers; {verdict}'
    evaluation = format_duration(estimate.evaluation_seconds)
    lines['epoch'] = (f'about {format_duration(estimate.epoch_seconds)}: {result.pair_count:,} training pairs in '
                      f'{estimate.steps:,} steps; an evaluation about {evaluation}')
    lines['run'] = f'about {format_duration(estimate.run_seconds)}: {args.num_epoch} epochs'
    lines['memory'] = f'{format_bytes(result.peak_bytes)}, the peak of the process'
    if device.type == 'cuda':
        total = torch.cuda.get_device_properties(device).total_memory
        lines['memory'] = f'{format_bytes(result.peak_bytes)} of {format_bytes(total)}, the peak of tensors on the GPU'
    sizes = ', '.join(f'{name} {format_bytes(size)}' for name, size in result.checkpoint_bytes.items())
    # An old last.pth stays until the new one is complete.
    needed = sum(result.checkpoint_bytes.values()) + result.checkpoint_bytes['last.pth']
    disk = 'enough' if free_bytes > needed else f'a run needs {format_bytes(needed)}: free some space'
    lines['disk'] = f'{sizes}; {format_bytes(free_bytes)} are free, {disk}'
    return [*(f'{name:<8}{text}' for name, text in lines.items()),
            f'all of it works, and nothing is kept; an epoch takes about {format_duration(estimate.epoch_seconds)}']

"""A training run: its folder, its model and data, and the training loop. train.py calls :func:`run_training`."""
import contextlib
import logging
import os
import shutil
import time
from typing import NamedTuple

from datasets.build import build_training_loaders
from model import build_model
from model.backbones import backbone_class
from model.base_weights import add_base_weights, describe_tuned_from
from processor.evaluators import build_evaluator
from processor.loggers import require_packages
from processor.processor import do_train
from processor.progress import format_log_line
from solver import build_lr_scheduler, build_optimizer
from utils import comm
from utils.checkpoint import Checkpointer, init_from_checkpoint, is_reference_checkpoint, read_checkpoint
from utils.comm import pick_device
from utils.errors import UserError
from utils.iotools import lock_folder, save_train_configs
from utils.logger import setup_logger
from utils.options import replace_options, with_notes
from utils.rerank_options import read_rerank_settings
from utils.seeding import seed_all

logger = logging.getLogger('Pedestal.train')

FOLDER_KEY = 'run folder'   # key in torchrun's store


def run_training(args):
    """Start or resume the run that the options describe.

    If torchrun restarts the processes after a failure (``--max_restarts``), resume the run that failed.
    """
    device = pick_device(args.device)
    require_packages(args.logger)
    checkpoint, restarted_folder = None, comm.store_get(FOLDER_KEY)
    if restarted_folder and os.path.isfile(os.path.join(restarted_folder, 'last.pth')):
        args = replace_options(args, resume=True, resume_ckpt_file=os.path.join(restarted_folder, 'last.pth'))
    if args.resume:
        folder = os.path.dirname(os.path.abspath(args.resume_ckpt_file))
        checkpoint = read_checkpoint(args.resume_ckpt_file)
        if not is_reference_checkpoint(checkpoint):
            return train_in_folder(replace_options(args, output_dir=folder), device, checkpoint)
        args = with_notes(args, [*args.config.notes, f'{folder} is a run of a reference implementation and is not '
                                 'changed: the run continues in a new folder'])
    parent = os.path.join(args.output_dir, args.dataset_name)
    folder = get_run_folder(restarted_folder, parent, args.name) if comm.is_main_process() else None
    args = replace_options(args, output_dir=comm.broadcast_object(folder))
    try:
        train_in_folder(args, device, checkpoint)
    finally:
        # A finished run may have only one of them (--keep).
        has_checkpoint = any(os.path.exists(os.path.join(args.output_dir, name)) for name in ('last.pth', 'best.pth'))
        if comm.is_main_process() and not has_checkpoint:
            setup_logger('Pedestal', save_dir='', if_train=True)    # close the log: Windows cannot remove open files
            remove_run_folder(args.output_dir)


def get_run_folder(restarted_folder, parent, name):
    """Return the folder that the run had before a restart of torchrun, else a new one."""
    if restarted_folder and os.path.isdir(restarted_folder):
        return restarted_folder
    folder = make_run_folder(parent, name)
    comm.store_set(FOLDER_KEY, folder)
    return folder


def make_run_folder(parent, name):
    """Make ``<parent>/<time>_<name>``, with a number at the end if another run started in the same second."""
    stem = os.path.join(parent, f"{time.strftime('%Y%m%d_%H%M%S')}_{name}")
    for number in range(1000):
        folder = f'{stem}_{number}' if number else stem
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f'cannot make the output folder {folder}: {error.strerror}; '
                            'choose another --output_dir') from None
    raise UserError(f'cannot make the output folder {stem}: it exists, and so do {stem}_1 to {stem}_999; '
                    'choose another --name or --output_dir')


def remove_run_folder(folder):
    """Remove a run's folder, and its parents if they become empty."""
    shutil.rmtree(folder)
    for parent in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        try:
            os.rmdir(parent or '.')
        except OSError:  # it has other runs
            return


def train_in_folder(args, device, checkpoint=None):
    """Lock the run's folder ``args.output_dir`` and train.

    Args:
        args: the options.
        device: the device of the model.
        checkpoint: the content of ``args.resume_ckpt_file``, if the run is resumed.
    """
    lock = contextlib.nullcontext()
    if comm.is_main_process():
        lock = lock_folder(args.output_dir, 'if the run is still active there, wait for it or stop it')
    with lock:
        train(args, device, checkpoint)


def train(args, device, checkpoint):
    run = prepare_training(args, device, checkpoint)
    do_train(run.start_epoch, args, run.model, run.loaders.train, build_run_evaluator(args, run), run.optimizer,
             run.scheduler, run.checkpointer)


class PreparedRun(NamedTuple):
    """All that the training loop needs of a new or resumed run.

    Attributes:
        model: a :class:`~model.build.RetrievalModel` on its device.
        loaders: the :class:`~datasets.build.TrainingLoaders`.
        optimizer, scheduler: those of the model's parameters.
        checkpointer: the :class:`~utils.checkpoint.Checkpointer` of the run's folder.
        start_epoch: the first epoch to train, from 1.
    """
    model: object
    loaders: object
    optimizer: object
    scheduler: object
    checkpointer: Checkpointer
    start_epoch: int


def prepare_training(args, device, checkpoint=None):
    """Build the :class:`PreparedRun` of the options in the folder ``args.output_dir``, and log what it consists of.

    Args:
        args: the options.
        device: the device of the model.
        checkpoint: the content of ``args.resume_ckpt_file``, if the run is resumed.
    """
    setup_logger('Pedestal', args.output_dir, if_train=True, distributed_rank=comm.get_rank())
    world_size = comm.get_world_size()
    processes = [f'{world_size} processes'] if world_size > 1 else []
    logger.info(format_log_line(f'run folder {args.output_dir}', f'device {device}', *processes))
    for note in args.config.notes:
        logger.info('note: %s', note)
    seed_all(args.seed)

    with comm.main_process_first('data'):     # it writes caches that the other ranks read
        loaders = build_training_loaders(args, backbone_class(args))
    logger.info(format_log_line(f'data {args.dataset_name}', f'{len(loaders.train.dataset)} training pairs',
                                f'{loaders.num_classes} identities', f'{len(loaders.train)} steps per epoch'))
    model = build_initial_model(args, loaders.num_classes, checkpoint)
    model.image_stats = loaders.train.dataset.image_stats    # a preprocessing can have other ones than the backbone
    model.to(device)
    logger.info(format_log_line(f'model {parameter_count(model) / 1e6:.1f}M parameters',
                                *describe_trained_parameters(args, model), f'losses {args.loss_names}'))

    optimizer = build_optimizer(args, model)
    scheduler = build_lr_scheduler(args, optimizer)
    checkpointer = Checkpointer(model, optimizer, scheduler, args.output_dir, save_to_disk=comm.is_main_process())
    start_epoch = 1
    if args.resume:
        start_epoch = checkpointer.resume(args.resume_ckpt_file, checkpoint)['epoch']
    has_config = os.path.exists(os.path.join(args.output_dir, 'configs.yaml'))
    if comm.is_main_process() and (start_epoch <= args.num_epoch or not has_config):
        save_train_configs(args.output_dir, replace_options(args, **model.backbone.resolved_options))
    return PreparedRun(model, loaders, optimizer, scheduler, checkpointer, start_epoch)


def build_run_evaluator(args, run):
    """Build the evaluator of a :class:`PreparedRun`, with the re-ranking of ``--val_rerank``.

    Raises:
        UserError: ``--val_rerank`` cannot work with the model or with a dataset.
    """
    return build_evaluator(run.loaders.evaluations, read_rerank_settings(args, '--val_rerank'), run.model)


def build_initial_model(args, num_classes, checkpoint):
    """Build the model of a new run with its initial weights, or of a resumed run.

    Args:
        args: the options.
        num_classes: number of training identities.
        checkpoint: the content of ``args.resume_ckpt_file``, whose weights the caller loads; None for a new run.
    """
    source = args.resume_ckpt_file if args.resume else args.init_from
    stored = checkpoint if args.resume else read_checkpoint(source) if source else None
    complete = add_base_weights(stored, args, source) if stored else None
    model = build_model(args, num_classes, weights_to_load=complete['model'] if complete else None)
    model.tuned_from = describe_tuned_from(args, model, stored)
    if complete and not args.resume:
        init_from_checkpoint(model, source, complete['model'])
    return model


def describe_trained_parameters(args, model):
    """Describe how many parameters train, in a list for the log; an empty list if all train."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for name, parameter in model.named_parameters() if name in model.frozen_names)
    tuning = [f'tuning {args.tuning}'] if args.tuning != 'none' else []
    freeze = [f'{frozen / 1e6:.2f}M frozen (--freeze)'] if args.freeze else []
    return [', '.join([*tuning, f'{trained / 1e6:.2f}M trained', *freeze])] if tuning or freeze else []


def parameter_count(model):
    """Count the model's parameters, without those that only training needs, such as a momentum encoder's."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in model.training_only)

"""A training run: its folder, its parts, and the training loop. train.py calls :func:`run_training` with the options."""
import contextlib
import logging
import os
import shutil
import time

from datasets.build import build_training_loaders
from model import build_model
from processor.evaluators import build_evaluator
from processor.processor import do_train
from solver import build_lr_scheduler, build_optimizer
from utils import comm
from utils.checkpoint import Checkpointer, is_released, read_checkpoint, start_from
from utils.comm import pick_device
from utils.errors import UserError
from utils.iotools import lock_folder, save_train_configs
from utils.logger import setup_logger
from utils.seeding import seed_all

logger = logging.getLogger('Pedestal.train')


def run_training(args):
    """The run that the options describe, new or resumed, or the one in which a process failed, where torchrun starts all again."""
    device = pick_device(args.device)
    resumed, begun = None, comm.store_get('run folder')
    if begun and os.path.isfile(os.path.join(begun, 'last.pth')):
        args.resume, args.resume_ckpt_file = True, os.path.join(begun, 'last.pth')
    if args.resume:
        folder = os.path.dirname(os.path.abspath(args.resume_ckpt_file))
        resumed = read_checkpoint(args.resume_ckpt_file)
        if not is_released(resumed):
            args.output_dir = folder
            return train(args, device, resumed)
        args.notes.append(f'{folder} is of a released run and stays as it is: the run goes on in a new folder')
    parent = os.path.join(args.output_dir, args.dataset_name)
    args.output_dir = comm.broadcast_object(begun_folder(begun, parent, args.name) if comm.is_main_process() else None)
    try:
        train(args, device, resumed)
    finally:
        if comm.is_main_process() and not os.path.exists(os.path.join(args.output_dir, 'last.pth')):
            setup_logger('Pedestal', save_dir='', if_train=True)    # close the log: Windows removes no open file
            remove_folder(args.output_dir)  # nothing was trained: leave no litter


def begun_folder(begun, parent, name):
    """A new run's folder, or the one in which it was ``begun`` before torchrun started it again."""
    if begun and os.path.isdir(begun):
        return begun
    folder = new_folder(parent, name)
    comm.store_set('run folder', folder)
    return folder


def new_folder(parent, name):
    """Make ``<parent>/<time>_<name>``, with a number behind it where two runs start in the same second."""
    stem = os.path.join(parent, f"{time.strftime('%Y%m%d_%H%M%S')}_{name}")
    for number in range(1000):
        folder = f'{stem}_{number}' if number else stem
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f'cannot make the output folder {folder}: {error.strerror}; choose another --output_dir') from None
    raise UserError(f'cannot make a folder like {stem}: they are all there')


def remove_folder(folder):
    """Remove a run's folder, and those above it that it leaves empty."""
    shutil.rmtree(folder)
    for parent in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        try:
            os.rmdir(parent or '.')
        except OSError:  # other runs are in it
            return


def train(args, device, resumed=None):
    """``resumed``: the content of ``args.resume_ckpt_file``."""
    alone = lock_folder(args.output_dir, 'is the run going on there already? Wait for it, or stop it')
    with alone if comm.is_main_process() else contextlib.nullcontext():
        train_alone(args, device, resumed)


def train_alone(args, device, resumed):
    setup_logger('Pedestal', args.output_dir, if_train=True, distributed_rank=comm.get_rank())
    several = f', {comm.get_world_size()} processes' if comm.get_world_size() > 1 else ''
    logger.info('run folder %s, device %s%s', args.output_dir, device, several)
    for line in args.notes:
        logger.info('note: %s', line)
    seed_all(args.seed)

    with comm.main_process_first('data'):     # it makes the caches that the others find
        loaders = build_training_loaders(args)
    started = read_checkpoint(args.init_from)['model'] if args.init_from and not args.resume else None
    model = build_model(args, loaders.num_classes, replaced_by=resumed['model'] if args.resume else started)
    if started is not None:
        start_from(model, args.init_from, started)
    model.to(device)
    logger.info('%.1fM parameters, losses %s', parameter_count(model) / 1e6, args.loss_names)

    optimizer = build_optimizer(args, model)
    scheduler = build_lr_scheduler(args, optimizer)
    checkpointer = Checkpointer(model, optimizer, scheduler, args.output_dir, save_to_disk=comm.is_main_process())
    evaluator = build_evaluator(loaders.evaluations)
    start_epoch = 1
    if args.resume:
        start_epoch = checkpointer.resume(args.resume_ckpt_file, resumed)['epoch']
    if comm.is_main_process() and (start_epoch <= args.num_epoch or not os.path.exists(os.path.join(args.output_dir, 'configs.yaml'))):
        save_train_configs(args.output_dir, args)
    do_train(start_epoch, args, model, loaders.train, evaluator, optimizer, scheduler, checkpointer)


def parameter_count(model):
    """How many numbers the model is made of, without those that training alone needs, such as a momentum encoder's."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in model.training_only)

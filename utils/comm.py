"""Which process this is, with or without torch.distributed."""
import os

import torch
import torch.distributed as dist

from utils.errors import UserError


def _distributed():
    return dist.is_available() and dist.is_initialized()


def get_rank():
    """This process's number, 0 without torch.distributed."""
    return dist.get_rank() if _distributed() else 0


def get_world_size():
    """How many processes there are, 1 without torch.distributed."""
    return dist.get_world_size() if _distributed() else 1


def synchronize():
    """Wait until all processes are here."""
    if get_world_size() > 1:
        dist.barrier()


def refuse_several_gpus():
    """Pedestal trains on one GPU: the losses compare each sample with the whole batch, and the released code's several
    GPUs each saw only their own part of it."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world > 1:
        raise UserError(f'started by torchrun with {world} processes, and training runs on one GPU; start train.py with python')


def pick_device(name):
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<n>`` -> torch.device; a GPU that isn't there raises :class:`UserError`."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown --device '{name}'; use auto, cpu, cuda or cuda:<n>") from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {name}: PyTorch sees no GPU here; use --device cpu, or check the driver and the PyTorch build')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0')
    return device

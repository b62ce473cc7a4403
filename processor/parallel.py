"""Passes through a model that several processes train together."""
import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import comm


def alone(compute, learns=False, last=False):
    """The ``passes`` of a process by itself; see :func:`synchronised`."""
    return compute()


def synchronised(model):
    """How a step calls its passes through the model: ``passes(compute, learns, last)`` is ``compute()``.

    Args of ``passes``:
        compute: a function without arguments.
        learns: whether it returns a loss to go backward from.
        last: whether that loss is the step's last: the backward pass from it averages the parameters' gradients, and what earlier ones left
            in them, over the processes, by PyTorch's DistributedDataParallel, while it goes on computing.
    """
    if comm.get_world_size() == 1:
        return alone
    calls = Calls(model)
    # PyTorch warns, on each process, where a pass reads every parameter; most losses have some that theirs leaves out.
    calls.unread = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)    # newer versions call broadcast_buffers otherwise
        together = DistributedDataParallel(calls, broadcast_buffers=False, find_unused_parameters=True)
    return lambda compute, learns=False, last=False: (together if last else alone)(compute)


class Calls(nn.Module):
    """``Calls(model)(compute)`` is ``compute()``: a step calls more of a model than its ``forward``."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, compute):
        return compute()

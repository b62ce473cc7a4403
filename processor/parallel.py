"""How several processes run forward and backward passes through one model."""
import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import comm


def run_locally(compute, is_last=False):
    """Call ``compute()``. This is the runner of a single process; see :func:`build_ddp_runner`."""
    return compute()


def build_ddp_runner(model):
    """Build the function ``runner(compute, is_last)`` that runs the forward passes of a training step.

    The runner returns ``compute()``. Its arguments are:

    - ``compute``: a function without arguments, such as a forward pass through the model.
    - ``is_last``: whether ``compute()`` returns the last loss of the step. Its backward pass averages the parameters'
      gradients over ranks with DistributedDataParallel. Gradients of earlier backward passes are averaged with it.
    """
    if comm.get_world_size() == 1:
        return run_locally
    module = FunctionRunner(model)
    # DistributedDataParallel warns if every parameter is used. This parameter never is.
    module.unused = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)    # newer PyTorch versions rename broadcast_buffers
        ddp = DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
    return lambda compute, is_last=False: (ddp if is_last else run_locally)(compute)


class FunctionRunner(nn.Module):
    """A module whose ``forward(compute)`` returns ``compute()``.

    A training step calls more methods of the model than ``forward``; each of them can be ``compute``.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, compute):
        return compute()

"""``--shard``: each of several processes holds a part of the parameters and of the optimizer's state, by PyTorch's FSDP2."""
import contextlib
import inspect
import logging

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from model.heads import Head
from processor.parallel import Calls
from utils import comm, precision
from utils.errors import UserError

logger = logging.getLogger('Pedestal.train')


class Sharded:
    """``passes`` as :func:`processor.parallel.synchronised` gives them, with a part of each parameter on each process (Zhao et al. 2023,
    arXiv 2304.11277).

    A transformer block is whole while it computes, the rest of the model for the whole pass. The optimizer learns the parts: whatever it
    knows of the parameters, such as a resumed run's moments, is divided as they are. Parameters that are a single number, such as a
    temperature, stay whole. Processes call passes alike, however many rows they have.

    Args:
        model: a :class:`~model.build.RetrievalModel` on its device, whole and the same on all processes.
        optimizer: of its parameters; from here on it has the parts instead.

    Raises:
        UserError: a model that cannot be divided (:func:`refuse_shard`).
    """

    def __init__(self, model, optimizer):
        refuse_shard(model)
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        self.mesh = mesh = init_device_mesh(next(model.parameters()).device.type, (comm.get_world_size(),))
        numbers = {name: parameter for name, parameter in model.named_parameters() if not parameter.dim()}
        kept = {'ignored_params': set(numbers.values())} if numbers else {}
        self.blocks = [fully_shard(block, mesh=mesh, **kept) for block, _ in model.blocks()]
        calls = Calls(model)
        calls.heads = nn.ModuleList(model.heads)    # those that hold a parameter themselves get its parts, too
        self.root = fully_shard(calls, mesh=mesh, **kept)
        self.root(lambda: None)    # it makes itself the root of all, which the first one called is
        self.root.reshard()
        self.numbers = [(number, nn.Parameter(self.on_all(number.detach()))) for number in numbers.values()]
        parts = {**dict(model.named_parameters()), **dict(zip(numbers, (part for _, part in self.numbers)))}
        optimizer.register_step_pre_hook(self.hand_over)
        for group in optimizer.param_groups:
            for number, parameter in enumerate(group['params']):
                group['params'][number] = part = parts[name_of[id(parameter)]]
                if parameter in optimizer.state:
                    optimizer.state[part] = {name: value if name == 'step' else divided(value, part)
                                             for name, value in optimizer.state.pop(parameter).items()}
        held = sum(part.to_local().numel() for part in parts.values())
        logger.info('sharded: this process holds %.1fM of %.1fM parameters', held / 1e6, sum(map(torch.numel, parts.values())) / 1e6)

    def __call__(self, compute, learns=False, last=False):
        return self.root(compute)

    def on_all(self, value):
        """What all processes have, as the optimizer learns it beside parts; it shares the value's memory."""
        return DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)

    def hand_over(self, *_):
        """Before the optimizer's step: the mean of all processes' gradients of the single numbers."""
        learned = [(number, part) for number, part in self.numbers if number.grad is not None]
        if not learned:
            return
        gradients = torch.stack([number.grad for number, _ in learned])
        dist.all_reduce(gradients)
        for (number, part), gradient in zip(learned, gradients / comm.get_world_size()):
            part.grad, number.grad = self.on_all(gradient), None

    @contextlib.contextmanager
    def whole(self):
        """Within, every process has the whole model, and calls it as it likes."""
        for part in (self.root, *self.blocks):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in (self.root, *self.blocks):
                part.set_reshard_after_forward(part is not self.root, recurse=False)
                part.reshard()


def divided(value, part):
    """This process's part of a tensor of a parameter's shape, as that is divided; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.shape != part.shape:
        return value
    return distribute_tensor(value.to(part.device), part.device_mesh, part.placements)


def shards_on_cpus():
    """Whether this PyTorch's FSDP2 works without GPUs, as that of 2.6 does not."""
    return hasattr(torch.cpu.current_stream(), 'record_event')


def refuse_shard(model):
    """Raise UserError where ``--shard`` cannot divide a model."""
    device = next(model.parameters()).device
    if device.type == 'cpu' and not shards_on_cpus():
        raise UserError(f'--shard on CPUs needs a newer PyTorch than {torch.__version__}')
    if precision.amp_dtype(model.amp, device) is torch.float16:
        raise UserError('--shard does not scale gradients, as fp16 needs it: give --amp bf16 or off, or leave --shard out')
    if any(block._compiled_call_impl for block, _ in model.blocks()):
        raise UserError('--shard gathers a block when it is called, which --compile compiles away: leave out one of them')
    for head in model.heads:
        if type(head).after_step is not Head.after_step:
            raise UserError(f"--shard leaves no whole parameters between steps, and the loss '{head.names[0]}' changes some there: leave "
                            'out one of them')
    single = [name for name, parameter in model.named_parameters() if not parameter.dim()]
    if single and 'ignored_params' not in inspect.signature(fully_shard).parameters:
        raise UserError(f'--shard with {single[0]}, a parameter that is a single number, needs a newer PyTorch than {torch.__version__}')

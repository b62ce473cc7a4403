"""``--shard``: parameters and optimizer state are sharded across ranks with PyTorch's FSDP2."""
import contextlib
import inspect
import logging

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from model.heads import HasTrainingOnlyParts
from processor.progress import format_log_line
from processor.step import Step
from utils import comm, precision
from utils.errors import UserError

logger = logging.getLogger('Pedestal.train')


class ShardedStep(Step):
    """A training step with sharded parameters. See :class:`processor.step.Step` for its arguments and results.

    FSDP2 (Zhao et al. 2023, arXiv 2304.11277) gathers a transformer block's parameters while the block computes. It
    gathers the other parameters for the whole forward pass. The optimizer gets the shards, and its state is sharded in
    the same way. Scalar parameters, such as a temperature, are replicated. All ranks must make the same calls, also
    without rows of their own. The parameters must be equal on all ranks.

    Raises:
        UserError: the model cannot be sharded (:func:`validate_sharding`).
    """

    def wrap_model(self):
        model, optimizer = self.model, self.optimizer
        validate_sharding(model)
        parameters = dict(model.named_parameters())
        names = {id(parameter): name for name, parameter in parameters.items()}
        device_type = next(model.parameters()).device.type
        self.mesh = init_device_mesh(device_type, (comm.get_world_size(),))
        scalars = {name: parameter for name, parameter in parameters.items() if not parameter.dim()}
        ignored = {'ignored_params': set(scalars.values())} if scalars else {}
        self.blocks = [fully_shard(block, mesh=self.mesh, **ignored) for block, _ in model.blocks()]
        root = fully_shard(ModelAndHeads(model), mesh=self.mesh, **ignored)
        root(None, None)    # FSDP2's root is the module that is called first
        root.reshard()
        self.scalars = [(scalar, nn.Parameter(self.replicate(scalar.detach()))) for scalar in scalars.values()]
        shards = {**dict(model.named_parameters()), **dict(zip(scalars, (replica for _, replica in self.scalars)))}
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group['params']):
                group['params'][index] = shard = shards[names[id(parameter)]]
                if parameter in optimizer.state:
                    optimizer.state[shard] = {name: value if name == 'step' else shard_like(value, shard)
                                              for name, value in optimizer.state.pop(parameter).items()}
        local = sum(shard.to_local().numel() for shard in shards.values())
        total = sum(map(torch.numel, shards.values()))
        logger.info(format_log_line('sharded', f'{local / 1e6:.1f}M of {total / 1e6:.1f}M parameters on this rank'))
        return root

    def replicate(self, value):
        """Wrap a tensor that all ranks have, so that the optimizer updates it with the shards. The memory is shared."""
        return DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)

    def prepare_gradients(self):
        self.average_scalar_gradients()
        super().prepare_gradients()

    def average_scalar_gradients(self):
        """Average the gradients of the scalar parameters over ranks."""
        pairs = [(scalar, replica) for scalar, replica in self.scalars if scalar.grad is not None]
        if not pairs:
            return
        gradients = torch.stack([scalar.grad for scalar, _ in pairs])
        dist.all_reduce(gradients)
        for (scalar, replica), gradient in zip(pairs, gradients / comm.get_world_size()):
            replica.grad, scalar.grad = self.replicate(gradient), None

    @contextlib.contextmanager
    def unsharded(self):
        """Gather all parameters on every rank inside the ``with`` block."""
        modules = (self.wrapped_model, *self.blocks)
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.set_reshard_after_forward(module is not self.wrapped_model, recurse=False)
                module.reshard()


class ModelAndHeads(nn.Module):
    """A model whose heads are submodules, so that their references to parameters are also sharded."""

    def __init__(self, model):
        super().__init__()
        self.model, self.heads = model, nn.ModuleList(model.heads)

    def forward(self, batch, shard):
        return None if batch is None else self.model(batch, shard)


def shard_like(value, shard):
    """Shard a tensor as a parameter of the same shape; return any other value unchanged."""
    if not isinstance(value, torch.Tensor) or value.shape != shard.shape:
        return value
    return distribute_tensor(value.to(shard.device), shard.device_mesh, shard.placements)


def supports_cpu_sharding():
    """Whether FSDP2 of this PyTorch version works without GPUs. That of 2.6 does not."""
    return hasattr(torch.cpu.current_stream(), 'record_event')


def validate_sharding(model):
    """Raise UserError if a model cannot be trained with ``--shard``."""
    device = next(model.parameters()).device
    if device.type == 'cpu' and not supports_cpu_sharding():
        raise UserError(f'--shard on CPUs needs a newer PyTorch than {torch.__version__}: leave --shard out')
    if precision.amp_dtype(model.amp, device) is torch.float16:
        raise UserError('--shard does not support --amp fp16, because it does not scale gradients: give --amp bf16 or '
                        'off, or leave --shard out')
    if any(block._compiled_call_impl for block, _ in model.blocks()):
        raise UserError('--shard cannot be combined with --compile, because compiled blocks do not gather their '
                        'parameters: leave out one of them')
    for head in model.heads:
        if any(isinstance(part, HasTrainingOnlyParts) for part in (head, *head.children())):
            raise UserError(f"--shard does not support the loss '{head.names[0]}', which changes parameters after a "
                            'step: leave out one of them')
    scalars = [name for name, parameter in model.named_parameters() if not parameter.dim()]
    if scalars and 'ignored_params' not in inspect.signature(fully_shard).parameters:
        raise UserError(f'--shard needs a newer PyTorch than {torch.__version__} for the scalar parameter '
                        f'{scalars[0]}: leave --shard out')

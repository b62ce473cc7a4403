"""Count the memory of a training step at any batch size without computing it.

A step of the recipe runs on PyTorch's fake tensors, which have shapes and no values: forward, backward and optimizer.
Every tensor that exists at the same time is counted. The kernels are those of a CPU, whose fused attention saves the
same tensors as a GPU's. The gaps of the allocator, the workspaces of libraries and the CUDA context (about half a
gigabyte) are not counted.
"""
import contextlib
import itertools
import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from datasets.device_augmentation import device_constants
from model import build_model
from processor.build import build_step
from run_scripts.benchmark.recipe_cost import (count_flops, count_parameters, dataset_sizes, random_weights_choice,
                                               synthetic_batch)
from solver import build_optimizer
from utils.batch_shard import is_shared_field
from utils.options import get_args
from utils.seeding import seed_all

SYNTHETIC_SIZE = 4      # captions of the batch whose rows are repeated; a multiple of --num_instance


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of all tensors that exist, inside the ``with`` block.

    Attributes:
        current: the bytes of the tensors that exist now.
        changes: the bytes of each tensor that was made, and minus those of each one that was freed, in order.
    """

    def __init__(self):
        super().__init__()
        self.current, self.changes = 0, []
        self.counted = set()    # of storages

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:      # a value that a fake tensor does not have
            return args[0].dtype.is_floating_point and 0.0
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, result)
        return result

    def count(self, tensor):
        """Count a tensor's memory until it is freed. Several tensors may share it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.counted:
            self.counted.add(key)
            weakref.finalize(storage, self.free, key, size)
            self.change(size)

    def free(self, key, size):
        self.counted.discard(key)
        self.change(-size)

    def change(self, size):
        self.current += size
        self.changes.append(size)


class WithoutInitialization(TorchFunctionMode):
    """Skips the random initialization of weights, inside the ``with`` block. Memory is reserved but not touched."""

    # PyTorch draws values of trunc_normal_ until all are within its bounds, which untouched memory may never be.
    trunc_normal_ = staticmethod(nn.init.trunc_normal_)
    SKIPPED = ('normal_', 'uniform_', 'trunc_normal_', 'kaiming_uniform_', 'xavier_uniform_', 'xavier_normal_')

    def __enter__(self):
        nn.init.trunc_normal_ = lambda tensor, *args, **kwargs: tensor
        return super().__enter__()

    def __exit__(self, *error):
        nn.init.trunc_normal_ = self.trunc_normal_
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, '__name__', '') in self.SKIPPED:
            return args[0] if args else kwargs['tensor']
        return func(*args, **(kwargs or {}))


def count_step_memory(words, batch_sizes):
    """Count the memory of training steps.

    Args:
        words: the options of train.py.
        batch_sizes: the batch sizes.

    Returns:
        ``{'parameters', 'trained', 'state_bytes', 'peak_bytes': {batch size: bytes}}``. The state is that of the
        weights and the optimizer between two steps.

    Raises:
        UserError: the options are invalid.
    """
    options, batch = synthetic_batch([*words, '--device', 'cpu'], SYNTHETIC_SIZE)
    model, mode = build_fake_model(options, dataset_sizes(get_args(words))[0])
    model.trim_padding = lambda caption_ids: caption_ids
    prepare_on_host, model.prepare_on_host = model.prepare_on_host, lambda batch: {}    # fake tensors have no values
    batches = {}
    for size in {min(batch_sizes), max(batch_sizes)}:
        rows = repeat_rows(batch, size)
        batches[size] = {name: mode.from_tensor(value) for name, value in {**rows, **prepare_on_host(rows)}.items()}
    counter, changes = MemoryCounter(), {}
    for tensor in [*model.parameters(), *model.buffers()]:
        counter.count(tensor)
    with separate_constants(), mode, counter:
        step = build_step(model.train(), build_optimizer(options, model))
        make_optimizer_state(step.optimizer)
        state_bytes = counter.current
        for size, batch in batches.items():
            step.optimizer.zero_grad(set_to_none=True)
            counter.changes = []
            step(batch)
            changes[size] = counter.changes
    peaks = {size: state_bytes + find_peak(changes, size) for size in batch_sizes}
    return {**count_parameters(model), 'state_bytes': state_bytes, 'peak_bytes': peaks}


@contextlib.contextmanager
def separate_constants():
    """Let a step compute its cached constants anew, inside the ``with`` block and after it.

    Fake tensors cannot be combined with others, in the steps of the block or in later steps of this process.
    """
    device_constants.cache_clear()
    try:
        yield
    finally:
        device_constants.cache_clear()


def find_peak(changes, size):
    """The largest memory of a step at a batch size, above the memory before it.

    The same tensors are made and freed at each batch size, and each grows linearly.

    Args:
        changes: ``{batch size: MemoryCounter.changes}`` of the smallest and the largest batch.
        size: the batch size.

    Example:
        >>> find_peak({10: [30, -10, 10, -30], 30: [90, -30, 10, -70]}, 20)
        60.0
    """
    (first, low), (last, high) = min(changes.items()), max(changes.items())
    weight = 0.0 if first == last else (size - first) / (last - first)
    if len(low) != len(high):       # the values decide which operations run
        return (1 - weight) * max(itertools.accumulate(low)) + weight * max(itertools.accumulate(high))
    return max(itertools.accumulate((1 - weight) * a + weight * b for a, b in zip(low, high)))


def count_recipe(words):
    """Count parameters and FLOPs of a recipe: see :func:`~run_scripts.benchmark.recipe_cost.measure_recipe`.

    Args:
        words: the options of train.py.
    """
    recipe = get_args(words)
    options = get_args([*words, '--device', 'cpu', '--pretrain_choice',
                        random_weights_choice(recipe.pretrain_choice)])
    model, mode = build_fake_model(options, dataset_sizes(recipe)[0])
    with separate_constants(), mode:
        return {**count_parameters(model), **count_flops(model, options)}


def build_fake_model(options, identities):
    """``(model, mode)``: a model whose parameters and buffers are fake tensors of the mode."""
    seed_all(options.seed)
    with WithoutInitialization():
        model = build_model(options, identities)
    mode = FakeTensorMode()
    replace_by_fakes(model, mode)
    return model, mode


def make_optimizer_state(optimizer):
    """Update with gradients of any values, so that the optimizer has its state."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def replace_by_fakes(model, mode):
    """Replace the parameters and buffers of a model by fake tensors. Shared ones stay shared."""
    fakes = {}
    modules = itertools.chain(model.modules(), *(head.modules() for head in model.heads))
    for module in modules:      # the parts of heads are also registered in the model
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in fakes:
                        fakes[id(tensor)] = tensor, mode.from_tensor(tensor)
                    tensors[name] = fakes[id(tensor)][1]


def repeat_rows(batch, size):
    """Repeat the rows of a batch up to a size. Repeated pairs get other identities and indices."""
    rows = len(batch['pids'])
    copies = -(-size // rows)
    repeated = {}
    for name, value in batch.items():
        if is_shared_field(name):
            repeated[name] = value
            continue
        step = int(value.max()) + 1 if name in ('pids', 'image_ids', 'index') else 0
        values = [value + copy * step for copy in range(copies)]
        repeated[name] = torch.cat(values)[:size]
    return repeated

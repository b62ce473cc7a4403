"""Count the memory of a training step from the tensors that autograd saves."""
from dataclasses import replace

import torch

from run_scripts.benchmark.workload import TrainingSteps, build_reference_model, recipe_options, synthetic_batches

MEMORY_BATCH_SIZE = 64   # samples whose memory is added up: the recipe's batch


def count_memory(variant, setting):
    """Count the bytes of a training variant in the precision of a GPU, on any device.

    Args:
        variant: a :class:`~run_scripts.benchmark.settings.Variant`.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.

    Returns:
        A dict. 'state_bytes' is the memory of weights, gradients and the optimizer's state. 'once_bytes' and
        'sample_bytes' are what the forward pass saves for the gradient, per batch and per sample. 'held' is the
        number of samples whose activations exist at a time. 'total_bytes' is the sum.
    """
    setting = replace(setting, device='cpu', amp='bf16', batches=1)
    args = recipe_options(setting, *variant.flags)
    if variant.is_reference:
        model = build_reference_model(args).convert_weights_to_half()
    else:
        model = TrainingSteps(args, variant.switch).model
    bytes_of_2, bytes_of_6 = (
        saved_bytes(model, *synthetic_batches(replace(setting, batch_size=size), variant)) for size in (2, 6))
    sample_bytes = (bytes_of_6 - bytes_of_2) // 4
    once_bytes, held = bytes_of_2 - 2 * sample_bytes, args.micro_batch or MEMORY_BATCH_SIZE
    # A weight, its gradient and Adam's two moments.
    state_bytes = sum(4 * parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return {'state_bytes': state_bytes, 'once_bytes': once_bytes, 'sample_bytes': sample_bytes, 'held': held,
            'total_bytes': state_bytes + once_bytes + held * sample_bytes}


def saved_bytes(model, batch):
    """Bytes that a forward pass saves for the gradient, without parameters."""
    parameters, saved = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def record(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage   # keeps the storage, so that no other one gets its address
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        model(batch)
    return sum(storage.nbytes() for storage in saved.values())

"""The memory of a training step, counted rather than measured: what autograd keeps."""
from dataclasses import replace

import torch

from run_scripts.benchmark.workload import Training, new_released_model, recipe, synthetic_batches

HELD = 64   # samples whose memory is added up: the recipe's batch


def count_memory(way, setting):
    """Bytes of a way to train, counted in the precision of a GPU on any device: of weights, gradients and the optimizer's state, and
    what the forward pass keeps for the gradient: once, and for each sample."""
    setting = replace(setting, device='cpu', amp='bf16', batches=1)
    args = recipe(setting, *way.flags)
    model = new_released_model(args).half_weights() if way.released else Training(args, way.switch).model
    few, more = (kept_bytes(model, *synthetic_batches(replace(setting, batch_size=size), way)) for size in (2, 6))
    sample = (more - few) // 4
    once, held = few - 2 * sample, args.micro_batch or HELD
    state = sum(4 * parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)   # Adam has two moments
    return {'state_bytes': state, 'once_bytes': once, 'sample_bytes': sample, 'held': held, 'total_bytes': state + once + held * sample}


def kept_bytes(model, batch):
    """Bytes that a forward pass keeps for the gradient, parameters aside."""
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage   # held, so that no other one gets its address
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(storage.nbytes() for storage in kept.values())

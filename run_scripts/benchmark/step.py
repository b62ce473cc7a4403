"""Measure the time and the memory of a training step, and count its FLOPs."""
import itertools
import statistics

from model.clip_weights import shape_named
from run_scripts.benchmark.machine import measure_time
from run_scripts.benchmark.reference import ReferenceTrainer
from run_scripts.benchmark.workload import (
    IDENTITIES, TrainingSteps, build_reference_model, recipe_options, synthetic_batches)
from utils.machine import peak_bytes


def measure_step(variant, setting):
    """Measure the training steps of a variant. See :mod:`run_scripts.benchmark.workload` for both arguments."""
    batches = synthetic_batches(setting, variant)
    cycle, initial_bytes = itertools.cycle(batches), peak_bytes(setting.device)
    step = (build_reference_step if variant.is_reference else build_step)(setting, variant)

    def run_steps():
        for batch in itertools.islice(cycle, setting.steps):
            step(batch)
    timing, _ = measure_time(run_steps, *setting.pace, warm_up=2)   # the peak of memory is constant from the second on
    flops = count_step_flops(recipe_options(setting), mean_masked_tokens(batches))
    return {**timing, 'samples': setting.batch_size * setting.steps, 'steps': setting.steps,
            'peak_bytes': peak_bytes(setting.device) - initial_bytes, 'model_flops': sum(flops.values())}


def build_step(setting, variant):
    """A function that trains on a batch, as :meth:`Trainer.train_epoch` does."""
    return TrainingSteps(recipe_options(setting, *variant.flags), variant.switch)


def build_reference_step(setting, variant):
    args = recipe_options(setting)
    return ReferenceTrainer(args, build_reference_model(args).train()).train_step


def count_step_flops(args, masked_tokens):
    """Count the FLOPs of the matrix products in a training step, forward and backward.

    A multiplication and an addition are two FLOPs. Nothing is computed twice, the masked language model scores only
    masked tokens, and attention counts the full square.

    Args:
        args: the options of the recipe.
        masked_tokens: the number of masked tokens per batch.

    Returns:
        ``{part of the model: FLOPs}``
    """
    shape = shape_named(args.pretrain_choice)
    width, patch, batch, length = shape.embed_dim, shape.vision_patch_size, args.batch_size, args.text_length
    rows, columns = ((size - patch) // args.stride_size + 1 for size in args.img_size)
    tokens = 1 + rows * columns

    def blocks(layers, length, width):
        return layers * (24 * length * width ** 2 + 4 * length ** 2 * width)
    convolution = 2 * rows * columns * 3 * patch ** 2 * shape.vision_width
    image = blocks(shape.vision_layers, tokens, shape.vision_width) + 2 * tokens * shape.vision_width * width
    text = blocks(shape.text_layers, length, shape.text_width) + 2 * length * shape.text_width * width
    cross = (4 * (length + tokens) * width ** 2 + 4 * length * tokens * width
             + blocks(args.cmt_depth, length, width))
    heads = (2 * masked_tokens * (width ** 2 + width * args.vocab_size)    # mlm
             + 4 * batch * width * IDENTITIES + 2 * batch ** 2 * width)    # id, sdm
    # The backward pass needs twice the forward pass, for inputs and for weights. Images need no gradient.
    return {'image encoder': batch * (3 * image + 2 * convolution), 'text encoder': 3 * batch * text,
            'cross encoder': 3 * batch * cross, 'heads and losses': 3 * heads}


def mean_masked_tokens(batches):
    """The mean number of masked tokens per batch."""
    return statistics.mean(int((batch['mlm_labels'] > 0).sum()) for batch in batches)

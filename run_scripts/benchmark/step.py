"""The training step: how long it takes, and how many FLOPs it needs."""
import itertools
import statistics

from model.clip_weights import shape_named
from run_scripts.benchmark.machine import peak_bytes, timed
from run_scripts.benchmark.released_way import ReleasedTrainer
from run_scripts.benchmark.workload import IDENTITIES, Training, new_released_model, recipe, synthetic_batches


def measure_step(way, setting):
    batches = synthetic_batches(setting, way)
    cycle, before = itertools.cycle(batches), peak_bytes(setting.device)
    step = (released_step if way.released else our_step)(setting, way)

    def steps():
        for batch in itertools.islice(cycle, setting.steps):
            step(batch)
    timing, _ = timed(steps, *setting.pace, warm_up=2)   # memory settles in the second
    flops = step_flops(recipe(setting), words_chosen(batches))
    return {**timing, 'samples': setting.batch_size * setting.steps, 'steps': setting.steps,
            'peak_bytes': peak_bytes(setting.device) - before, 'model_flops': sum(flops.values())}


def our_step(setting, way):
    """A function that trains on a batch, as :meth:`Trainer.train_epoch` does."""
    return Training(recipe(setting, *way.flags), way.switch)


def released_step(setting, way):
    args = recipe(setting)
    return ReleasedTrainer(args, new_released_model(args).train()).train_step


def step_flops(args, words):
    """``{part: FLOPs}`` that the products of matrices in one training step of the recipe need, forward and backward. A multiplication
    and an addition are two, nothing is computed twice, mlm scores the ``words`` chosen alone, and attention counts the whole square."""
    shape = shape_named(args.pretrain_choice)
    width, patch, batch, length = shape.embed_dim, shape.vision_patch_size, args.batch_size, args.text_length
    rows, columns = ((size - patch) // args.stride_size + 1 for size in args.img_size)
    tokens = 1 + rows * columns

    def blocks(layers, length, width):
        return layers * (24 * length * width ** 2 + 4 * length ** 2 * width)
    convolution = 2 * rows * columns * 3 * patch ** 2 * shape.vision_width
    image = blocks(shape.vision_layers, tokens, shape.vision_width) + 2 * tokens * shape.vision_width * width
    text = blocks(shape.text_layers, length, shape.text_width) + 2 * length * shape.text_width * width
    cross = 4 * (length + tokens) * width ** 2 + 4 * length * tokens * width + blocks(args.cmt_depth, length, width)
    heads = (2 * words * (width ** 2 + width * args.vocab_size)        # mlm
             + 4 * batch * width * IDENTITIES + 2 * batch ** 2 * width)  # id, sdm
    # Backward is twice the forward: for the inputs and for the weights. The images need no gradient.
    return {'image encoder': batch * (3 * image + 2 * convolution), 'text encoder': 3 * batch * text, 'cross encoder': 3 * batch * cross,
            'heads and losses': 3 * heads}


def words_chosen(batches):
    """How many words mlm is asked for in a batch, on average."""
    return statistics.mean(int((batch['mlm_labels'] > 0).sum()) for batch in batches)

"""Measure a step of the recipe: precisions against the CPU, memory and time at two batch sizes, and reading."""
import contextlib
import copy
import functools
import tempfile
import time

import torch

from datasets.build import build_training_loaders, worker_count
from model import build_model
from model.backbones import backbone_class
from model.build import total_loss
from model.compatibility import validate_micro_batch
from model.heads import SelectsCleanPairs
from processor.build import build_step
from processor.clean_pairs import compute_pair_losses
from processor.estimates import measure_sample_seconds
from processor.step import get_image_stats, prepare_batch
from run_scripts.benchmark.machine import cpu_has_bf16
from run_scripts.benchmark.recipe_cost import read_and_reset_peak, synthetic_batch, synthetic_loader
from solver import build_optimizer
from utils.batch_shard import is_shared_field
from utils.errors import UserError, is_out_of_memory
from utils.machine import synchronize
from utils.options import get_args, replace_options
from utils.precision import amp_dtype
from utils.seeding import seed_all

COMPARED_SIZE = 4       # captions of the batch that is compared with the CPU
SYNTHETIC_SIZE = 16     # captions in a batch of synthetic images that are read
SEED = 1


# -- precisions ------------------------------------------------------------------------------------------------------

def list_precisions(device):
    """The precisions to compare with float32 on the CPU: ``[(name, --amp, whether TF32 is on)]``.

    A CPU that does not multiply in bf16 is not measured in it: a step takes minutes there.
    """
    if device.type == 'cuda':
        return [('float32', 'off', False), ('tf32', 'off', True), ('fp16', 'fp16', False), ('bf16', 'bf16', False)]
    return [('float32', 'off', False)] + [('bf16', 'bf16', False)] * (device.type == 'cpu' and cpu_has_bf16())


def compare_precisions(words, identities, device):
    """Compare one training step and one evaluation batch of a device with float32 on the CPU.

    All start from the same weights and the same synthetic batch. Losses that draw random numbers are not compared,
    because devices draw different ones.

    Args:
        words: the options of train.py.
        identities: the number of training identities.
        device: the name of the device.

    Returns:
        ``{'rows': [{'precision', 'embedding', 'largest_embedding', 'loss', 'loss_name', 'gradient', 'seconds'}],
        'random': [names], 'losses': {name: value on the CPU}}``. The differences are relative: the median and the
        largest one of the embeddings, the largest one of a loss and its name, and that of the norm of all gradients.
    """
    device = torch.device(device)
    options, batch = synthetic_batch([*words, '--device', 'cpu', '--amp', 'off'], COMPARED_SIZE)
    seed_all(SEED)
    model = build_model(options, identities)
    expected = run_step(model, options, batch, 'cpu')
    random_names = find_random_losses(expected, run_step(model, options, batch, 'cpu', SEED + 1))
    rows = []
    for name, amp, tf32 in list_precisions(device):
        try:
            amp_dtype(amp, device)
            with allow_tf32(tf32):
                row = run_step(model, replace_options(options, amp=amp, device=str(device)), batch, device)
        except (UserError, RuntimeError) as error:
            rows.append({'precision': name, 'error': f'{error}'.split('\n')[0]})
            continue
        rows.append({'precision': name, **find_differences(expected, row, random_names), 'seconds': row['seconds']})
    return {'rows': rows, 'random': sorted(random_names), 'losses': expected['losses']}


def run_step(model, options, batch, device, seed=SEED):
    """Embed a batch and train one step with a copy of a model: ``{'losses', 'gradient', 'embeddings', 'seconds'}``."""
    model = copy.deepcopy(model).to(device)
    model.amp = options.amp
    embeddings = embed_batch(model.eval(), batch, device)
    step = build_step(model.train(), build_optimizer(options, model))
    seed_all(seed)
    start = time.perf_counter()
    results = step(dict(batch))
    synchronize(device)
    seconds = time.perf_counter() - start
    gradients = [parameter.grad.float().norm() for parameter in model.parameters() if parameter.grad is not None]
    return {'losses': read_losses(results), 'gradient': torch.stack(gradients).norm().item(),
            'embeddings': embeddings, 'seconds': seconds}


def read_losses(results):
    return {name: value.item() for name, value in results.items() if name.endswith('_loss')}


@torch.no_grad()
def embed_batch(model, batch, device):
    """Embeddings of a batch's images and captions: {'image': [B, D], 'text': [B, D]} in float32 on the CPU."""
    fields = {name: batch[name] for name in ('images', 'caption_ids')}
    prepared = prepare_batch(fields, device, model.trim_padding, get_image_stats(None, model))
    return {'image': model.encode_image(prepared['images']).float().cpu(),
            'text': model.encode_text(prepared['caption_ids']).float().cpu()}


def find_random_losses(result, other):
    """The names of the losses that draw random numbers: two steps with different seeds give different values."""
    return {name for name, value in result['losses'].items()
            if relative_difference(other['losses'][name], value) > 1e-6}


@contextlib.contextmanager
def allow_tf32(allowed):
    """Let a GPU compute float32 products in TF32 or not, inside the ``with`` block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative_difference(value, expected):
    return abs(value - expected) / max(abs(expected), 1e-6)


def find_differences(expected, result, random_names):
    """The relative differences of a step's results."""
    losses = {name: relative_difference(result['losses'][name], value) for name, value in expected['losses'].items()
              if name not in random_names}
    worst = max(losses, key=losses.get, default=None)
    embeddings = torch.cat([(result['embeddings'][side] - value).norm(dim=1) / value.norm(dim=1)
                            for side, value in expected['embeddings'].items()])
    differences = {'embedding': embeddings.quantile(0.5).item(), 'largest_embedding': embeddings.max().item()}
    if losses:
        differences.update(loss=losses[worst], loss_name=worst)
    if not random_names:
        differences['gradient'] = relative_difference(result['gradient'], expected['gradient'])
    return differences


# -- memory and time -------------------------------------------------------------------------------------------------

def measure_growth(words, identities, sizes, device):
    """Measure memory and time of training steps at several batch sizes, and the time to embed.

    Args:
        words: the options of train.py.
        identities: the number of training identities.
        sizes: the batch sizes, the smallest first.
        device: the name of the device.

    Returns:
        A dict. 'rows' are ``[{'batch', 'seconds', 'peak_bytes'}]``; a size that the memory is too small for has an
        'error', and larger ones are missing. 'image_seconds', 'caption_seconds' and 'selection_seconds' are per sample;
        the last one is that of a pass that selects clean pairs (0 without one). 'parameter_bytes' and 'trained_bytes'
        are those of the weights. 'usable_bytes' are free on the GPU at the start, None on a CPU.
        'micro_batch_unsupported' says why the losses refuse ``--micro_batch``, or ''.
    """
    on_gpu = torch.device(device).type == 'cuda'
    # The GPU's free memory beside this process's CUDA context; tensors of the run share the rest.
    usable_bytes = torch.cuda.mem_get_info(device)[0] if on_gpu else None
    options, batch = synthetic_batch(words, COMPARED_SIZE)
    seed_all(SEED)
    model = build_model(options, identities).to(device)
    step = build_step(model.train(), build_optimizer(options, model), options.micro_batch)
    rows = []
    for size in sizes:
        try:
            rows.append({'batch': size, **measure_steps(step, resize_batch(batch, size), device)})
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            rows.append({'batch': size, 'error': 'the memory is too small'})
            break
    del step
    weights = list(model.parameters())
    sizes_in_bytes = {'parameter_bytes': sum(weight.nbytes for weight in weights),
                      'trained_bytes': sum(weight.nbytes for weight in weights if weight.requires_grad)}
    size = rows[-1]['batch'] if 'error' not in rows[-1] else sizes[0]
    batch = resize_batch(batch, size)
    return {'rows': rows, 'usable_bytes': usable_bytes, **sizes_in_bytes, **measure_embedding(model, batch, device),
            'selection_seconds': measure_selection(model, batch, device),
            'micro_batch_unsupported': explain_micro_batch(model)}


def explain_micro_batch(model):
    """Why the model refuses ``--micro_batch``; '' if it supports it."""
    try:
        validate_micro_batch(model.backbone, model.heads)
    except UserError as error:
        return str(error)
    return ''


def measure_steps(step, batch, device):
    """The shortest of two steps after a first one, and the peak of memory."""
    seconds = []
    for _ in range(3 if device.startswith('cuda') else 2):
        synchronize(device)
        start = time.perf_counter()
        total_loss(step(dict(batch))).item()
        seconds.append(time.perf_counter() - start)
    return {'seconds': min(seconds[1:]), 'peak_bytes': read_and_reset_peak(device)}


def resize_batch(batch, size):
    """A batch with ``size`` rows, which repeats rows."""
    rows = torch.arange(size) % len(batch['pids'])
    return {name: value if is_shared_field(name) else value[rows] for name, value in batch.items()}


def measure_embedding(model, batch, device):
    """The seconds to embed an image and a caption."""
    model.eval()
    seconds = {}
    for name, field, encode in (('image_seconds', 'images', model.encode_image),
                                ('caption_seconds', 'caption_ids', model.encode_text)):
        prepared = prepare_batch({field: batch[field]}, device, model.trim_padding, get_image_stats(None, model))
        call = functools.partial(encode, prepared[field])
        with torch.no_grad():
            seconds[name] = measure_call(call, device) / len(batch[field])
    return seconds


def measure_selection(model, batch, device):
    """The seconds per sample of the pass that selects clean pairs; 0 if no head selects them."""
    if not any(isinstance(head, SelectsCleanPairs) for head in model.heads):
        return 0.0
    model.eval()
    batch = model.add_start_values(batch)
    return measure_call(lambda: compute_pair_losses(model, batch), device) / len(batch['pids'])


def measure_call(function, device):
    """The seconds of the second of two calls."""
    for _ in range(2):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
    return time.perf_counter() - start


# -- reading ---------------------------------------------------------------------------------------------------------

def measure_reading(words, is_real):
    """Measure how fast one process reads training samples.

    Args:
        words: the options of train.py.
        is_real: whether the dataset of the options exists; else synthetic images are read.

    Returns:
        ``{'sample_seconds', 'workers', 'steps', 'pairs'}``; steps and pairs are of an epoch of the real dataset.
    """
    options = replace_options(get_args(words), image_cache='')
    if not is_real:
        with synthetic_loader(words, SYNTHETIC_SIZE) as (_, loader):
            return {'sample_seconds': measure_sample_seconds(loader), 'workers': worker_count(options)}
    with tempfile.TemporaryDirectory() as folder:       # for files of a run, such as a vocabulary
        loader = build_training_loaders(replace_options(options, output_dir=folder), backbone_class(options)).train
    return {'sample_seconds': measure_sample_seconds(loader), 'workers': loader.num_workers, 'steps': len(loader),
            'pairs': len(loader.dataset)}

"""Measure one recipe for run_scripts/cost.py: parameters, FLOPs, time and memory."""
import contextlib
import os
import statistics
import tempfile

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datasets import build_dataloader
from datasets.annotation_checks import count_entries
from datasets.registry import dataset_class
from datasets.synthpedes.writing import formats, generate
from model import build_model
from model.backbones import backbone_class
from model.build import total_loss
from processor.build import build_step
from run_scripts.benchmark.machine import measure_time
from solver import build_optimizer
from utils.errors import UserError
from utils.machine import peak_bytes
from utils.options import get_args, replace_options
from utils.seeding import seed_all

END_TOKEN = 49407      # CLIP takes the embedding of a caption from this token


def measure_recipe(path, recipe_words, args, device):
    """Measure one recipe.

    Args:
        path: the file of the recipe.
        recipe_words: further options of train.py.
        args: the options of cost.py.
        device: the name of the device.

    Returns:
        ``{name: number}`` with the keys of ``COLUMNS`` in run_scripts/cost.py, 'batch', and 'others', the load of other
        programs.
    """
    words = ['--config_file', path, *recipe_words, '--device', device, '--amp', args.amp]
    recipe = get_args(words)
    identities, gallery_size = dataset_sizes(recipe)
    options, batch = synthetic_batch(words, args.batch_size or recipe.batch_size)
    seed_all(options.seed)
    initial_bytes = 0 if device.startswith('cuda') else peak_bytes()
    model = build_model(options, identities).to(device)
    sizes = {'batch': len(batch['pids']), **count_parameters(model), **count_flops(model, options)}
    query = measure_query(model, options, gallery_size, args.repeats)
    query['query_bytes'] = read_and_reset_peak(device) - initial_bytes
    step = measure_step(model, options, batch, args.repeats)
    step['step_bytes'] = read_and_reset_peak(device) - initial_bytes
    return {**sizes, **query, **step}


@contextlib.contextmanager
def synthetic_loader(words, size):
    """Make a training loader of synthetic pedestrians in the format of the recipe's dataset.

    Args:
        words: the options of train.py.
        size: captions in a batch.

    Yields:
        ``(options, loader)``. The options have random weights if the words name published ones.
    """
    recipe = get_args(words)
    name = recipe.dataset_name if recipe.dataset_name in formats() else 'CUHK-PEDES'
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, size + 2, images_per_id=2, size=recipe.img_size, format=name, val_ids=0, test_ids=1,
                 second_captions=True, workers=0, progress=False)
        # not by words, because no word takes back --columns or --dataset_shares
        options = replace_options(
            recipe, dataset_name=name, columns=None, dataset_shares=None, root_dir=folder, output_dir=folder,
            batch_size=size, num_workers=0, image_cache='',
            pretrain_choice=random_weights_choice(recipe.pretrain_choice))
        yield options, build_dataloader(options, backbone_class(options))[0]


def synthetic_batch(words, size):
    """``(options, batch)`` of :func:`synthetic_loader`."""
    with synthetic_loader(words, size) as (options, loader):
        return options, next(iter(loader))


def count_parameters(model):
    """``{'parameters', 'trained'}``: the numbers of all parameters and of those that are trained."""
    return {'parameters': sum(parameter.numel() for parameter in model.parameters()),
            'trained': sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)}


def read_and_reset_peak(device):
    """The peak of memory in bytes; on a GPU since the last call."""
    peak = peak_bytes(device)
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats(device)
    return peak


def dataset_sizes(args):
    """``(training identities, images in the test gallery)``: the published numbers, or those of the dataset's files.

    Raises:
        UserError: nothing is published, and the dataset cannot be read.
    """
    dataset = dataset_class(args.dataset_name, args.columns, args.split_seed)
    if dataset.published:
        return dataset.published['train'][0], dataset.published['test'][1]
    try:
        entries = dataset.load_entries(dataset.locate(args.root_dir)[1])
    except UserError as error:
        raise UserError(f'--dataset_name {args.dataset_name}: the dataset has no published sizes, and its files cannot '
                        f'be read ({error})') from None
    train, test = ([entry for entry in entries if entry['split'] == split] for split in ('train', 'test'))
    return count_entries(train)[0], count_entries(test)[1]


def random_weights_choice(pretrain_choice):
    """A --pretrain_choice of the same shape that needs no download."""
    if os.path.exists(pretrain_choice) or ':' in pretrain_choice:
        return pretrain_choice
    return f"scratch:{pretrain_choice.replace('/', '-').replace('@', '-')}"


@torch.no_grad()
def count_flops(model, options):
    """FLOPs to embed one image, and one caption of the full length.

    PyTorch's counter does not see fused attention, so this uses the unfused kernel.
    """
    model.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, *options.img_size, device=next(model.parameters()).device))
        image_flops = counter.get_total_flops()
        model.encode_text(dummy_caption(model, options))
    return {'image_flops': image_flops, 'caption_flops': counter.get_total_flops() - image_flops}


def dummy_caption(model, options):
    """Token ids [1, L] of a caption of the full length."""
    ids = torch.ones(1, options.text_length, dtype=torch.long)
    ids[0, -1] = END_TOKEN
    return ids.to(next(model.parameters()).device)


@torch.no_grad()
def measure_query(model, options, gallery_size, repeats):
    """Embed a caption and find the ten most similar images of a gallery whose embeddings exist already."""
    model.eval()
    device, caption = next(model.parameters()).device, dummy_caption(model, options)
    width = model.encode_text(caption).shape[1]
    gallery = torch.nn.functional.normalize(torch.randn(gallery_size, width, device=device), dim=1)    # [G, D]

    def query():
        return (gallery @ torch.nn.functional.normalize(model.encode_text(caption), dim=1)[0]).topk(10)
    timing, _ = measure_time(query, device, repeats, patience=60)
    return {'query_seconds': statistics.median(timing['seconds'])}


def measure_step(model, options, batch, repeats):
    """A training step as in train.py: from a batch in memory to updated weights and a loss on the host."""
    model.train()
    step = build_step(model, build_optimizer(options, model), options.micro_batch)
    timing, _ = measure_time(lambda: total_loss(step(dict(batch))).item(), next(model.parameters()).device, repeats,
                      patience=120)
    return {'step_seconds': statistics.median(timing['seconds']), 'others': timing['others']}

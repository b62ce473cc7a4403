"""Measure how fast images and captions become embeddings."""
import random

import torch
from torch.utils.data import DataLoader

from datasets.bases import TextDataset
from datasets.device_augmentation import augment_on_device
from datasets.sampler import CaptionSampler
from processor.evaluation import embed
from run_scripts.benchmark import reference
from run_scripts.benchmark.machine import measure_time
from run_scripts.benchmark.workload import (
    build_reference_model, build_training_model, pin_memory, random_captions, recipe_options)


def measure_encoding(side, kind, setting):
    """Measure the time to embed images or captions.

    Args:
        side: 'images' or 'captions'.
        kind: 'ours', or a variant of it: images from the 'cache', captions in the annotation's 'order' or with the
            'whole' text length, '--amp off'; or 'reference'.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.
    """
    args = recipe_options(setting, *(['--amp', 'off'] if kind == '--amp off' else []))
    model = (build_reference_model(args) if kind == 'reference' else build_training_model(args)).eval()
    if side == 'images':
        modality, loader = 'image', image_batches(args, setting, from_cache=kind == 'cache')
    else:
        modality, loader = 'text', build_caption_loader(args, setting)
    if kind == 'order':
        loader = DataLoader(loader.dataset, loader.batch_size)
    if kind == 'whole':
        model.trim_padding = lambda caption_ids: caption_ids
    if kind == 'reference':
        batches = [pin_memory(batch, setting) for _, batch in loader]
        encode = model.encode_image if side == 'images' else model.encode_text
        timing, _ = measure_time(lambda: reference.embed(encode, batches, setting.device), *setting.pace)
    else:
        timing, _ = measure_time(lambda: embed(model, loader, modality), *setting.pace)
    return {**timing, 'samples': getattr(setting, side)}


def image_batches(args, setting, from_cache):
    """``[(pids, images), ...]`` in batches of --test_batch_size. All batches share the same images."""
    generator = torch.Generator().manual_seed(0)
    shape = min(args.test_batch_size, setting.images), 3, *args.img_size
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    images = pin_memory(images if from_cache else augment_on_device(images), setting)
    sizes = [min(len(images), setting.images - first) for first in range(0, setting.images, len(images))]
    return [(torch.zeros(size, dtype=torch.long), images[:size]) for size in sizes]


def build_caption_loader(args, setting):
    captions = random_captions(setting.captions, random.Random(0))
    batch_size = min(args.test_batch_size, len(captions) // 4 or 1)   # several batches, so that their order matters
    dataset = TextDataset([0] * len(captions), captions, args.text_length)
    return DataLoader(dataset, batch_size, sampler=CaptionSampler(dataset.lengths))

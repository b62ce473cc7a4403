"""How quickly images and captions become embeddings."""
import random

import torch
from torch.utils.data import DataLoader

from datasets.bases import TextDataset
from datasets.sampler import CaptionSampler
from datasets.device_augmentation import augment_on_device
from processor.evaluation import embed
from run_scripts.benchmark import released_way
from run_scripts.benchmark.machine import timed
from run_scripts.benchmark.workload import captions, new_model, new_released_model, pinned, recipe


def measure_encoding(side, kind, setting):
    """'images' or 'captions' to embeddings: 'ours', or without one thing: images from the 'cache', captions in the annotation's
    'order' or 'whole', '--amp off'; or the 'released' way."""
    args = recipe(setting, *(['--amp', 'off'] if kind == '--amp off' else []))
    model = (new_released_model(args) if kind == 'released' else new_model(args)).eval()
    if side == 'images':
        encode, loader = model.encode_image, image_batches(args, setting, kind == 'cache')
    else:
        encode, loader = model.encode_text, caption_loader(args, setting)
    if kind == 'order':
        loader = DataLoader(loader.dataset, loader.batch_size)
    if kind == 'whole':
        model.without_padding = lambda caption_ids: caption_ids
    if kind == 'released':
        batches = [pinned(batch, setting) for _, batch in loader]
        timing, _ = timed(lambda: released_way.embed(encode, batches, setting.device), *setting.pace)
    else:
        timing, _ = timed(lambda: embed(encode, loader, model), *setting.pace)
    return {**timing, 'samples': getattr(setting, side)}


def image_batches(args, setting, cached):
    """[(pids, images)] of --test_batch_size. The images of one batch do for all."""
    shape, generator = (min(args.test_batch_size, setting.images), 3, *args.img_size), torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    images = pinned(images if cached else augment_on_device(images), setting)
    sizes = [min(len(images), setting.images - start) for start in range(0, setting.images, len(images))]
    return [(torch.zeros(size, dtype=torch.long), images[:size]) for size in sizes]


def caption_loader(args, setting):
    texts = captions(setting.captions, random.Random(0))
    batch_size = min(args.test_batch_size, len(texts) // 4 or 1)   # several, for their order to matter
    dataset = TextDataset([0] * len(texts), texts, args.text_length)
    return DataLoader(dataset, batch_size, sampler=CaptionSampler(dataset.lengths))

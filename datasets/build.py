"""From the options to the loaders."""
import logging
import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.bases import SPLITS, ImageDataset, ImageTextDataset, TextDataset, collate, limit_training_samples
from datasets.image_cache import open_store
from datasets.array_cache import get_captions, get_image_ids, get_pids
from datasets.noise import add_caption_noise
from datasets.prompts import PromptCollator, read_prompts, tokenized
from datasets.registry import dataset_class
from datasets.sampler import CaptionSampler, SplitSampler, build_batch_sampler
from datasets.transforms import build_preprocessing, resize
from datasets.workers import Loader, start_worker
from utils import comm
from utils import options
from utils.errors import UserError, unknown

logger = logging.getLogger('Pedestal.dataset')


def build_dataset(name, root, verbose=True, splits=SPLITS, skip_broken=False, columns=None, split_seed=1):
    """A dataset by its name; see :class:`datasets.bases.BaseDataset`, and of ``columns`` and ``split_seed`` :mod:`datasets.table`."""
    name, root = options.split_dataset_path(name, root)
    return dataset_class(name, columns, split_seed)(root, verbose=verbose, splits=splits, skip_broken=skip_broken)


def build_dataset_from_args(args, **settings):
    """The dataset that the options name."""
    return build_dataset(args.dataset_name, args.root_dir, columns=getattr(args, 'columns', None),
                         split_seed=getattr(args, 'split_seed', 1), **settings)


def build_dataloader(args):
    """The loaders that ``args`` describe, and the number of training identities.

    Returns:
        ``(train_loader, val_img_loader, val_txt_loader, num_classes)`` if ``args.training``, else
        ``(test_img_loader, test_txt_loader, num_classes)``. The training loader iterates dicts
        (:class:`datasets.bases.ImageTextDataset`); its ``batch_sampler.set_epoch(epoch, first_step)`` chooses what
        comes next. The others iterate ``(pids [B], images [B, 3, H, W])`` and ``(pids [B], caption_ids [B, L])`` in the
        annotation's order. A test needs no training entries; without them ``num_classes`` is 0. With ``args.image_cache``,
        images are uint8, for :func:`datasets.device_augmentation.augment_on_device`.

    Raises:
        UserError: an unknown dataset or sampler, data that isn't whole, an empty split, a batch that doesn't fit, an image cache
            that cannot be made.
    """
    if args.training:
        found = build_training_loaders(args)
        return (found.train, *next(iter(found.evaluations.values())), found.num_classes)
    dataset = build_dataset_from_args(args, splits=('test',), skip_broken=args.skip_broken)
    tokenizer = backbone_family(args).tokenizer(args, None)
    return (*build_evaluation_loaders(args, dataset, 'test', args.test_batch_size, tokenizer), len(select_training_samples(args, dataset)[1]))


class TrainingLoaders(NamedTuple):
    """What a run trains with, and what it is evaluated on: ``{dataset: (images, captions)}``; the first one chooses the best epoch."""
    train: Loader
    evaluations: dict
    num_classes: int


def build_training_loaders(args):
    """The :class:`TrainingLoaders` that ``args`` describe; see :func:`build_dataloader`. Several datasets are evaluated on each."""
    dataset = build_dataset_from_args(args, splits=('train', args.val_dataset), skip_broken=args.skip_broken)
    if not dataset.has_captions and 'attribute_labels' not in getattr(args, 'batch_fields', ()):
        raise UserError(f'{dataset.name} has no captions to train on: give --loss_names attr or img_cls, which learn attributes '
                        '(--backbone aptm)')
    samples, pids = select_training_samples(args, dataset)
    tokenizer = backbone_family(args).tokenizer(args, lambda: get_captions(samples))
    if not samples:
        raise empty_split_error(dataset, 'train')
    samples, noise = add_caption_noise(samples, args.noisy_rate, args.noisy_file)
    if noise:
        logger.info('of %d training pairs %d exchange captions, and %d stay clean', len(samples), noise['noisy'], noise['clean'])
    evaluations = {measured.name: build_evaluation_loaders(args, measured, args.val_dataset, args.batch_size, tokenizer)
                   for measured in evaluation_datasets(args, dataset)}
    # of all training images, however many --limit_train leaves
    store = open_image_store(args, dataset, 'train', (sample[2] for sample in dataset.train), args.skip_broken)
    attributes = get_attributes(args, dataset, 'train', samples) if 'attribute_labels' in getattr(args, 'batch_fields', ()) else None
    train = build_training_loader(args, samples, store, tokenizer, attributes, dataset)
    train.dataset.noise = noise
    return TrainingLoaders(train, evaluations, len(pids))


def select_training_samples(args, dataset):
    """(the training samples that ``--limit_train`` leaves, their pids)"""
    if args.limit_train:
        return limit_training_samples(dataset.train, args.limit_train, dataset.anno_path, getattr(dataset, 'sizes', None))
    return dataset.train, dataset.train_id_container


def evaluation_datasets(args, dataset):
    """The datasets that a run on ``dataset`` is evaluated on while it trains."""
    if getattr(args, 'eval_dataset', ''):
        return [build_dataset(args.eval_dataset, args.root_dir, splits=(args.val_dataset,))]
    first, *others = getattr(dataset, 'components', [dataset])
    lacking = [other for other in others if not getattr(other, args.val_dataset)['captions']]
    for other in lacking:
        logger.info('%s has no split %s: while it trains, the run is not evaluated on it', other.name, args.val_dataset)
    return [first, *(other for other in others if other not in lacking)]


def token_folder(dataset):
    """Where the tokens of a large dataset's captions are kept: beside its annotation."""
    return os.path.join(os.path.dirname(dataset.anno_path), 'token_cache')


def backbone_family(args):
    """The backbone that ``args`` name: its tokenizer and how its images are prepared. It hands itself in, as its options."""
    return options.room('model.backbones').of(args)


def build_training_loader(args, samples, store=None, tokenizer=None, attributes=None, dataset=None):
    """``attributes``: ``(labels int8 [images, A], pairs of prompts)`` of the dataset, if a head asks for them.
    ``dataset``: what the ``samples`` are of."""
    parts = [(first, build_preprocessing(args, pixels, is_train=True), pixels)
             for first, pixels in component_image_stats(args, dataset)]
    (_, transform, pixels), *_ = parts
    pairs = ImageTextDataset(
        samples, transform, args.text_length,
        fields=getattr(args, 'batch_fields', ()), caption_masking=args.caption_masking,
        masked_token_rate=args.masked_token_rate, masked_token_unchanged_rate=args.masked_token_unchanged_rate,
        skip_broken=args.skip_broken, attribute_tagger=getattr(args, 'attribute_tagger', 'textblob'),
        mlm_masking=getattr(args, 'mlm_masking', 'random'), caption_filter=getattr(args, 'caption_filter', 0.0),
        store=store, img_aug=args.img_aug, tokenizer=tokenizer, rand_aug=resize(args.img_size, pixels) if args.rand_aug else None,
        labels=attributes and attributes[0], token_folder=dataset and token_folder(dataset),
        txt_aug=getattr(args, 'txt_aug', False), preprocessing=getattr(args, 'preparation', 'irra'), pixels=pixels,
        back_translations=dataset and dataset.back_translations(), parts=parts)
    sampler = build_batch_sampler(args, get_pids(samples), getattr(dataset, 'sizes', None))
    together = PromptCollator(attributes[1], pairs.tokenizer) if attributes else collate
    return Loader(pairs, batch_sampler=sampler, collate_fn=together, **loader_settings(args))


def component_image_stats(args, dataset):
    """``[(smallest image id, Pixels)]`` of joined datasets whose images have different statistics; else of all images."""
    parts = getattr(dataset, 'components', [dataset])
    found = [backbone_family(args).pixels(args, part and part.name) for part in parts]
    return list(zip(dataset.first_image_ids, found)) if len(set(found)) > 1 else [(0, found[0])]


def build_evaluation_loaders(args, dataset, split, batch_size, tokenizer=None):
    """(images, captions) of a split, neither augmented nor shuffled."""
    if split not in SPLITS:
        raise unknown('split', split, SPLITS)
    content = getattr(dataset, split)
    if not content['captions']:
        raise empty_split_error(dataset, split)
    pixels = backbone_family(args).pixels(args, dataset.name)
    images = ImageDataset(content['image_pids'], content['img_paths'], build_preprocessing(args, pixels, is_train=False),
                          open_image_store(args, dataset, split, content['img_paths']), pixels)
    texts = [backbone_family(args).test_caption(dataset.name, caption) for caption in content['captions']]
    captions = TextDataset(content['caption_pids'], texts, args.text_length, tokenizer=tokenizer,
                           token_folder=token_folder(dataset))
    if dataset.evaluates_attributes or 'attribute_labels' in getattr(args, 'batch_fields', ()) and dataset.attributes(split) is not None:
        labels, prompts = get_attributes(args, dataset, split)
        images.attributes, images.evaluates_attributes = (labels, tokenize_prompts(prompts, tokenizer)), dataset.evaluates_attributes
    # captions are tokenised already: workers would only carry them around
    return (Loader(images, batch_size, sampler=SplitSampler(len(images)), **loader_settings(args)),
            DataLoader(captions, batch_size, sampler=CaptionSampler(captions.lengths), generator=torch.Generator()))


def open_image_store(args, dataset, split, paths, skip_broken=False):
    """The split's images in the folder of ``--image_cache``; None without it."""
    folder = getattr(args, 'image_cache', '')
    if not folder:
        return None
    folder = os.path.join(dataset.dataset_dir, 'image_cache') if folder == 'auto' else folder
    in_training = split == 'train' and getattr(args, 'preparation', 'irra') == 'tbps'   # TBPS-CLIP resizes training images otherwise
    return open_store(folder, f'{dataset.name}_{split}', paths, dataset.img_dir, args.img_size, worker_count(args), skip_broken,
                      'bilinear' if in_training else backbone_family(args).pixels(args).interpolation)


def get_attributes(args, dataset, split, samples=None):
    """``(labels int8 [images, A], pairs of prompts)`` of a split's images, or of the images of its ``samples``."""
    found = dataset.attributes(split)
    if found is None:
        raise UserError(f'the losses attr and img_cls need images with attributes, and {dataset.name} has none: leave them out of '
                        '--loss_names')
    labels, prompts = found
    if samples is not None:
        labels = labels[np.searchsorted(dataset.split_entries[split].rows, get_image_ids(samples))]     # there are none of images left out
    return labels, read_prompts(args.prompt_file, labels.shape[1]) if args.prompt_file else prompts


def empty_split_error(dataset, split):
    hint = '; choose the best epoch by the test split: --val_dataset test' if split == 'val' else ''
    hint = '; name a dataset that has by --eval_dataset' if dataset.published.get(split, (1,))[0] == 0 and split == 'test' else hint
    return UserError(f"{dataset.anno_path} has no entries in the split '{split}'{hint}")


def worker_count(args):
    """``--num_workers``, but no more than this process's part of the cores: they would only wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return min(args.num_workers, max(cores // comm.get_local_world_size(), 1))


def loader_settings(args):
    """How a loader reads: settings of ``DataLoader`` that don't change what it yields."""
    count = worker_count(args)
    pin = torch.cuda.is_available() and not str(getattr(args, 'device', 'auto')).startswith('cpu')
    # an own generator, for the loader draws a number from the global one each epoch
    return {'num_workers': count, 'persistent_workers': count > 0, 'pin_memory': pin,
            'worker_init_fn': start_worker, 'generator': torch.Generator()}

"""Build datasets and data loaders from the options."""
import logging
import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.annotation_checks import SPLITS
from datasets.array_cache import get_captions, get_image_ids, get_pids
from datasets.distractors import add_distractors
from datasets.fields import FIELDS
from datasets.image_cache import open_image_cache
from datasets.images import ImageComponent, ImageDataset, ImageTransform
from datasets.noise import add_caption_noise
from datasets.pairs import PairDataset, collate, split_fields
from datasets.preprocessing import build_preprocessing
from datasets.prompts import PromptCollator, read_prompts, tokenize_prompts
from datasets.registry import dataset_class
from datasets.sampler import CaptionSampler, SplitSampler, build_batch_sampler
from datasets.samples import limit_training_samples, limited_rows
from datasets.text import CaptionMasking, CaptionTransform, TextDataset, tokenize_samples
from datasets.workers import Loader, start_worker
from utils import comm
from utils.errors import UserError, unknown_name_error
from utils.machine import core_count
from utils.option_types import split_dataset_path
from utils.run_config import complete

logger = logging.getLogger('Pedestal.dataset')


def build_dataset(name, root, verbose=True, splits=SPLITS, skip_broken=False, columns=None, split_seed=1):
    """Build a dataset by its name.

    The arguments are those of :class:`datasets.annotation.BaseDataset`; ``columns`` and ``split_seed`` are for
    :mod:`datasets.table`.
    """
    name, root = split_dataset_path(name, root)
    return dataset_class(name, columns, split_seed)(root, verbose=verbose, splits=splits, skip_broken=skip_broken)


def build_dataset_from_args(args, **settings):
    """Build the dataset that the options name."""
    return build_dataset(args.dataset_name, args.root_dir, columns=args.columns, split_seed=args.split_seed, **settings)


def build_dataloader(args, backbone=None):
    """Build the data loaders that ``args`` describe.

    Args:
        args: the options.
        backbone: the class of the backbone that ``args`` name (:func:`model.backbones.backbone_class`), which brings
            tokenizer and image statistics. None: CLIP's.

    Returns:
        ``(train_loader, val_img_loader, val_txt_loader, num_classes)`` if ``args.training``, else
        ``(test_img_loader, test_txt_loader, num_classes)``. The training loader yields dicts
        (:class:`datasets.pairs.PairDataset`); its ``batch_sampler.set_epoch(epoch, first_step)`` selects the next
        batches. The others yield ``(pids [B], images [B, 3, H, W])`` and ``(pids [B], caption_ids [B, L])`` in the
        annotation's order; an evaluation's are of the split ``args.split``. ``num_classes`` is the number of training
        identities; a test needs none. With ``args.image_cache``, images are uint8, for
        :func:`datasets.device_augmentation.augment_on_device`.

    Raises:
        UserError: the dataset or sampler is unknown, data is missing or invalid, a split is empty, the batch is too
            large, the image cache cannot be written, or ``args`` name another backbone than CLIP and ``backbone`` is
            None.
    """
    args = complete(args)
    if args.training:
        loaders = build_training_loaders(args, backbone)
        return (loaders.train, *next(iter(loaders.evaluations.values())), loaders.num_classes)
    dataset = build_dataset_from_args(args, splits=(args.split,), skip_broken=args.skip_broken)
    preprocessing = build_preprocessing(args, backbone)
    images, captions = build_evaluation_loaders(args, preprocessing, dataset, args.split, args.test_batch_size,
                                                preprocessing.tokenizer(), args.distractors)
    return images, captions, len(select_training_samples(args, dataset)[1])


class TrainingLoaders(NamedTuple):
    """The data loaders of a training run.

    Attributes:
        train: the loader of training batches.
        evaluations: ``{dataset name: (image loader, caption loader)}``. The first dataset chooses the best epoch.
        num_classes: the number of training identities.
    """
    train: Loader
    evaluations: dict
    num_classes: int


def build_training_loaders(args, backbone=None):
    """Build the :class:`TrainingLoaders` that ``args`` describe (:func:`build_dataloader`).

    A run on joined datasets is evaluated on each of them.
    """
    dataset = build_dataset_from_args(args, splits=('train', args.val_dataset), skip_broken=args.skip_broken)
    if not dataset.has_captions and not needs_attributes(args):
        raise UserError(f'{dataset.name} has no captions to train on: give --loss_names attr or img_cls, which learn '
                        'attributes (--backbone aptm)')
    samples, pids = select_training_samples(args, dataset)
    preprocessing = build_preprocessing(args, backbone)
    tokenizer = preprocessing.tokenizer(lambda: get_captions(samples))
    if not samples:
        raise empty_split_error(dataset, 'train')
    samples, permutation, noise = add_caption_noise(samples, args.noisy_rate, args.noisy_file)
    if noise:
        logger.info('of %d training pairs %d exchange captions, and %d stay clean', len(samples), noise['noisy'],
                    noise['clean'])
    evaluations = {
        evaluated.name: build_evaluation_loaders(args, preprocessing, evaluated, args.val_dataset, args.batch_size,
                                                 tokenizer)
        for evaluated in evaluation_datasets(args, dataset)}
    caption_rows = select_training_rows(args, dataset)
    caption_rows = caption_rows if permutation is None else caption_rows[permutation]
    train = build_training_loader(args, preprocessing, dataset, samples, tokenizer, caption_rows)
    train.dataset.noise = noise
    return TrainingLoaders(train, evaluations, len(pids))


def select_training_samples(args, dataset):
    """Select the training samples of ``--limit_train``, by default all: ``(samples, set of pids)``."""
    if args.limit_train:
        sizes = getattr(dataset, 'sizes', None)
        return limit_training_samples(dataset.train, args.limit_train, dataset.anno_path, sizes)
    return dataset.train, dataset.train_id_container


def select_training_rows(args, dataset):
    """The indices in ``dataset.train`` of the samples of :func:`select_training_samples`, int64 [S]."""
    if args.limit_train:
        return limited_rows(args.limit_train, getattr(dataset, 'sizes', None) or [len(dataset.train)])
    return np.arange(len(dataset.train))


def evaluation_datasets(args, dataset):
    """The datasets on which a run is evaluated while it trains on ``dataset``."""
    if args.eval_dataset:
        return [build_dataset(args.eval_dataset, args.root_dir, splits=(args.val_dataset,))]
    first, *others = getattr(dataset, 'components', [dataset])
    without_split = [other for other in others if not getattr(other, args.val_dataset)['captions']]
    for other in without_split:
        logger.info('%s has no split %s: the run is not evaluated on it while it trains', other.name, args.val_dataset)
    return [first, *(other for other in others if other not in without_split)]


def token_folder(dataset):
    """The folder of a dataset's token cache, next to its annotation."""
    return os.path.join(os.path.dirname(dataset.anno_path), 'token_cache')


def needs_attributes(args):
    """Whether a head reads the attributes of images."""
    return 'attribute_labels' in args.config.data.batch_fields


def build_training_loader(args, preprocessing, dataset, samples, tokenizer, caption_rows):
    """Build the loader of training batches.

    Args:
        args: the options.
        preprocessing: the :class:`datasets.preprocessing.base.Preprocessing`.
        dataset: the dataset of the samples.
        samples: training pairs ``(pid, image_id, image path, caption)``.
        tokenizer: the backbone's tokenizer.
        caption_rows: int64 [S], the index in ``dataset.train`` of the caption of each sample.
    """
    # All training images are cached, even if --limit_train selects only some.
    cache = open_split_cache(args, preprocessing, dataset, 'train', (sample[2] for sample in dataset.train),
                             args.skip_broken, is_train=True)
    labels = prompts = None
    if needs_attributes(args):
        labels, prompts = get_attributes(args, dataset, 'train', samples)
    image_fields, text_fields = split_fields(args.config.data.batch_fields)
    components = [ImageComponent(first_id, preprocessing.build_view(image_stats, cache is not None), image_stats)
                  for first_id, image_stats in component_image_stats(preprocessing, dataset)]
    images = ImageTransform(components, image_fields, cache, args.img_size)
    masking = CaptionMasking.from_options(args)
    side_texts = get_side_texts(dataset, text_fields, preprocessing.side_text_keys, caption_rows)
    augment = preprocessing.caption_augmentation(side_texts)
    text_length = preprocessing.train_text_length(get_captions(samples), tokenizer)
    tokens = tokenize_samples(samples, tokenizer, text_length, folder=token_folder(dataset))
    if masking.needs_tags(text_fields):
        preprocessing.validate_tagging()
    captions = CaptionTransform(samples, tokens, tokenizer, text_fields, masking, augment, labels, side_texts)
    pairs = PairDataset(samples, images, captions, args.skip_broken)
    sampler = build_batch_sampler(args, get_pids(samples), getattr(dataset, 'sizes', None))
    collator = PromptCollator(prompts, tokenizer) if prompts else collate
    return Loader(pairs, batch_sampler=sampler, collate_fn=collator, **loader_settings(args))


def component_image_stats(preprocessing, dataset):
    """``[(smallest image id, ImageStats)]`` of joined datasets, or one item if all images have the same statistics."""
    components = getattr(dataset, 'components', [dataset])
    stats = [preprocessing.image_stats(component.name) for component in components]
    return list(zip(dataset.first_image_ids, stats)) if len(set(stats)) > 1 else [(0, stats[0])]


def build_evaluation_loaders(args, preprocessing, dataset, split, batch_size, tokenizer, distractors=None):
    """Build ``(image loader, caption loader)`` of a split, neither augmented nor shuffled.

    ``distractors`` is a folder of images without captions that enlarge the gallery.
    """
    if split not in SPLITS:
        raise unknown_name_error('split', split, SPLITS)
    content = dataset.evaluation_samples(split)
    if not content['captions']:
        raise empty_split_error(dataset, split)
    if distractors and dataset.evaluates_attributes:
        raise UserError(f'--distractors enlarges a gallery, and {dataset.name} has none: leave --distractors out')
    content = add_distractors(content, distractors) if distractors else content
    image_stats = preprocessing.image_stats(dataset.name)
    cache_name = f'{split}_with_distractors' if distractors else split
    cache = open_split_cache(args, preprocessing, dataset, cache_name, content['img_paths'])
    images = ImageDataset(content['image_pids'], content['img_paths'], preprocessing.test_transform(image_stats), cache,
                          image_stats)
    texts = [preprocessing.test_caption(dataset.name, caption) for caption in content['captions']]
    captions = TextDataset(content['caption_pids'], texts, args.text_length, tokenizer=tokenizer,
                           token_folder=token_folder(dataset))
    has_labels = not distractors and needs_attributes(args) and dataset.attributes(split) is not None
    if dataset.evaluates_attributes or has_labels:
        labels, prompts = get_attributes(args, dataset, split)
        images.attributes = labels, tokenize_prompts(prompts, tokenizer)
        images.evaluates_attributes = dataset.evaluates_attributes
    # Captions are tokenized already, so workers would only copy them.
    return (Loader(images, batch_size, sampler=SplitSampler(len(images)), **loader_settings(args)),
            DataLoader(captions, batch_size, sampler=CaptionSampler(captions.lengths), generator=torch.Generator()))


def open_split_cache(args, preprocessing, dataset, name, paths, skip_broken=False, is_train=False):
    """Open the image cache of a split in the folder of ``--image_cache``; None without this option.

    ``name`` is the split, with a remark if there are other images. ``is_train`` is whether its images are augmented.
    """
    folder = args.image_cache
    if not folder:
        return None
    folder = os.path.join(dataset.dataset_dir, 'image_cache') if folder == 'auto' else folder
    interpolation = preprocessing.cache_interpolation(is_train)
    return open_image_cache(folder, f'{dataset.name}_{name}', paths, dataset.img_dir, args.img_size, worker_count(args),
                            skip_broken, interpolation)


def get_attributes(args, dataset, split, samples=None):
    """The attributes of the images of a split or of ``samples``: ``(labels int8 [N, A], pairs of prompts)``."""
    attributes = dataset.attributes(split)
    if attributes is None:
        raise UserError(f'the losses attr and img_cls need images with attributes, and {dataset.name} has none: '
                        'leave them out of --loss_names')
    labels, prompts = attributes
    if samples is not None:     # the labels have no rows for skipped images
        labels = labels[np.searchsorted(dataset.split_entries[split].rows, get_image_ids(samples))]
    return labels, read_prompts(args.prompt_file, labels.shape[1]) if args.prompt_file else prompts


def get_side_texts(dataset, text_fields, optional_keys, caption_rows):
    """The side texts that text fields and the preprocessing read: ``{key: SideTexts}`` (:mod:`datasets.side_texts`).

    Args:
        dataset: the dataset.
        text_fields: names of text fields. Each caption must have the side texts that they read.
        optional_keys: further keys, which captions may lack.
        caption_rows: int64 [S], the index in ``dataset.train`` of the caption of each training pair.
    """
    required = {FIELDS[name].side_text for name in text_fields} - {''}
    side_texts = {key: dataset.side_texts(key).select(caption_rows) for key in sorted({*required, *optional_keys})}
    for key in required:
        if missing := side_texts[key].missing_count:
            raise UserError(f"{dataset.anno_path}: {missing} of {len(caption_rows)} training captions have no '{key}', "
                            'which a loss of --loss_names reads: add them to the annotation (docs/icl.md), or leave '
                            'the loss out')
    return side_texts


def empty_split_error(dataset, split):
    """The error for a split without entries or captions, with a hint if there is one."""
    hint = '; choose the best epoch by the test split: --val_dataset test' if split == 'val' else ''
    if split == 'test' and dataset.published.get(split, (1,))[0] == 0:
        hint = '; name a dataset that has a test split with --eval_dataset'
    kind = 'captions' if len(dataset.split_entries[split]) else 'entries'
    return UserError(f"{dataset.anno_path} has no {kind} in the split '{split}'{hint}")


def worker_count(args):
    """``--num_workers``, but at most this process's share of the CPU cores."""
    return min(args.num_workers, max(core_count() // comm.get_local_world_size(), 1))


def loader_settings(args):
    """The settings of ``DataLoader`` that do not change its batches."""
    count = worker_count(args)
    pin_memory = torch.cuda.is_available() and not args.device.startswith('cpu')
    # A generator of its own, because the loader draws a number from its generator in each epoch.
    return {'num_workers': count, 'persistent_workers': count > 0, 'pin_memory': pin_memory,
            'worker_init_fn': start_worker, 'generator': torch.Generator()}

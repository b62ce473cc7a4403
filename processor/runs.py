"""Load a trained run and its test split, for test.py and the tools."""
import functools
import logging
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from datasets import build_dataloader
from datasets.build import build_dataset_from_args
from datasets.preprocessing import build_preprocessing
from datasets.text import tokenize
from datasets.transforms import build_transforms
from model import build_model
from model.backbones import backbone_class
from model.base_weights import add_base_weights
from model.clip_weights import OPENAI_SHA256, shape_named
from processor.evaluation import embed
from processor.reranked_search import RerankedSearch
from processor.step import get_image_stats, prepare_batch
from utils import comm
from utils.checkpoint import read_checkpoint
from utils.comm import pick_device
from utils.iotools import read_image
from utils.options import replace_options
from utils.seeding import seed_all
from utils.top_k import top_k
from utils.weight_files import compute_sha256

logger = logging.getLogger('Pedestal.test')


class TrainedRun(NamedTuple):
    """A trained model and the split to evaluate it on, by default test.

    Attributes:
        model: the model on its device.
        images: the loader of the split's images.
        captions: the loader of the split's captions.
        checkpoint: the checkpoint without the weights.
    """
    model: nn.Module
    images: DataLoader
    captions: DataLoader
    checkpoint: dict


def load_run(args):
    """Load a :class:`TrainedRun` by the options of test.py (:func:`utils.options.parse_test_options`).

    Raises:
        UserError: the dataset or the checkpoint cannot be read.
    """
    backbone = backbone_class(args)
    with comm.main_process_first(f'test data of {args.dataset_name}'):   # it writes caches that the other ranks read
        images, captions, num_classes = build_dataloader(args, backbone)
    model, checkpoint = load_trained(args, num_classes)
    model.image_stats = build_preprocessing(args, backbone).image_stats()
    return TrainedRun(model, images, captions, checkpoint)


def load_trained(args, num_classes):
    """Load the model of ``args.checkpoint``, else a pretrained CLIP. Log the notes on the options, once.

    Returns:
        ``(model on its device, rest of the checkpoint)``.
    """
    for note in args.config.notes:
        logger.info('note: %s', note)
    if args.checkpoint is None:
        return load_untrained(args)
    checkpoint = add_base_weights(read_checkpoint(args.checkpoint, with_sha256=True), args, args.checkpoint)
    classifier = checkpoint['model'].get('classifier.weight')
    if classifier is not None:  # it has the identities of the training set, not those of the tested one
        num_classes = len(classifier)
    model = build_model(args, num_classes, checkpoint.pop('model'))
    return model.to(pick_device(args.device)), checkpoint


def load_untrained(args):
    """Load the CLIP of ``args.pretrain_choice``: ``(model on its device, {'sha256': checksum of its file})``."""
    stride = args.stride_size or shape_named(args.pretrain_choice, args.trust_archive).vision_patch_size or 16
    seed_all(args.seed)   # for scratch:<shape>, whose weights are random
    model = build_model(replace_options(args, training=True, stride_size=stride), 1)
    path = os.path.expanduser(args.pretrain_choice)
    checksum = compute_sha256(path) if os.path.isfile(path) else OPENAI_SHA256.get(args.pretrain_choice)
    return model.to(pick_device(args.device)), {'sha256': checksum}


def embed_queries(model, ids):
    """Embed captions one by one, as a search does: token ids [Q, L] -> embeddings [Q, D] on the CPU."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model.encode_text(row[None].to(device)).float().cpu() for row in ids])
    finally:
        model.train(was_training)


class Split:
    """The evaluated split of a run, by default test.

    Reports of heads (:class:`model.heads.HasReport`) and tools read it.

    Attributes:
        entries: the annotated images, dicts with ``id`` and ``captions``, in the annotation's order.
        captions: the captions.
        paths: the image files.
        queries: ``(embeddings [Q, D], pids [Q])`` of the captions, not normalized; computed at the first access.
        gallery: ``(embeddings [G, D], pids [G])`` of the images, not normalized; computed at the first access.
        seed: the seed for random choices of a report.
    """

    def __init__(self, args, run):
        self.args, self.run, self.seed = args, run, args.seed

    @functools.cached_property
    def dataset(self):
        return build_dataset_from_args(self.args, verbose=False, splits=(self.args.split,))

    @property
    def entries(self):
        return getattr(self.dataset, f'{self.args.split}_annos')

    @property
    def captions(self):
        return self.run.captions.dataset.captions

    @property
    def paths(self):
        return self.run.images.dataset.img_paths

    @functools.cached_property
    def queries(self):
        return self.embed_captions()

    @functools.cached_property
    def gallery(self):
        return self.embed_images()

    def search(self, queries, top, gallery=None):
        """Find the best images for each query.

        Args:
            queries: [Q, D] normalized embeddings.
            top: the number of images per query.
            gallery: ``(embeddings, pids)`` of the images; None: the split's own.

        Returns:
            ``[[(path, pid, cosine similarity)]]``, the best first.
        """
        images, pids = gallery or self.gallery
        scores, indices = top_k(queries, F.normalize(images, dim=1), top)
        return [[(self.paths[index], int(pids[index]), score) for index, score in zip(query_indices, query_scores)]
                for query_indices, query_scores in zip(indices.tolist(), scores.tolist())]

    def reranked_search(self, settings):
        """Prepare a :class:`~processor.reranked_search.RerankedSearch` of the split's images."""
        dataset = self.run.images.dataset

        def load_images(rows):
            images = torch.stack([dataset[row][1] for row in rows.tolist()])
            return prepare_batch({'images': images}, self.device, image_stats=self.image_stats)['images']
        return RerankedSearch(self.run.model, settings, F.normalize(self.gallery[0], dim=1), load_images)

    def embed_images(self, encode=None):
        """Embed all images of the split with the model's ``encode_image``, or with another function."""
        return embed(self.run.model, self.run.images, 'image', encode)

    def embed_captions(self):
        """Embed all captions of the split."""
        return embed(self.run.model, self.run.captions, 'text')

    @property
    def image_stats(self):
        """The mean and standard deviation of the split's images."""
        return get_image_stats(self.run.images, self.run.model)

    def load_images(self, entries):
        """Load the images of some entries: normalized, on the model's device, [K, 3, H, W]."""
        transform = build_transforms(self.args.img_size, is_train=False, image_stats=self.image_stats)
        images = [transform(read_image(self.dataset.image_path(entry))) for entry in entries]
        return torch.stack(images).to(self.device)

    def denormalize(self, images):
        """Convert normalized images [..., 3, H, W] to colors from 0 to 1, on the CPU."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1)
                     for values in (self.image_stats.mean, self.image_stats.std))
        return (images * std + mean).clamp(0, 1).cpu()

    def tokenize(self, captions):
        """Tokenize captions to ids [K, L] on the model's device."""
        tokenizer = self.run.captions.dataset.tokenizer
        ids = [tokenize(caption, tokenizer, self.args.text_length) for caption in captions]
        return torch.stack(ids).to(self.device)

    @property
    def device(self):
        return next(self.run.model.parameters()).device

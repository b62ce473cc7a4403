"""A trained run and the split that it is looked at with: what test.py and the tools open."""
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from datasets import build_dataloader
from datasets.bases import tokenize
from datasets.build import build_dataset_from_args
from datasets.transforms import build_transforms
from processor.evaluation import embed
from processor.report import load_trained
from processor.step import pixels_of
from utils import comm
from utils.iotools import read_image
from utils.nearest import nearest


class Run(NamedTuple):
    """A trained model on its device, the loaders of its test split's images and captions, and the rest of its checkpoint."""
    model: nn.Module
    images: DataLoader
    captions: DataLoader
    checkpoint: dict


def open_run(args):
    """The :class:`Run` that ``args`` name (``parse_test_options``). Raises :class:`~utils.errors.UserError` where its data or
    its checkpoint cannot be read."""
    with comm.main_process_first(f'test data of {args.dataset_name}'):   # it makes the caches that the others find
        images, captions, num_classes = build_dataloader(args)
    model, checkpoint = load_trained(args, num_classes)
    return Run(model, images, captions, checkpoint)


def embed_queries(model, ids):
    """[Q, L] token ids of captions -> [Q, D] embeddings on the CPU, one caption at a time, as a search embeds them."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model.encode_text(row[None].to(device)).float().cpu() for row in ids])
    finally:
        model.train(was_training)


class Split:
    """The test split of a run, for the report of a head (:meth:`model.heads.Head.report`) and for tools that look at what is found in it.

    Attributes:
        entries: the annotated images, dicts with ``id`` and ``captions``, in the annotation's order.
        captions, paths: the captions, and the images' files.
        queries, gallery: (embeddings [S, D], pids [S]) of the captions and of the images, made when they are first asked for. They are
            not normalised.
        seed: of what a report draws at random.
    """

    def __init__(self, args, run):
        self.args, self.run, self.seed = args, run, args.seed

    @functools.cached_property
    def dataset(self):
        return build_dataset_from_args(self.args, verbose=False, splits=('test',))

    @property
    def entries(self):
        return self.dataset.test_annos

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
        """For each query, embeddings [Q, D] of length 1, ``[(path, pid, cosine similarity)]`` of its best images, the best first;
        ``gallery``: embeddings and pids of the images, where they are others than the split's own."""
        images, pids = gallery or self.gallery
        scores, rows = nearest(queries, F.normalize(images, dim=1), top)
        return [[(self.paths[row], int(pids[row]), score) for row, score in zip(best, values)]
                for best, values in zip(rows.tolist(), scores.tolist())]

    def embed_images(self, encode=None):
        """Pass all images of the split through the model, or through another ``encode`` of it."""
        return embed(encode or self.run.model.encode_image, self.run.images, self.run.model)

    def embed_captions(self):
        """Pass all captions of the split through the model."""
        return embed(self.run.model.encode_text, self.run.captions, self.run.model)

    @property
    def pixels(self):
        """The mean and standard deviation of the split's images."""
        return pixels_of(self.run.images, self.run.model)

    def load_images(self, entries):
        """The images of some entries, normalised, on the model's device: [K, 3, H, W]."""
        transform = build_transforms(self.args.img_size, is_train=False, pixels=self.pixels)
        return torch.stack([transform(read_image(self.dataset.image_path(entry))) for entry in entries]).to(self.device)

    def colours(self, images):
        """Normalised images [..., 3, H, W] -> colours from 0 to 1, on the CPU."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1)
                     for values in (self.pixels.mean, self.pixels.std))
        return (images * std + mean).clamp(0, 1).cpu()

    def tokens(self, captions):
        """Token ids of some captions, on the model's device: [K, L]."""
        tokenizer = self.run.captions.dataset.tokenizer
        return torch.stack([tokenize(caption, tokenizer, self.args.text_length) for caption in captions]).to(self.device)

    @property
    def device(self):
        return next(self.run.model.parameters()).device

"""A trained run and the split that it is looked at with: what test.py and the tools open."""
import functools
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from datasets import build_dataloader
from datasets.bases import tokenize
from datasets.build import dataset_of
from datasets.transforms import build_transforms
from processor.evaluation import embed
from processor.report import load_trained
from utils.iotools import read_image


class Run(NamedTuple):
    """A trained model on its device, the loaders of its test split's images and captions, and the rest of its checkpoint."""
    model: nn.Module
    images: DataLoader
    captions: DataLoader
    checkpoint: dict


def open_run(args):
    """The :class:`Run` that ``args`` name (``parse_test_options``). Raises :class:`~utils.errors.UserError` where its data or
    its checkpoint cannot be read."""
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
    """The test split of a run, for the report of a head (:meth:`model.heads.Head.report`).

    Attributes:
        entries: the annotated images, dicts with ``id`` and ``captions``, in the annotation's order.
        seed: of what a report draws at random.
    """

    def __init__(self, args, run):
        self.args, self.run, self.seed = args, run, args.seed

    @functools.cached_property
    def dataset(self):
        return dataset_of(self.args, verbose=False, splits=('test',))

    @property
    def entries(self):
        return self.dataset.test_annos

    def embed_images(self):
        """Pass all images of the split through the model."""
        return embed(self.run.model.encode_image, self.run.images, self.run.model)

    def embed_captions(self):
        """Pass all captions of the split through the model."""
        return embed(self.run.model.encode_text, self.run.captions, self.run.model)

    def load_images(self, entries):
        """The images of some entries, normalised, on the model's device: [K, 3, H, W]."""
        transform = build_transforms(self.args.img_size, is_train=False, pixels=self.run.model.pixels)
        return torch.stack([transform(read_image(self.dataset.path(entry))) for entry in entries]).to(self.device)

    def colours(self, images):
        """Normalised images [..., 3, H, W] -> colours from 0 to 1, on the CPU."""
        pixels = self.run.model.pixels
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (pixels.mean, pixels.std))
        return (images * std + mean).clamp(0, 1).cpu()

    def tokens(self, captions):
        """Token ids of some captions, on the model's device: [K, L]."""
        tokenizer = self.run.captions.dataset.tokenizer
        return torch.stack([tokenize(caption, tokenizer, self.args.text_length) for caption in captions]).to(self.device)

    @property
    def device(self):
        return next(self.run.model.parameters()).device

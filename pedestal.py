"""Pedestal as a library: a trained run that encodes photos and captions, and finds people.

    import pedestal
    people = pedestal.load('logs/CUHK-PEDES/<run>')
    people.search('a man with a backpack', images='photos/', top=10)      # [(path, cosine similarity), ...], the best first
    people.encode_images(['photos/1.jpg']) @ people.encode_captions(['a man with a backpack']).T
"""
import functools
import hashlib
import json
import logging
import os

import torch
import torch.nn.functional as F
from PIL import Image

from datasets.bases import tokenize
from datasets.captions import caption_problem
from datasets.build import build_dataloader, backbone_family
from datasets.transforms import build_preprocessing
from datasets.truncation import describe_truncation
from processor.attention import look
from processor.photos import Photos
from processor.report import load_trained
from processor.runs import Run, Split, embed_queries
from utils.errors import UserError
from utils.images import READER_VERSION, to_rgb
from utils.iotools import read_image
from utils.pixels import CLIP
from utils.options import Effect, build_parser, build_test_parser, parse_test_options, plain

logger = logging.getLogger('Pedestal.search')

__all__ = ['People', 'UserError', 'load', 'options_of']


def load(run, checkpoint=None, device='auto', amp=None):
    """The :class:`People` of a trained run.

    Args:
        run: a run's folder, or the configs.yaml in it; ours, or a published one's.
        checkpoint: instead of the best.pth beside it.
        device: auto, cpu, mps, cuda or cuda:<n>.
        amp: precision: auto, bf16, fp16 or off; None: as the run was trained.

    Raises:
        UserError: there is no such run, or its checkpoint does not load.
    """
    return People(options_of(run, checkpoint=checkpoint, device=device, amp=amp))


def options_of(run, **flags):
    """The options of a run's folder or configs.yaml with some of test.py's flags; None: as the run has it."""
    config = os.path.join(run, 'configs.yaml') if os.path.isdir(run) else os.fspath(run)
    words = [word for flag, value in flags.items() if value is not None for word in (f'--{flag}', str(value))]
    return parse_test_options(build_test_parser('pedestal', ''), ['--config_file', config, *words])


def load_rgb(image):
    """Bring a photo to 8-bit RGB as :mod:`utils.images` says.

    Args:
        image: a path or a ``PIL.Image``.

    Raises:
        UserError: it cannot be read.
    """
    if not isinstance(image, Image.Image):
        return read_image(os.fspath(image))
    try:
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # a lazily opened file is decoded here: PIL's decoders raise nearly anything
        raise UserError(f'an image cannot be read: {getattr(error, "strerror", None) or error}') from None


class People:
    """A trained model that encodes and searches. ``args``: its options (:func:`utils.options.parse_test_options`); see :func:`load`.

    Embeddings are normalised here, once: the model's own are of any length, and these have length 1, so that their inner products are
    cosine similarities. They are float32 and on the CPU. Each is of its photo or caption alone.
    """

    def __init__(self, args):
        self.args = args
        self.model, self.checkpoint = load_trained(args, 0)
        self.model.eval()
        self.transform = build_preprocessing(args, self.model.pixels, is_train=False)
        self.tokenizer = backbone_family(args).tokenizer(args, None)

    @property
    def device(self):
        return next(self.model.parameters()).device

    # -- encoding ----------------------------------------------------------------------------------------------------------

    def read(self, image):
        """A photo as the model reads it, [3, H, W]: a path, or a ``PIL.Image``. Raises :class:`UserError` where it cannot be read."""
        return self.transform(load_rgb(image))

    def tokens(self, captions):
        """Token ids [K, L] of captions. Logs a warning if some are longer than the text length."""
        for number, caption in enumerate(captions, start=1):
            problem = caption_problem(caption) if isinstance(caption, str) else f'a {type(caption).__name__}'
            if problem == 'an empty caption':
                raise UserError('a caption is empty; describe somebody')
            if problem:
                raise UserError(f'description {number} is {problem}; describe somebody in a sentence')
        tokens = torch.stack([tokenize(caption, self.tokenizer, self.args.text_length) for caption in captions])
        if sentence := describe_truncation(captions, tokens, self.tokenizer, 'descriptions'):
            logger.warning('%s', sentence)
        return tokens

    def describe_truncation(self, caption):
        """Describe the end of a caption that the model does not read, because it is too long; '' if it reads all."""
        tokens = tokenize(caption, self.tokenizer, self.args.text_length)[None]
        return describe_truncation([caption], tokens, self.tokenizer, 'descriptions')

    def encode_images(self, images):
        """Photos, as paths or ``PIL.Image``s -> embeddings [K, D]. Raises :class:`UserError` where one cannot be read."""
        images, size = list(images), self.images_at_once
        if not images:
            raise UserError('there are no images to encode')
        return torch.cat([self.embed([self.read(image) for image in images[start:start + size]]) for start in range(0, len(images), size)])

    def encode_captions(self, captions):
        """Captions -> embeddings [K, D]. Raises :class:`UserError` where one is empty."""
        captions = list(captions)
        if not captions:
            raise UserError('there are no captions to encode')
        return F.normalize(embed_queries(self.model, self.tokens(captions)), dim=1)

    @torch.no_grad()
    def embed(self, images):
        """Normalised photos, K tensors [3, H, W] -> embeddings [K, D]."""
        pieces = torch.stack(images).split(self.images_at_once)
        return F.normalize(torch.cat([self.model.encode_image(piece.to(self.device)).float().cpu() for piece in pieces]), dim=1)

    @property
    def images_at_once(self):
        """One where a head refines embeddings, for it may look at the neighbours in the batch as PHP's released code does."""
        return 1 if self.model.refines else min(64, self.args.test_batch_size)

    def look(self, image, caption):
        """Where the model looks, of a photo (a path or a ``PIL.Image``) and a caption: a :class:`~processor.attention.Look`."""
        return look(self, self.read(image), caption)

    # -- searching ---------------------------------------------------------------------------------------------------------

    def photos(self, folder, index=None, progress=True):
        """The :class:`~processor.photos.Photos` below a folder, those that are new embedded and kept for the next time in
        ``<folder>/.pedestal``, or in the folder ``index``."""
        photos = Photos(os.fspath(folder), *self.identity, self.width, index)
        photos.update(self.read, self.embed, progress)
        return photos

    def search(self, text, images, top=10):
        """The photos that fit a description: ``[(path, cosine similarity)]``, the best first.

        Args:
            text: a description of somebody.
            images: a folder, whose photos are embedded the first time and kept (:meth:`photos`), what :meth:`photos` gave, or a list of
                paths.
            top: how many.
        """
        if top < 1:
            raise UserError(f'top must be above 0, not {top}')
        queries = self.encode_captions([text])
        if isinstance(images, Photos):
            return images.search(queries, top)[0]
        if isinstance(images, (str, os.PathLike)):
            return self.photos(images).search(queries, top)[0]
        paths = list(images)
        scores, rows = (self.encode_images(paths) @ queries[0]).topk(min(top, len(paths)))
        return [(paths[row], score) for row, score in zip(rows.tolist(), scores.tolist())]

    @functools.cached_property
    def split(self):
        """The :class:`~processor.runs.Split` that the run is tested on: captions, images, their embeddings, and a search in it."""
        images, captions, _ = build_dataloader(self.args)
        return Split(self.args, Run(self.model, images, captions, self.checkpoint))

    @functools.cached_property
    def width(self):
        """Numbers of an embedding."""
        return self.encode_captions(['a person']).shape[1]

    @functools.cached_property
    def identity(self):
        """(what an embedding depends on, a short key of it): the checkpoint's hash, the options that are not as usual, and
        the images' mean and standard deviation if they are not CLIP's."""
        parser = build_parser()
        usual = parser.defaults_in_code
        left_out = {'root_dir', 'dataset_name', 'seed', 'checkpoint'} | parser.without(Effect.RESULT)
        options = {name: plain(value) for name, value in sorted(vars(self.args).items())
                   if name in usual and name not in left_out and plain(value) != plain(usual[name])}
        model = {'sha256': self.checkpoint['sha256'], 'options': options, 'reader': READER_VERSION}
        if self.model.pixels != CLIP:
            model['pixels'] = list(map(plain, self.model.pixels))
        return model, hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:16]

"""Pedestal as a library: a trained run that encodes images and captions, and searches for people.

import pedestal
people = pedestal.load('logs/CUHK-PEDES/<run>')
people.search('a man with a backpack', images='photos/', top=10)     # [(path, cosine similarity)], the best first
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

from datasets.build import build_dataloader
from datasets.captions import caption_problem
from datasets.preprocessing import build_preprocessing
from datasets.text import tokenize
from datasets.truncation import describe_truncation
from model.backbones import backbone_class
from processor.attention import explain
from processor.image_index import ImageIndex
from processor.reranked_search import RerankedSearch
from processor.runs import Split, TrainedRun, embed_queries, load_trained
from utils.errors import UserError
from utils.image_stats import CLIP_STATS
from utils.images import READER_VERSION, to_rgb
from utils.iotools import read_image
from utils.options import Effect, build_parser, build_test_parser, parse_test_options, replace_options, to_plain_value
from utils.rerank_options import as_rerank_settings
from utils.version import __version__

logger = logging.getLogger('Pedestal.search')

__all__ = ['People', 'UserError', '__version__', 'load', 'load_options']


def load(run, checkpoint=None, device='auto', amp=None, base_weights=None):
    """Load a trained or published run.

    Args:
        run: the run's folder, the configs.yaml in it, or its name below ``logs``, such as ``CUHK-PEDES/irra``.
        checkpoint: a checkpoint file; None: the run's best.pth.
        device: auto, cpu, mps, cuda or cuda:<n>.
        amp: the precision: auto, bf16, fp16 or off; None: that of the training.
        base_weights: the file of the pretrained weights of a tuned run; None: the file that the run started from.

    Returns:
        A :class:`People`.

    Raises:
        UserError: the run is missing, or its checkpoint cannot be loaded.
    """
    return People(load_options(run, checkpoint=checkpoint, device=device, amp=amp, base_weights=base_weights))


def load_options(run, **flags):
    """Load the options of a run.

    Args:
        run: the run's folder, the configs.yaml in it, or its name below ``logs``, such as ``CUHK-PEDES/irra``.
        flags: flags of test.py that replace the run's options; None: the run's own.
    """
    arguments = ['--config_file', os.fspath(run)]
    for flag, value in flags.items():
        if value is not None:
            arguments += [f'--{flag}', str(value)]
    return parse_test_options(build_test_parser('pedestal', ''), arguments)


def load_rgb(image):
    """Convert an image to 8-bit RGB (:mod:`utils.images`).

    Args:
        image: a path or a ``PIL.Image``.

    Raises:
        UserError: the image cannot be read.
    """
    if not isinstance(image, Image.Image):
        return read_image(os.fspath(image))
    try:
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # PIL decodes lazily opened files here, and its decoders raise many kinds of errors
        raise UserError(f'an image cannot be read: {getattr(error, "strerror", None) or error}') from None


class People:
    """A trained model that encodes images and captions, and searches.

    Embeddings are normalized, so that their inner products are cosine similarities. They are float32 and on the CPU.
    Each depends on its own image or caption only.

    Args:
        args: the options of the run (:func:`utils.options.parse_test_options`); see :func:`load`.

    Attributes:
        args: the options.
        model: the :class:`~model.build.RetrievalModel` in evaluation mode, on its device.
        checkpoint: the checkpoint without the weights.
        transform: the preprocessing of images.
        tokenizer: the tokenizer of captions.
    """

    def __init__(self, args):
        self.model, self.checkpoint = load_trained(args, 0)
        self.args = args = replace_options(args, **self.model.backbone.resolved_options)
        self.model.eval()
        preprocessing = build_preprocessing(args, backbone_class(args))
        self.model.image_stats = preprocessing.image_stats()
        self.transform = preprocessing.test_transform(self.model.image_stats)
        self.tokenizer = preprocessing.tokenizer()

    @property
    def device(self):
        return next(self.model.parameters()).device

    # -- encoding ------------------------------------------------------------------------------------------------------

    def load_image(self, image):
        """Load and preprocess an image: a path or a ``PIL.Image`` -> [3, H, W], normalized.

        Raises:
            UserError: the image cannot be read.
        """
        return self.transform(load_rgb(image))

    def tokenize(self, captions):
        """Tokenize captions to ids [K, L]. Log a warning if some are longer than the text length.

        Raises:
            UserError: a caption is empty, too long, or not a text.
        """
        for number, caption in enumerate(captions, start=1):
            problem = caption_problem(caption) if isinstance(caption, str) else f'a {type(caption).__name__}'
            if problem == 'an empty caption':
                raise UserError('a caption is empty; describe somebody')
            if problem:
                raise UserError(f'description {number} is {problem}; describe somebody in a sentence')
        ids = torch.stack([tokenize(caption, self.tokenizer, self.args.text_length) for caption in captions])
        if warning := describe_truncation(captions, ids, self.tokenizer, 'descriptions'):
            logger.warning('%s', warning)
        return ids

    def describe_truncation(self, caption):
        """Describe the end of a caption that the model does not read, because it is too long; '' if it reads all."""
        ids = tokenize(caption, self.tokenizer, self.args.text_length)[None]
        return describe_truncation([caption], ids, self.tokenizer, 'descriptions')

    def encode_images(self, images):
        """Encode images, paths or ``PIL.Image``s, to embeddings [K, D].

        Raises:
            UserError: there are none, or one cannot be read.
        """
        images, size = list(images), self.image_batch_size
        if not images:
            raise UserError('there are no images to encode')
        return torch.cat([self.embed_images([self.load_image(image) for image in images[start:start + size]])
                          for start in range(0, len(images), size)])

    def encode_captions(self, captions):
        """Encode captions to embeddings [K, D].

        Raises:
            UserError: there are none, or one is empty.
        """
        captions = list(captions)
        if not captions:
            raise UserError('there are no captions to encode')
        return F.normalize(embed_queries(self.model, self.tokenize(captions)), dim=1)

    @torch.no_grad()
    def embed_images(self, images):
        """Encode preprocessed images, K tensors [3, H, W], to embeddings [K, D]."""
        batches = torch.stack(images).split(self.image_batch_size)
        embeddings = [self.model.encode_image(batch.to(self.device)).float().cpu() for batch in batches]
        return F.normalize(torch.cat(embeddings), dim=1)

    @property
    def image_batch_size(self):
        """1 if a head refines embeddings, because it may compare the images of a batch, as PHP's own code does."""
        return 1 if self.model.refines_embeddings else min(64, self.args.test_batch_size)

    def explain(self, image, caption):
        """Explain the similarity of an image and a caption with maps over the image and with words.

        Args:
            image: a path or a ``PIL.Image``.
            caption: a text.

        Returns:
            An :class:`~processor.attention.Explanation`.
        """
        return explain(self, self.load_image(image), caption)

    # -- searching -----------------------------------------------------------------------------------------------------

    def index_images(self, folder, index=None, progress=True):
        """Embed the images below a folder, except those that are already in its index.

        Args:
            folder: the folder of the images; its subfolders are included.
            index: the folder of the index; None: ``<folder>/.pedestal``.
            progress: whether to show a progress bar.

        Returns:
            An :class:`~processor.image_index.ImageIndex`.
        """
        image_index = ImageIndex(os.fspath(folder), *self.fingerprint, self.embedding_dim, index)
        image_index.update(self.load_image, self.embed_images, progress)
        return image_index

    def search(self, text, images, top=10, rerank=None):
        """Find the images that fit a description.

        Args:
            text: a description of a person.
            images: a folder, which is indexed first, the result of :meth:`index_images`, or a list of paths.
            top: the number of images to return.
            rerank: a method that orders the images again: 'k-reciprocal', 'query-expansion', the number of images that
                an image-text matching head scores, or the settings of one of them (:mod:`utils.rerank_options`).

        Returns:
            ``[(path, cosine similarity)]``, the best first: by cosine similarity, or by ``rerank``.
        """
        if top < 1:
            raise UserError(f'top must be above 0, not {top}')
        if isinstance(images, (str, os.PathLike)):
            images = self.index_images(images)
        if rerank is not None:
            return self.build_reranked_search(images, rerank)([text], top)[0]
        queries = self.encode_captions([text])
        if isinstance(images, ImageIndex):
            return images.search(queries, top)[0]
        paths = list(images)
        scores, indices = (self.encode_images(paths) @ queries[0]).topk(min(top, len(paths)))
        return [(paths[index], score) for index, score in zip(indices.tolist(), scores.tolist())]

    def build_reranked_search(self, images, rerank):
        """Prepare a search that orders images by a method of re-ranking; see :meth:`search`.

        Args:
            images: the result of :meth:`index_images`, the ``split``, or a list of paths.
            rerank: the method.

        Returns:
            A function from captions and the number of images per caption to ``[[(path, cosine similarity)]]``, the best
            first. No caption's result depends on the other captions.
        """
        settings = as_rerank_settings(rerank)
        if isinstance(images, Split):
            paths, search = images.paths, images.reranked_search(settings)
        elif isinstance(images, ImageIndex):
            paths = [os.path.join(images.folder, path) for path in images.paths]
            search = images.reranked_searches.get(settings) or self.rerank_paths(settings, paths,
                                                                                 images.read_embeddings())
            images.reranked_searches[settings] = search
        else:
            paths = list(images)
            search = self.rerank_paths(settings, paths, self.encode_images(paths))

        def find_images(captions, top):
            ids = self.tokenize(captions)
            queries = F.normalize(embed_queries(self.model, ids), dim=1)
            return [[(paths[row], score) for row, score in result] for result in search.search(ids, queries, top)]
        return find_images

    def rerank_paths(self, settings, paths, embeddings):
        """Prepare a :class:`~processor.reranked_search.RerankedSearch` of image files with their embeddings."""
        def load_images(rows):
            return torch.stack([self.load_image(paths[row]) for row in rows.tolist()]).to(self.device)
        return RerankedSearch(self.model, settings, embeddings, load_images)

    @functools.cached_property
    def split(self):
        """The test split of the run with its embeddings, a :class:`~processor.runs.Split`."""
        images, captions, _ = build_dataloader(self.args, backbone_class(self.args))
        return Split(self.args, TrainedRun(self.model, images, captions, self.checkpoint))

    @functools.cached_property
    def embedding_dim(self):
        """The dimension of an embedding."""
        return self.encode_captions(['a person']).shape[1]

    @functools.cached_property
    def fingerprint(self):
        """``(what an embedding depends on, a short hash of it)``.

        An embedding depends on the checkpoint, on options that differ from their defaults, and on the images' mean and
        standard deviation if they differ from CLIP's.
        """
        parser = build_parser()
        defaults = parser.defaults_in_code
        ignored = {'root_dir', 'dataset_name', 'seed', 'checkpoint'} | parser.options_without(Effect.RESULT)
        options = {name: to_plain_value(value) for name, value in sorted(vars(self.args).items())
                   if name in defaults and name not in ignored
                   and to_plain_value(value) != to_plain_value(defaults[name])}
        model = {'sha256': self.checkpoint['sha256'], 'options': options, 'reader': READER_VERSION}
        if self.model.image_stats != CLIP_STATS:
            model['pixels'] = list(map(to_plain_value, self.model.image_stats))
        return model, hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:16]

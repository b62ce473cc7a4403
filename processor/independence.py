"""Check that each embedding depends on its own sample only, not on its neighbors in the batch.

:func:`reorder` shows how much the neighbors matter: it returns a loader of the same samples in other batches.
"""
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from datasets.sampler import SplitSampler
from datasets.workers import Loader
from processor.step import get_image_stats, prepare_batch
from utils import precision

NEIGHBOR_TOLERANCE = 1e-4   # cosine distance; the batch size is the same, so rounding is the same also
SAMPLES = 6                 # captions, and images: 18 forward passes, 2% of RSTPReid's test split, the smallest one


class BatchDependence(NamedTuple):
    """How far the scores of pairs depend on the other pairs of their batch.

    Attributes:
        largest: the largest change of a score, as a fraction of the range of its caption's scores.
        allowed: the largest allowed change.
    """
    largest: float
    allowed: float

    @property
    def is_independent(self):
        """Whether the scores are independent of their batch."""
        return self.largest <= self.allowed

    def __str__(self):
        return (f"; the batch changes a pair's re-ranking score by {self.largest:.1e} of its caption's range "
                f'(allowed: {self.allowed:g})')


@dataclass
class Independence:
    """How far embeddings depend on their batch, in cosine distances of ``'text'`` and ``'image'`` embeddings.

    The attributes are also keys of metrics.json.

    Attributes:
        worst: the largest distance between the embeddings of the evaluation and those of batches of one sample.
        company: the largest distance between embeddings at the same place of batches with other neighbors.
        threshold: the allowed distance in ``worst``: half precision rounds batches of one sample differently.
        samples: the number of captions, and of images.
        second_stage: the :class:`BatchDependence` of re-ranking scores; None without ``--rerank``.
    """
    worst: dict = field(default_factory=dict)
    company: dict = field(default_factory=dict)
    threshold: float = 1e-4
    samples: int = 0
    second_stage: BatchDependence | None = None

    @property
    def is_independent(self):
        """Whether embeddings and re-ranking scores are independent of their batch."""
        return (all(distance <= self.threshold for distance in self.worst.values())
                and all(distance <= NEIGHBOR_TOLERANCE for distance in self.company.values())
                and (self.second_stage is None or self.second_stage.is_independent))

    def __str__(self):
        """Describe the result in a line; if the check fails, with all distances."""
        if self.is_independent:
            largest = max([*self.worst.values(), *self.company.values()], default=0.0)
            return (f'each embedding depends on its own sample alone (largest cosine distance {largest:.1e} over '
                    f'{self.samples} captions and {self.samples} images)')
        single, neighbors = (', '.join(f'{side} {distance:.1e}' for side, distance in distances.items())
                             for distances in (self.worst, self.company))
        return ('EMBEDDINGS DEPEND ON THE BATCH: the first table is of embeddings that depend on their neighbors '
                f'(largest cosine distance over {self.samples} samples to batches of one sample: {single} '
                f'(allowed: {self.threshold:g}), with other neighbors: {neighbors} (allowed: {NEIGHBOR_TOLERANCE:g})'
                f'{self.second_stage or ""})')


def check_independence(model, img_loader, txt_loader, embeddings=None, samples=SAMPLES):
    """Check that each embedding depends on its own sample only.

    The check has two parts, on samples that are spread over the split in pairs of neighbors:

    1. Compare the embeddings of the evaluation, and those of one batch of the samples, with batches of one sample. The
       allowed cosine distance is 1e-4 in float32 and 1e-2 in half precision.
    2. Embed half of the samples again, at the same places of a batch of the same size, with other neighbors. The
       allowed cosine distance is 1e-4, because the rounding is the same. This part finds dependence that the first
       cannot: a shuffled batch may hold the same neighbors, ``--test_batch_size 1`` has batches of one sample, and
       half precision allows larger distances.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        img_loader: a loader of the split's images.
        txt_loader: a loader of the split's captions.
        embeddings: ``(qfeats, gfeats)`` of the evaluation.
        samples: the number of captions, and of images.

    Returns:
        An :class:`Independence`.
    """
    device = next(model.parameters()).device
    is_half = hasattr(model, 'amp') and precision.amp_dtype(model.amp, device) is not None
    result = Independence(threshold=1e-2 if is_half else 1e-4, samples=samples)
    sides = (('text', model.encode_text, txt_loader, 0), ('image', model.encode_image, img_loader, 1))
    was_training = model.training
    model.eval()
    try:
        for side, encode, loader, position in sides:
            indices = neighbor_indices(len(loader.dataset), samples)
            inputs = torch.stack([loader.dataset[i][1] for i in indices])
            field = 'images' if side == 'image' else 'caption_ids'
            inputs = prepare_batch({field: inputs}, device, image_stats=get_image_stats(loader, model))[field]
            evaluated = embeddings[position][indices] if embeddings else None
            result.worst[side], result.company[side] = measure_distances(encode, inputs, evaluated)
    finally:
        model.train(was_training)
    return result


def neighbor_indices(total, samples):
    """Return the indices of ``samples // 2`` samples spread over ``total``, then those of the samples after them.

    >>> neighbor_indices(1000, 6)
    [0, 499, 998, 1, 500, 999]
    """
    first = torch.linspace(0, max(total - 2, 0), samples // 2).long().tolist()
    return first + [min(index + 1, total - 1) for index in first]


@torch.no_grad()
def measure_distances(encode, inputs, evaluated):
    """Measure how far embeddings depend on their batch.

    Args:
        encode: the model's method that encodes a batch.
        inputs: [S, ...] samples.
        evaluated: [S, D] their embeddings in the evaluation; None if unknown.

    Returns:
        ``(largest distance to batches of one sample, largest distance between batches with other neighbors)``.
    """
    half = len(inputs) // 2
    batched = encode(inputs).float().cpu()
    other_neighbors = encode(torch.cat([inputs[:half], inputs[:1].expand_as(inputs[half:])])).float().cpu()
    single = torch.cat([encode(inputs[i:i + 1]).float().cpu() for i in range(len(inputs))])
    compared = [batched] if evaluated is None else [batched, evaluated]
    return (max(largest_distance(single, embeddings) for embeddings in compared),
            largest_distance(batched[:half], other_neighbors[:half]))


def largest_distance(a, b):
    """Return the largest cosine distance between the rows of [S, D] and [S, D]."""
    return (1 - F.cosine_similarity(a.double(), b.double())).clamp(min=0).max().item()


class ShuffledSampler(SplitSampler):
    """Sample a split in random order.

    Attributes:
        order: the order of the latest iteration.
    """

    def __init__(self, count, generator):
        super().__init__(count)
        self.generator = generator

    def samples(self):
        self.order = torch.randperm(self.count, generator=self.generator).tolist()
        return self.order


def reorder(loader, seed, shuffle=False, **settings):
    """Return a loader of the same samples that is shuffled, or has other settings such as ``batch_size``."""
    generator, count = torch.Generator().manual_seed(seed), len(loader.dataset)
    return Loader(loader.dataset, **{
        'batch_size': loader.batch_size, 'num_workers': loader.num_workers, 'pin_memory': loader.pin_memory,
        'worker_init_fn': loader.worker_init_fn, 'generator': generator,
        'sampler': ShuffledSampler(count, generator) if shuffle else SplitSampler(count), **settings})

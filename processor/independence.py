"""Does each embedding depend on its own sample alone?"""
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from processor.step import pixels_of, ready
from utils import precision

IN_COMPANY = 1e-4   # the cosine distance that other neighbours may make, where all else, and so the rounding, stays the same
SAMPLES = 6         # of each side: at most 18 passes, 2% of RSTPReid's test split, the smallest of the published ones


class SecondStageMove(NamedTuple):
    """How far scores of pairs depend on the other pairs of their batch, as a share of their caption's range of scores."""
    largest: float
    allowed: float

    @property
    def holds(self):
        return self.largest <= self.allowed

    def __str__(self):
        return f"; a pair's score of the second stage moves by {self.largest:.1e} of its caption's range (allowed: {self.allowed:g})"


@dataclass
class Independence:
    """How far embeddings depend on their neighbours in the batch, in cosine distances, for ``'text'`` and ``'image'``."""
    worst: dict = field(default_factory=dict)     # between the evaluation's own embeddings and those of batches of one
    company: dict = field(default_factory=dict)   # between the same samples at the same place of batches of other neighbours
    threshold: float = 1e-4                       # for worst: in half precision, batches of one are rounded otherwise
    samples: int = 0
    second_stage: SecondStageMove | None = None   # of --rerank

    @property
    def holds(self):
        return (all(distance <= self.threshold for distance in self.worst.values())
                and all(distance <= IN_COMPANY for distance in self.company.values())
                and (self.second_stage is None or self.second_stage.holds))

    def __str__(self):
        """One line where all is well, and the distances in full where it isn't."""
        if self.holds:
            largest = max([*self.worst.values(), *self.company.values()], default=0.0)
            return (f'each embedding depends on its own sample alone (largest cosine distance {largest:.1e} over '
                    f'{self.samples} captions and {self.samples} images)')
        alone, company = (', '.join(f'{side} {distance:.1e}' for side, distance in distances.items())
                          for distances in (self.worst, self.company))
        return ('EMBEDDINGS DEPEND ON THE BATCH: the numbers above are of embeddings that saw their neighbours '
                f'(largest cosine distance over {self.samples} samples to themselves one by one: {alone} (allowed: {self.threshold:g}), '
                f'and beside other neighbours: {company} (allowed: {IN_COMPANY:g}){self.second_stage or ""})')


def check_independence(model, img_loader, txt_loader, embeddings=None, samples=SAMPLES):
    """Does each embedding depend on its own sample alone?

    Takes ``samples`` captions and images, spread over the split in pairs of neighbours, and compares ``embeddings`` (the loaders'
    own, ``(qfeats, gfeats)``) and those of the samples in one batch with those of batches of one: a cosine distance above 1e-4 in
    float32, 1e-2 in half precision, is a difference. Some leaks do not show so: a batch in another order holds the same
    neighbours, batches of one are an evaluation's own at ``--test_batch_size 1``, and half precision allows for much. So half of
    the samples are embedded once more, at the same places of an equally large batch, with other neighbours: without a leak these are
    the same to the last bit, and 1e-4 is a difference in any precision.
    """
    device = next(model.parameters()).device
    half = precision.amp_dtype(model.amp, device) is not None if hasattr(model, 'amp') else False
    result = Independence(threshold=1e-2 if half else 1e-4, samples=samples)
    sides = (('text', model.encode_text, txt_loader, 0), ('image', model.encode_image, img_loader, 1))
    was_training = model.training
    model.eval()
    try:
        for side, encode, loader, position in sides:
            chosen = neighbours(len(loader.dataset), samples)
            inputs = torch.stack([loader.dataset[i][1] for i in chosen])
            field = 'images' if side == 'image' else 'caption_ids'
            inputs = ready({field: inputs}, device, pixels=pixels_of(loader, model))[field]
            given = embeddings[position][chosen] if embeddings else None
            result.worst[side], result.company[side] = moves(encode, inputs, given)
    finally:
        model.train(was_training)
    return result


def neighbours(total, samples):
    """Indices of ``samples // 2`` samples spread over ``total``, and then of those that follow them."""
    first = torch.linspace(0, max(total - 2, 0), samples // 2).long().tolist()
    return first + [min(index + 1, total - 1) for index in first]


@torch.no_grad()
def moves(encode, inputs, given):
    """(distance to batches of one, distance between two companies) of ``inputs`` [S, ...]: S one by one, S together, and their
    first half beside copies of the first of them. ``given`` [S, D]: their embeddings in the evaluation, or None."""
    half = len(inputs) // 2
    together = encode(inputs).float().cpu()
    elsewhere = encode(torch.cat([inputs[:half], inputs[:1].expand_as(inputs[half:])])).float().cpu()
    alone = torch.cat([encode(inputs[i:i + 1]).float().cpu() for i in range(len(inputs))])
    by_batches = [together] if given is None else [together, given]
    return max(largest_distance(alone, other) for other in by_batches), largest_distance(together[:half], elsewhere[:half])


def largest_distance(a, b):
    """The largest cosine distance between rows of [S, D] and [S, D]."""
    return (1 - F.cosine_similarity(a.double(), b.double())).clamp(min=0).max().item()

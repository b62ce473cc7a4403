"""The second stage of retrieval: each caption's best images scored again, pair by pair."""
import torch
from tqdm import tqdm

from utils.errors import UserError

COSINE_SHARE = 0.002       # what the first stage counts beside the second (APTM)


def check_rerank_count(count, gallery):
    if not 1 <= count <= gallery:
        raise UserError(f'--rerank {count}: the gallery holds {gallery} images; give a number from 1 to {gallery}')


def score_candidates(slabs, count, gallery, match, total=None, progress=True):
    """Score each caption's ``count`` best images: ``(images [Q, count], scores [Q, count])``, the images in the first stage's order.

    Args:
        slabs: similarities [q, G] of the first stage, of the captions in order, some at a time.
        gallery: G, the number of images.
        match: ``match(caption, images)``: the scores, float32 [count], of caption number ``caption`` (an int) with the images at the
            int64 indices [count]; called once a caption, never for all pairs.
        total: the number of captions, for the progress bar.

    Raises:
        UserError: ``count`` isn't between 1 and the size of the gallery.
    """
    check_rerank_count(count, gallery)
    best, scores = [], []
    with tqdm(total=total, desc='re-ranking', unit='caption', leave=False, disable=None if progress else True) as bar:
        for slab in slabs:
            images = slab.topk(count, dim=1).indices.cpu()
            for row in images:
                scores.append(match(len(scores), row).float().cpu())
                bar.update()
            best.append(images)
    return torch.cat(best), torch.stack(scores)


def combine_scores(slabs, best, scores, score='caption', bounds=None):
    """Yields the first stage's ``slabs`` [q, G] as what orders the images now.

    Images that were not scored again get the least of their row's scores, and so stay behind in the first stage's order. ``score``:
    'released' is APTM's, minmax(second) + 0.002 minmax(first), each min-max over the whole matrix, which makes a caption's ranking depend
    on the other captions; 'caption' does the same within each caption's row. ``bounds``: the least and the largest similarity of the
    whole first stage, for 'released'.
    """
    start = 0
    for first in slabs:
        rows = slice(start, start + len(first))
        start += len(first)
        of_rows = scores[rows].to(first.device)
        second = of_rows.min(dim=1, keepdim=True).values.expand_as(first).scatter(1, best[rows].to(first.device), of_rows)
        if score == 'released':
            yield minmax(second, scores.min(), scores.max()) + COSINE_SHARE * minmax(first, *bounds)
        else:
            yield minmax(second, *ends(second)) + COSINE_SHARE * minmax(first, *ends(first))


def ends(scores):
    """Each row's least and largest value, [q, 1] each."""
    return scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)


def global_bounds(slabs):
    """The least and the largest value of all slabs."""
    found = [(slab.min(), slab.max()) for slab in slabs]
    return min(low for low, _ in found), max(high for _, high in found)


def minmax(values, low, high):
    """Values shifted and scaled so that ``low`` is 0 and ``high`` 1; all 0 where they are equal."""
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)

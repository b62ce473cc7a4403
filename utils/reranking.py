"""The second stage of retrieval: each caption's best images scored again, pair by pair."""
import torch
from tqdm import tqdm

from utils.errors import UserError

RERANK_SCORES = ('caption', 'released')
COSINE_SHARE = 0.002       # what the first stage counts beside the second (APTM)


def rerank(similarity, count, match, score='caption', progress=True):
    """Similarities [captions, images] of the first stage -> those that order each caption's ``count`` best images by ``match``.

    The images that were not scored again get the least of the row's scores, and so stay behind in the first stage's order.
    ``score``: 'released' is APTM's: minmax(second) + 0.002 minmax(first), each min-max over the whole matrix, which makes a caption's
    ranking depend on the other captions; 'caption' does the same within each caption's row, and is the default.

    Args:
        similarity: float32 [Q, G], on the CPU.
        match: ``match(caption, images)``: the scores, float32 [count], of caption number ``caption`` (an int) with the images at the
            int64 indices [count]; called once a caption, never for all pairs.

    Raises:
        UserError: ``count`` isn't between 1 and the size of the gallery.
    """
    captions, gallery = similarity.shape
    if not 1 <= count <= gallery:
        raise UserError(f'--rerank {count}: the gallery holds {gallery} images; give a number from 1 to {gallery}')
    second = torch.empty_like(similarity)
    for caption in tqdm(range(captions), desc='re-ranking', leave=False, disable=None if progress else True):
        best = similarity[caption].topk(count).indices
        scores = match(caption, best).float().cpu()
        second[caption] = scores.min()
        second[caption, best] = scores
    return combined(second, similarity, score)


def combined(second, first, score='caption'):
    """Both stages' scores [Q, G] as one; see :func:`rerank`."""
    over = None if score == 'released' else 1
    return minmax(second, over) + COSINE_SHARE * minmax(first, over)


def minmax(scores, dim=None):
    """Scores shifted and scaled to [0, 1], over the whole matrix or along ``dim``; all 0 where they are equal."""
    low, high = (scores.amin(dim, keepdim=True), scores.amax(dim, keepdim=True)) if dim is not None else (scores.min(), scores.max())
    return (scores - low) / (high - low).clamp(min=torch.finfo(scores.dtype).tiny)

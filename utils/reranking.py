"""Re-ranking: score each caption's best images again, pair by pair, or compare embeddings in another way."""
import torch
from tqdm import tqdm

from utils.k_reciprocal import k_reciprocal_slabs
from utils.query_expansion import expand_queries
from utils.ranking import cosine_slabs
from utils.rerank_options import PairScores, QueryExpansion

COSINE_WEIGHT = 0.002       # weight of the cosine similarity next to the pair's score (APTM)


def reranked_slabs(queries, gallery, settings):
    """Yield re-ranked similarities [q, G] that follow from embeddings alone, some queries at a time.

    Args:
        queries: [Q, D] float32, normalized.
        gallery: [G, D] float32, normalized.
        settings: a :class:`~utils.rerank_options.KReciprocal` or :class:`~utils.rerank_options.QueryExpansion`.
    """
    if isinstance(settings, QueryExpansion):
        return cosine_slabs(expand_queries(queries, gallery, settings), gallery)
    return k_reciprocal_slabs(queries, gallery, settings)


def score_candidates(slabs, count, gallery, match, total=None, progress=True):
    """Score each caption's ``count`` most similar images.

    Args:
        slabs: iterable of cosine similarities [q, G] of the captions in order, some at a time.
        count: number of images to score for each caption.
        gallery: G, the number of images.
        match: ``match(caption, images)`` returns the scores, float32 [count], of a caption's number (an int) and image
            numbers, int64 [count]. It is called once for each caption.
        total: the number of captions, for the progress bar.
        progress: whether to show the progress bar.

    Returns:
        ``(images [Q, count], scores [Q, count])``, the images in descending order of the cosine similarity.

    Raises:
        UserError: ``count`` is not between 1 and G.
    """
    PairScores(count).check_sizes(gallery, total)
    candidates, scores = [], []
    with tqdm(total=total, desc='re-ranking', unit='caption', leave=False, disable=None if progress else True) as bar:
        for slab in slabs:
            images = slab.topk(count, dim=1).indices.cpu()
            for row in images:
                scores.append(match(len(scores), row).float().cpu())
                bar.update()
            candidates.append(images)
    return torch.cat(candidates), torch.stack(scores)


def combine_scores(slabs, candidates, scores, score='caption', bounds=None, temperature=None):
    """Yield the similarities [q, G] after re-ranking, slab by slab.

    Images without a pair's score rank after the others, by cosine similarity. With 'caption' and 'released' they get
    the smallest score of their row.

    Args:
        slabs: iterable of cosine similarities [q, G].
        candidates: [Q, count] scored images.
        scores: [Q, count] their scores.
        score: 'released' is APTM's: minmax(scores) + 0.002 minmax(cosine), each over all pairs, so that a
            caption's ranking depends on the other captions. 'caption' does the same within each row. 'itm' ranks the
            scored images by their scores alone (RaSa, MARS). 'sum' ranks them by score + cosine / temperature.
        bounds: smallest and largest cosine similarity of all slabs, for 'released'.
        temperature: softmax temperature of the cosine similarities, for 'sum'.
    """
    start = 0
    for cosine in slabs:
        rows = slice(start, start + len(cosine))
        start += len(cosine)
        row_scores = scores[rows].to(cosine.device)
        if score == 'sum':
            row_scores = row_scores + cosine.gather(1, candidates[rows].to(cosine.device)) / temperature
        if score in ('itm', 'sum'):
            yield rank_candidates_first(cosine, candidates[rows].to(cosine.device), row_scores)
            continue
        smallest = row_scores.min(dim=1, keepdim=True).values
        pair = smallest.expand_as(cosine).scatter(1, candidates[rows].to(cosine.device), row_scores)
        if score == 'released':
            yield minmax(pair, scores.min(), scores.max()) + COSINE_WEIGHT * minmax(cosine, *bounds)
        else:
            yield minmax(pair, *row_bounds(pair)) + COSINE_WEIGHT * minmax(cosine, *row_bounds(cosine))


def rank_candidates_first(cosine, candidates, scores):
    """Replace the cosine similarities of candidates by numbers above 1, in the order of their scores.

    The numbers are integers, so that no score is rounded. Equal scores keep the order of the candidates.

    Args:
        cosine: [q, G].
        candidates: [q, count] columns of ``cosine``.
        scores: [q, count] their scores.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)                                          # [q, count]
    values = torch.arange(scores.shape[1] + 1, 1, -1, dtype=cosine.dtype, device=cosine.device)      # [count]
    return cosine.scatter(1, candidates.gather(1, order), values.expand_as(order))


def row_bounds(scores):
    """Return each row's smallest and largest value, [q, 1] each."""
    return scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)


def global_bounds(slabs):
    """Return the smallest and the largest value of all slabs."""
    bounds = [(slab.min(), slab.max()) for slab in slabs]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def minmax(values, low, high):
    """Scale values so that ``low`` becomes 0 and ``high`` 1; all become 0 if ``low`` equals ``high``."""
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)

"""Ranks of the relevant gallery items of each query: exact, without sorting, and without storing all similarities.

Shapes: Q queries, G gallery items, M pairs of a query and a relevant item, R the most relevant items of a query.
"""
import contextlib
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import UserError

SLAB = 1 << 26    # similarities in memory at a time: 256 MiB of float32, however large the gallery
BLOCK = 1 << 20   # similarities that a thread ranks at a time: 4 MiB, which fit into its cache


@dataclass
class Ranking:
    """The ranks of each query's relevant gallery items.

    Attributes:
        ranks: [M] ranks of all relevant items, from 0, query by query, ascending within a query.
        counts: [Q] number of relevant items of each query; it divides ``ranks``.
        top: [Q, max_rank] gallery indices of the best ranked items.
        ties: number of queries for which a relevant and another item have the same similarity.
    """
    ranks: torch.Tensor
    counts: torch.Tensor
    top: torch.Tensor
    ties: int

    @property
    def first(self):
        """[Q] rank of each query's best ranked relevant item."""
        return self.ranks[self.counts.cumsum(0) - self.counts]

    @property
    def last(self):
        """[Q] rank of each query's worst ranked relevant item."""
        return self.ranks[self.counts.cumsum(0) - 1]


def rank_relevant(similarity, q_pids, g_pids, max_rank=10):
    """Rank the gallery for every query, by descending similarity. Equal similarities are ranked in gallery order.

    Args:
        similarity: [Q, G], higher is more similar; any real dtype, any device.
        q_pids, g_pids: [Q] and [G] identities. An item of the query's identity is relevant.
        max_rank: number of best ranked items to return as ``top``.

    Returns:
        A :class:`Ranking`.

    Raises:
        UserError: a similarity is NaN, a query has no relevant gallery item, or the shapes do not agree.
    """
    q_pids, g_pids = as_tensor(q_pids), as_tensor(g_pids)
    if similarity.shape != (len(q_pids), len(g_pids)):
        raise UserError(f'similarities of shape {list(similarity.shape)} for {len(q_pids)} queries and '
                        f'{len(g_pids)} gallery items')
    return rank_slabs(similarity.split(slab_rows(len(g_pids))), q_pids, g_pids, max_rank)


@torch.no_grad()
def rank_embeddings(qfeats, gfeats, q_pids, g_pids, max_rank=10):
    """Rank the gallery by cosine similarity, as :func:`rank_relevant`, with at most ``SLAB`` similarities in memory.

    Args:
        qfeats, gfeats: [Q, D] and [G, D] embeddings on one device, normalized or not. They are compared on the device,
            in float32.
        q_pids, g_pids, max_rank: see :func:`rank_relevant`.

    Returns:
        A :class:`Ranking`.

    Raises:
        UserError: an embedding is NaN or infinite, a query has no relevant gallery item, or the shapes do not agree.

    Example:
        >>> captions, images = torch.tensor([[1., 0.], [0., 2.]]), torch.tensor([[3., 0.], [1., 1.], [0., 1.]])
        >>> ranking = rank_embeddings(captions, images, [7, 8], [7, 8, 8], max_rank=2)
        >>> ranking.top     # of each caption the images ranked first
        tensor([[0, 1],
                [2, 1]])
        >>> ranking.ranks   # of the matches, from 0: image 0 for the first caption, images 2 and 1 for the second
        tensor([0, 0, 1])
    """
    q_pids, g_pids = as_tensor(q_pids), as_tensor(g_pids)
    if len(qfeats) != len(q_pids) or len(gfeats) != len(g_pids):
        raise UserError(f'{len(qfeats)} and {len(gfeats)} embeddings for {len(q_pids)} queries and '
                        f'{len(g_pids)} gallery items')
    with full_precision():
        return rank_slabs(cosine_slabs(qfeats.float(), gfeats.float()), q_pids, g_pids, max_rank)


def cosine_slabs(qfeats, gfeats):
    """Yield cosine similarities [q, G], of as many queries at a time as ``SLAB`` allows.

    The next slab overwrites the memory of the previous one.
    """
    norms = gfeats.norm(dim=1).clamp(min=1e-12)                                       # [G]; the gallery is not copied
    rows = slab_rows(len(gfeats))
    slab = gfeats.new_empty(min(rows, len(qfeats)), len(gfeats))
    for queries in qfeats.split(rows):
        yield torch.mm(F.normalize(queries, dim=1), gfeats.t(), out=slab[:len(queries)]).div_(norms)


def slab_rows(gallery_size):
    """Return the number of queries in a slab."""
    return max(1, SLAB // max(1, gallery_size))


@contextlib.contextmanager
def full_precision():
    """Multiply float32 matrices in float32 inside the ``with`` block, not in TF32 or bfloat16."""
    try:
        settings = [(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), 'highest')]
    except RuntimeError:   # PyTorch has two interfaces, and refuses the older one after the newer was used
        settings = [(functools.partial(setattr, backend, 'fp32_precision'), backend.fp32_precision, 'ieee')
                    for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]
    lowered = [setting for setting in settings if setting[1] not in ('highest', 'ieee', 'none')]
    try:
        for set_precision, _, full in lowered:
            set_precision(full)
        yield
    finally:
        for set_precision, previous, _ in lowered:
            set_precision(previous)


def rank_slabs(slabs, q_pids, g_pids, max_rank):
    """Rank similarities that are computed slab by slab.

    A slab is ranked before the next is computed. All threads compute a slab together; then each ranks blocks of it.

    Args:
        slabs: iterable of similarities [q, G], for the queries in order.
        q_pids, g_pids: [Q] and [G] identities.
        max_rank: number of best ranked items to return.

    Returns:
        A :class:`Ranking`.

    Raises:
        UserError: a similarity is NaN, or a query has no relevant gallery item.
    """
    relevant = RelevantItems.from_identities(q_pids, g_pids)
    if (relevant.counts == 0).any():
        unmatched = (relevant.counts == 0).nonzero().flatten()
        raise UserError(f'{len(unmatched)} queries have no gallery item of their identity (first: query '
                        f'{unmatched[0].item()}, pid {q_pids[unmatched[0]].item()}); the split is incomplete')
    rows, start, results = max(1, BLOCK // max(1, len(g_pids))), 0, []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:   # NumPy releases the interpreter's lock while it counts
        for slab in slabs:
            blocks = slab.float().cpu().split(rows)
            results += pool.map(lambda block, first: rank_block(block.numpy(), relevant, first, max_rank),
                                blocks, itertools.count(start, rows))
            start += len(slab)
    nans = sum(result[3] for result in results)
    if nans:
        raise UserError(f'{nans} of {len(q_pids) * len(g_pids)} similarities are NaN: the embeddings are broken and '
                        'nothing is ranked')
    ranks, top = (torch.from_numpy(np.concatenate([result[i] for result in results])) for i in range(2))
    return Ranking(ranks, relevant.counts, top, sum(result[2] for result in results))


@dataclass
class RelevantItems:
    """The relevant gallery items of query ``q``, in gallery order: ``items[starts[q]:starts[q] + counts[q]]``."""
    items: torch.Tensor    # [M]
    starts: torch.Tensor   # [Q]
    counts: torch.Tensor   # [Q]

    @classmethod
    def from_identities(cls, q_pids, g_pids):
        """Find the relevant items, given identities [Q] and [G]."""
        order = g_pids.argsort(stable=True)                                           # [G] the gallery by identity
        sorted_pids = g_pids[order]
        first, end = (torch.searchsorted(sorted_pids, q_pids, right=right) for right in (False, True))   # [Q] each
        counts = end - first
        starts = counts.cumsum(0) - counts
        offset = torch.arange(int(counts.sum())) - torch.repeat_interleave(starts, counts)
        return cls(order[torch.repeat_interleave(first, counts) + offset], starts, counts)

    def padded(self, start, queries):
        """Return ``(items [Q', R], mask [Q', R])`` of some queries as NumPy arrays; the mask excludes padding."""
        counts, starts = (column[start:start + queries, None].numpy() for column in (self.counts, self.starts))
        slots = np.arange(counts.max())                                               # [R]
        mask = slots < counts
        return self.items.numpy()[starts + np.where(mask, slots, 0)], mask


def rank_block(similarity, relevant, start, max_rank):
    """Rank a block of queries.

    Args:
        similarity: [Q', G] similarities of the queries from ``start`` on.
        relevant: the :class:`RelevantItems` of all queries.
        start: the number of the first query.
        max_rank: number of best ranked items to return.

    Returns:
        ``(ranks [M'], top [Q', max_rank], number of queries with ties, number of NaNs)``
    """
    nans = np.count_nonzero(np.isnan(similarity))
    if nans:
        return None, None, None, nans
    items, mask = relevant.padded(start, len(similarity))                             # [Q', R] each
    order = np.argsort(-mask.sum(axis=1), kind='stable')                              # [Q'] most relevant items first
    inverse = np.argsort(order)
    similarity = similarity.take(order, axis=0)                                       # [Q', G]
    ranks, is_tied = count_better(similarity, items[order], mask[order])
    return np.sort(ranks[inverse], axis=1)[mask], top_items(similarity, max_rank)[inverse], int(is_tied.sum()), 0


ROW_PARTS = 16   # parts of a row that are added as bytes, so that NumPy processes many elements at a time


def count_better(similarity, items, mask):
    """Count the items that are ranked before each relevant item.

    This takes two comparisons with the row. For few relevant items it is faster than sorting, and the more so the
    larger the gallery.

    Args:
        similarity: [Q, G], the queries with most relevant items first.
        items, mask: [Q, R] relevant items, and which of them are no padding.

    Returns:
        ``(ranks [Q, R], is_tied [Q])``. The rank of padding is G.
    """
    queries, gallery = similarity.shape
    scores = np.take_along_axis(similarity, items, axis=1)                            # [Q, R]
    ranks, is_tied = np.full(items.shape, gallery, np.int64), np.zeros(queries, bool)
    buffer = np.zeros((queries, -(-gallery // ROW_PARTS) * ROW_PARTS), bool)
    row, column = np.arange(queries), np.arange(buffer.shape[1], dtype=np.int32)
    for slot, count in enumerate(mask.sum(axis=0)):                                   # the first queries have an item
        values, score, item, hits = similarity[:count], scores[:count, slot, None], items[:count, slot], buffer[:count]
        np.greater(values, score, out=hits[:, :gallery])
        ranks[:count, slot] = count_true(hits)
        np.equal(values, score, out=hits[:, :gallery])
        hits[row[:count], item] = False
        if hits.any():                                                                # other items are equally similar
            relevant = ((scores[:count] == score) & mask[:count]).sum(axis=1) - 1
            is_tied[:count] |= count_true(hits) > relevant
            ranks[:count, slot] += count_true(hits & (column < item[:, None].astype(np.int32)))
    return ranks, is_tied


def count_true(mask):
    """Count the true elements of each row: [Q, ROW_PARTS * n] -> [Q]. Adding bytes first is several times faster."""
    parts = mask.view(np.uint8).reshape(len(mask), ROW_PARTS, -1)
    return parts.sum(axis=1, dtype=np.uint8).sum(axis=1, dtype=np.int64)


def top_items(similarity, count):
    """Find each row's largest values in descending order, equal ones by position: [Q, G] -> [Q, min(count, G)]."""
    gallery = similarity.shape[1]
    count, width = min(count, gallery), gallery // ROW_PARTS
    if width >= count:   # the count largest values are no smaller than the count-th largest of these maxima
        bounds = similarity[:, :ROW_PARTS * width].reshape(-1, ROW_PARTS, width).max(axis=1)    # [Q, width]
    else:
        bounds = similarity
    smallest = np.partition(bounds, -count, axis=1)[:, -count, None]                  # [Q, 1]
    large = np.flatnonzero(similarity >= smallest)
    rows, columns = np.divmod(large, gallery)
    order = np.lexsort((-similarity.reshape(-1)[large], rows))                        # stable
    starts = np.searchsorted(rows, np.arange(len(similarity)))
    return columns[order][starts[:, None] + np.arange(count)]


def as_tensor(values):
    """Convert a list, an array or a tensor to a tensor on the CPU."""
    return values.cpu() if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))

"""Where relevant gallery items come in each query's ranking, exactly, without sorting and without holding all similarities."""
import contextlib
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import UserError

SLAB = 1 << 26    # similarities of embeddings that are held at a time: 256 MiB of float32, however large the gallery
BLOCK = 1 << 20   # similarities that a thread ranks at a time: 4 MiB, which stay in its cache


@dataclass
class Ranking:
    """Where each query's relevant gallery items come in its ranking."""
    ranks: torch.Tensor    # [M] 0-based ranks of all relevant items, query after query, ascending within a query
    counts: torch.Tensor   # [Q] relevant items a query; ranks' layout
    top: torch.Tensor      # [Q, max_rank] gallery indices of the best ranked
    ties: int              # queries where a relevant and another item have the same similarity

    @property
    def first(self):
        """[Q] rank of each query's best ranked relevant item."""
        return self.ranks[self.counts.cumsum(0) - self.counts]

    @property
    def last(self):
        """[Q] rank of each query's worst ranked relevant item."""
        return self.ranks[self.counts.cumsum(0) - 1]


def rank_relevant(similarity, q_pids, g_pids, max_rank=10):
    """Rank the gallery for every query, by falling similarity, equal ones in gallery order.

    Args:
        similarity: [Q, G], higher is more alike; any real dtype, any device.
        q_pids, g_pids: [Q] and [G] identities; same pid = relevant.
        max_rank: how many of the best to return as ``top``.

    Raises:
        UserError: a similarity is NaN, a query has no relevant gallery item, or numbers don't agree.
    """
    q_pids, g_pids = as_tensor(q_pids), as_tensor(g_pids)
    if similarity.shape != (len(q_pids), len(g_pids)):
        raise UserError(f'similarities of shape {list(similarity.shape)} for {len(q_pids)} queries and {len(g_pids)} gallery items')
    return rank_slabs(similarity.split(slab_rows(len(g_pids))), q_pids, g_pids, max_rank)


@torch.no_grad()
def rank_embeddings(qfeats, gfeats, q_pids, g_pids, max_rank=10):
    """:func:`rank_relevant` by cosine similarity, without ever holding all similarities: ``SLAB`` of them at a time.

    Args:
        qfeats, gfeats: [Q, D] and [G, D] embeddings, normalised or not, on one device; they are compared there, in float32.
        q_pids, g_pids, max_rank: as for :func:`rank_relevant`.

    Raises:
        UserError: an embedding is NaN or infinite, a query has no relevant gallery item, or numbers don't agree.

    >>> captions, images = torch.tensor([[1., 0.], [0., 2.]]), torch.tensor([[3., 0.], [1., 1.], [0., 1.]])
    >>> found = rank_embeddings(captions, images, [7, 8], [7, 8, 8], max_rank=2)
    >>> found.top     # of each caption the images ranked first
    tensor([[0, 1],
            [2, 1]])
    >>> found.ranks   # of the matches, counted from 0: image 0 for the first caption, images 2 and 1 for the second
    tensor([0, 0, 1])
    """
    q_pids, g_pids = as_tensor(q_pids), as_tensor(g_pids)
    if len(qfeats) != len(q_pids) or len(gfeats) != len(g_pids):
        raise UserError(f'{len(qfeats)} and {len(gfeats)} embeddings for {len(q_pids)} queries and {len(g_pids)} gallery items')
    with full_precision():
        return rank_slabs(cosine_slabs(qfeats.float(), gfeats.float()), q_pids, g_pids, max_rank)


def cosine_slabs(qfeats, gfeats):
    """Yields cosine similarities [q, G], of as many queries at a time as ``SLAB`` allows, each time in the same memory."""
    norms = gfeats.norm(dim=1).clamp(min=1e-12)                                       # [G]; the gallery is not copied to normalise it
    rows = slab_rows(len(gfeats))
    slab = gfeats.new_empty(min(rows, len(qfeats)), len(gfeats))
    for queries in qfeats.split(rows):
        yield torch.mm(F.normalize(queries, dim=1), gfeats.t(), out=slab[:len(queries)]).div_(norms)


def slab_rows(gallery):
    return max(1, SLAB // max(1, gallery))


@contextlib.contextmanager
def full_precision():
    """Products of float32 matrices are computed in float32, whatever the program allows otherwise (TF32, bfloat16)."""
    try:
        switches = [(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), 'highest')]
    except RuntimeError:   # set through the newer of PyTorch's two interfaces; using both is refused
        switches = [(functools.partial(setattr, backend, 'fp32_precision'), backend.fp32_precision, 'ieee')
                    for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]
    lowered = [switch for switch in switches if switch[1] not in ('highest', 'ieee', 'none')]
    try:
        for choose, _, exact in lowered:
            choose(exact)
        yield
    finally:
        for choose, before, _ in lowered:
            choose(before)


def rank_slabs(slabs, q_pids, g_pids, max_rank):
    """The :class:`Ranking` of similarities that come as ``slabs`` [q, G], for the queries in order; each is done with before the next
    is taken. All threads compute a slab together, and then each ranks blocks of it."""
    relevant = Relevant.of(q_pids, g_pids)
    if (relevant.counts == 0).any():
        alone = (relevant.counts == 0).nonzero().flatten()
        raise UserError(f'{len(alone)} queries have no gallery item of their identity (first: query {alone[0].item()}, '
                        f'pid {q_pids[alone[0]].item()}); the split is not whole')
    rows, start, blocks = max(1, BLOCK // max(1, len(g_pids))), 0, []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:   # NumPy counts without the interpreter's lock
        for slab in slabs:
            parts = slab.float().cpu().split(rows)
            blocks += pool.map(lambda part, first: rank_block(part.numpy(), relevant, first, max_rank), parts, itertools.count(start, rows))
            start += len(slab)
    nans = sum(block[3] for block in blocks)
    if nans:
        raise UserError(f'{nans} of {len(q_pids) * len(g_pids)} similarities are NaN: the embeddings are broken and nothing is ranked')
    ranks, top = (torch.from_numpy(np.concatenate([block[i] for block in blocks])) for i in range(2))
    return Ranking(ranks, relevant.counts, top, sum(block[2] for block in blocks))


@dataclass
class Relevant:
    """For each query the gallery items of its identity, in gallery order: ``items[starts[q]:starts[q] + counts[q]]``."""
    items: torch.Tensor    # [M]
    starts: torch.Tensor   # [Q]
    counts: torch.Tensor   # [Q]

    @classmethod
    def of(cls, q_pids, g_pids):
        order = g_pids.argsort(stable=True)                                           # [G] the gallery, identity by identity
        first, after = (torch.searchsorted(g_pids[order], q_pids, right=right) for right in (False, True))   # [Q] each
        counts = after - first
        starts = counts.cumsum(0) - counts
        offset = torch.arange(int(counts.sum())) - torch.repeat_interleave(starts, counts)
        return cls(order[torch.repeat_interleave(first, counts) + offset], starts, counts)

    def padded(self, start, queries):
        """(items [Q', R], which of them are there [Q', R]) of some queries, as NumPy arrays."""
        counts, starts = (column[start:start + queries, None].numpy() for column in (self.counts, self.starts))
        slots = np.arange(counts.max())                                               # [R]
        there = slots < counts
        return self.items.numpy()[starts + np.where(there, slots, 0)], there


def rank_block(similarity, relevant, start, max_rank):
    """(ranks [M'], top [Q', max_rank], tied queries, NaNs) of similarities [Q', G], those of the queries from ``start`` on."""
    nans = np.count_nonzero(np.isnan(similarity))
    if nans:
        return None, None, None, nans
    items, there = relevant.padded(start, len(similarity))                            # [Q', R] each
    order = np.argsort(-there.sum(axis=1), kind='stable')                             # [Q'] most relevant items first
    back = np.argsort(order)
    similarity = similarity.take(order, axis=0)                                       # [Q', G]
    ranks, tied = count_before(similarity, items[order], there[order])
    return np.sort(ranks[back], axis=1)[there], best(similarity, max_rank)[back], int(tied.sum()), 0


PIECES = 16   # of a row that are laid on top of each other, so that NumPy works on many at a time


def count_before(similarity, items, there):
    """(ranks [Q, R] of relevant items, G where none is; tied [Q]) of similarities [Q, G], the queries with most items first.

    A rank is the number of items before the relevant one. Counting them takes two comparisons with the row, which for the few
    relevant items there are is quicker than sorting it, and the more so the larger the gallery.
    """
    queries, gallery = similarity.shape
    scores = np.take_along_axis(similarity, items, axis=1)                            # [Q, R]
    ranks, tied = np.full(items.shape, gallery, np.int64), np.zeros(queries, bool)
    mask = np.zeros((queries, -(-gallery // PIECES) * PIECES), bool)
    row, place = np.arange(queries), np.arange(mask.shape[1], dtype=np.int32)
    for slot, count in enumerate(there.sum(axis=0)):                                  # of the first queries, that have so many items
        values, score, item, found = similarity[:count], scores[:count, slot, None], items[:count, slot], mask[:count]
        np.greater(values, score, out=found[:, :gallery])
        ranks[:count, slot] = count_rows(found)
        np.equal(values, score, out=found[:, :gallery])
        found[row[:count], item] = False
        if found.any():                                                               # others have the same similarity
            relevant = ((scores[:count] == score) & there[:count]).sum(axis=1) - 1
            tied[:count] |= count_rows(found) > relevant
            ranks[:count, slot] += count_rows(found & (place < item[:, None].astype(np.int32)))
    return ranks, tied


def count_rows(mask):
    """[Q] how many are true in each row of [Q, PIECES * n]. Adding in bytes first is several times as quick as a plain sum."""
    return mask.view(np.uint8).reshape(len(mask), PIECES, -1).sum(axis=1, dtype=np.uint8).sum(axis=1, dtype=np.int64)


def best(similarity, count):
    """[Q, min(count, G)] places of each row's largest values, the largest first, equal ones in order."""
    gallery = similarity.shape[1]
    count, width = min(count, gallery), gallery // PIECES
    if width >= count:   # the count largest values are no smaller than the count-th largest of these maxima
        bounds = similarity[:, :PIECES * width].reshape(-1, PIECES, width).max(axis=1)    # [Q, width]
    else:
        bounds = similarity
    least = np.partition(bounds, -count, axis=1)[:, -count, None]                     # [Q, 1]
    large = np.flatnonzero(similarity >= least)
    rows, places = np.divmod(large, gallery)
    order = np.lexsort((-similarity.reshape(-1)[large], rows))                        # stable
    starts = np.searchsorted(rows, np.arange(len(similarity)))
    return places[order][starts[:, None] + np.arange(count)]


def as_tensor(values):
    return values.cpu() if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))

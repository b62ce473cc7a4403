"""Retrieval metrics, the evaluation of a model, and the checks that keep its numbers honest."""
import contextlib
import functools
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from prettytable import PrettyTable
from torch.utils.data import DataLoader, SequentialSampler

from utils import precision
from utils.errors import UserError

logger = logging.getLogger('Pedestal.eval')

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


def rank(similarity, q_pids, g_pids, max_rank=10, get_mAP=True):
    """Text-to-image (or image-to-text) retrieval metrics in percent.

    Args:
        similarity: [Q, G], higher is more alike.
        q_pids: [Q] identities of the queries.
        g_pids: [G] identities of the gallery.
        max_rank: Rank-1 to Rank-``max_rank`` are computed.
        get_mAP: also mean average precision and mean inverse negative penalty (Ye et al., TPAMI 2021).

    Returns:
        ``(cmc [max_rank], mAP, mINP, indices [Q, max_rank])``, or ``(cmc, indices)`` without ``get_mAP``. Equal similarities are
        ranked in gallery order.

    Raises:
        UserError: NaN in the similarities, or a query without a relevant gallery item.
    """
    ranking = rank_relevant(similarity, q_pids, g_pids, max_rank)
    cmc = cumulative_matches(ranking, max_rank)
    if not get_mAP:
        return cmc, ranking.top
    return cmc, mean_average_precision(ranking), mean_inverse_negative_penalty(ranking), ranking.top


def cumulative_matches(ranking, max_rank):
    """[max_rank] percent of queries with a relevant item among the first 1, 2, ..., max_rank."""
    return torch.stack([(ranking.first < k).float().mean() for k in range(1, max_rank + 1)]) * 100


def mean_average_precision(ranking):
    """Percent: mean over queries of the mean over relevant items of (relevant items so far) / rank."""
    starts = ranking.counts.cumsum(0) - ranking.counts
    query = torch.repeat_interleave(torch.arange(len(ranking.counts)), ranking.counts)      # [M]
    so_far = torch.arange(len(ranking.ranks)) - starts[query] + 1                           # [M]
    precision = so_far.double() / (ranking.ranks + 1)
    per_query = torch.zeros(len(ranking.counts), dtype=torch.float64).index_add_(0, query, precision) / ranking.counts
    return (per_query.mean() * 100).float()


def mean_inverse_negative_penalty(ranking):
    """Percent: mean over queries of (number of relevant items) / rank of the last one."""
    return ((ranking.counts.double() / (ranking.last + 1)).mean() * 100).float()


def summary(similarity, q_pids, g_pids):
    """The :func:`figures` of similarities [Q, G]; see :func:`rank_relevant`."""
    return figures(rank_relevant(similarity, q_pids, g_pids))


def figures(ranking):
    """``{'R1', 'R5', 'R10', 'mAP', 'mINP'}`` in percent, and ``'ties'``: queries whose ranking a tie decides."""
    cmc = cumulative_matches(ranking, 10)
    return {'R1': cmc[0].item(), 'R5': cmc[4].item(), 'R10': cmc[9].item(), 'mAP': mean_average_precision(ranking).item(),
            'mINP': mean_inverse_negative_penalty(ranking).item(), 'ties': ranking.ties}


def table(results):
    """``{task: summary}`` as the table that papers print."""
    shown = PrettyTable(['task', 'R1', 'R5', 'R10', 'mAP', 'mINP'])
    for task, values in results.items():
        shown.add_row([task] + [f"{values[name]:.3f}" for name in shown.field_names[1:]])
    return shown.get_string()


IN_COMPANY = 1e-4   # the cosine distance that other neighbours may make, where all else, and so the rounding, stays the same
SAMPLES = 6         # of each side: at most 18 passes, 2% of RSTPReid's test split, the smallest of the published ones


@dataclass
class Independence:
    """How far embeddings depend on their neighbours in the batch, in cosine distances, for ``'text'`` and ``'image'``."""
    worst: dict = field(default_factory=dict)     # between the evaluation's own embeddings and those of batches of one
    company: dict = field(default_factory=dict)   # between the same samples at the same place of batches of other neighbours
    threshold: float = 1e-4                       # for worst: in half precision, batches of one are rounded otherwise
    samples: int = 0

    @property
    def holds(self):
        return (all(distance <= self.threshold for distance in self.worst.values())
                and all(distance <= IN_COMPANY for distance in self.company.values()))

    def __str__(self):
        alone, company = (', '.join(f'{side} {distance:.1e}' for side, distance in distances.items())
                          for distances in (self.worst, self.company))
        found = (f'largest cosine distance over {self.samples} samples to themselves one by one: {alone} (allowed: {self.threshold:g}), '
                 f'and beside other neighbours: {company} (allowed: {IN_COMPANY:g})')
        if self.holds:
            return f'each embedding depends on its own sample alone ({found})'
        return f'EMBEDDINGS DEPEND ON THE BATCH: the numbers above are of embeddings that saw their neighbours ({found})'


class Evaluator:
    """Embeds a split and ranks it: ``Evaluator(img_loader, txt_loader).eval(model)``.

    The loaders iterate ``(pids, images)`` and ``(pids, caption_ids)``; their datasets give single samples for the check.
    After :meth:`eval`, ``results`` holds ``{task: summary}``.
    """

    def __init__(self, img_loader, txt_loader):
        self.img_loader, self.txt_loader = img_loader, txt_loader
        self.results = {}

    def _compute_embedding(self, model):
        """``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])`` on the CPU, float32, not normalised."""
        qfeats, qids = embed(model.encode_text, self.txt_loader, model)
        gfeats, gids = embed(model.encode_image, self.img_loader, model)
        return qfeats, gfeats, qids, gids

    def eval(self, model, i2t_metric=False):
        """Log the table of text-to-image and, if asked, image-to-text metrics; returns text-to-image Rank-1 in percent."""
        self.results = retrieval_results(*self._compute_embedding(model), i2t_metric)
        logger.info('\n%s', table(self.results))
        if self.results['t2i']['ties']:
            logger.warning('ties decide the ranking of %d queries (ranked in gallery order)', self.results['t2i']['ties'])
        return self.results['t2i']['R1']


def retrieval_results(qfeats, gfeats, qids, gids, i2t_metric=False):
    """``{'t2i': summary}``, and ``'i2t'`` if asked, of embeddings [Q, D] and [G, D] compared by cosine similarity."""
    broken = [f'{int(bad)} of {len(feats)} {side}' for side, feats in (('caption', qfeats), ('image', gfeats))
              if (bad := (~feats.norm(dim=1).isfinite()).sum())]
    if broken:
        raise UserError(f"{' and '.join(broken)} embeddings are NaN or infinite; nothing is ranked")
    results = {'t2i': figures(rank_embeddings(qfeats, gfeats, qids, gids))}
    if i2t_metric:
        results['i2t'] = figures(rank_embeddings(gfeats, qfeats, gids, qids))
    return results


@torch.no_grad()
def embed(encode, loader, model):
    """All of a loader's embeddings [S, D] and pids [S], in its order, on the CPU, with the model in evaluation mode for as long.

    Captions that padding makes no difference to are embedded by falling length (:func:`longest_first`), whatever the order here.
    """
    device, was_training = next(model.parameters()).device, model.training
    cuts = encode == model.encode_text and hasattr(model, 'without_padding')
    order = longest_first(loader) if cuts and not model.refines else None
    batches = loader if order is None else batches_of(loader, order)
    model.eval()
    try:
        pids, feats = [], []
        for pid, sample in batches:
            pids.append(torch.as_tensor(pid).flatten())
            if cuts:
                sample = model.without_padding(sample)
            feats.append(encode(sample.to(device, non_blocking=True)).float())
    finally:
        model.train(was_training)
    if not feats:
        raise UserError('nothing to evaluate: the split is empty')
    feats, pids = torch.cat(feats).cpu(), torch.cat(pids)   # one transfer: the GPU never waits for the host
    return (feats, pids) if order is None else (feats[order.argsort()], pids[order.argsort()])


def longest_first(loader):
    """[S] the captions of a loader by falling length, so that batches hold little padding and the one that takes most memory comes
    at once. None where that isn't ours to choose: a loader that shuffles, that batches or iterates in its own way, or whose
    dataset has no ``tokens``."""
    if type(loader) is not DataLoader or type(loader.sampler) is not SequentialSampler or not loader.batch_size or loader.drop_last:
        return None
    tokens = getattr(loader.dataset, 'tokens', None)                                  # [S, L]
    if tokens is None or len(tokens) != len(loader.dataset):
        return None
    return (tokens != 0).sum(dim=1).argsort(descending=True, stable=True)


def batches_of(loader, order):
    """The batches of a loader as if its dataset were in another order."""
    for start in range(0, len(order), loader.batch_size):
        yield loader.collate_fn([loader.dataset[i] for i in order[start:start + loader.batch_size].tolist()])


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
            inputs = torch.stack([loader.dataset[i][1] for i in chosen]).to(device)
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

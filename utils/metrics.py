"""Retrieval metrics, the evaluation of a model, and the checks that keep its numbers honest."""
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from prettytable import PrettyTable

from utils.errors import UserError

logger = logging.getLogger('Pedestal.eval')

BLOCK = 1 << 24  # similarities ranked at a time: 64 MiB of float32 and a few times that in between


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
        UserError: a similarity is NaN, or a query has no relevant gallery item.
    """
    q_pids, g_pids = as_tensor(q_pids), as_tensor(g_pids)
    if similarity.shape != (len(q_pids), len(g_pids)):
        raise UserError(f'similarities of shape {list(similarity.shape)} for {len(q_pids)} queries and {len(g_pids)} gallery items')
    rows = max(1, BLOCK // max(1, len(g_pids)))
    blocks = [rank_block(similarity[start:start + rows].cpu(), q_pids[start:start + rows], g_pids, max_rank)
              for start in range(0, len(q_pids), rows)]
    nans = sum(block[4] for block in blocks)
    if nans:
        raise UserError(f'{nans} of {similarity.numel()} similarities are NaN: the embeddings are broken and nothing is ranked')
    ranks, counts, top, ties = (torch.cat([block[i] for block in blocks]) for i in range(4))
    if (counts == 0).any():
        alone = (counts == 0).nonzero().flatten()
        raise UserError(f'{len(alone)} queries have no gallery item of their identity (first: query {alone[0].item()}, '
                        f'pid {q_pids[alone[0]].item()}); the split is not whole')
    return Ranking(ranks, counts, top, int(ties.sum()))


def rank_block(similarity, q_pids, g_pids, max_rank):
    """(ranks [M], counts [Q], top [Q, max_rank], tied [Q], number of NaNs) of a block of queries, on the CPU."""
    nans = int(similarity.isnan().sum())
    order = similarity.argsort(dim=1, descending=True, stable=True)          # [Q, G]
    relevant = g_pids[order] == q_pids[:, None]                              # [Q, G] in ranked order
    ranked = similarity.gather(1, order)
    # A tie matters where two neighbours of the ranking are equal and one of them is relevant, the other not.
    tied = ((ranked[:, 1:] == ranked[:, :-1]) & (relevant[:, 1:] != relevant[:, :-1])).any(dim=1)
    return relevant.nonzero()[:, 1], relevant.sum(dim=1), order[:, :max_rank], tied, nans


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
    """``{'R1', 'R5', 'R10', 'mAP', 'mINP'}`` in percent, and ``'ties'``: queries whose ranking a tie decides."""
    ranking = rank_relevant(similarity, q_pids, g_pids)
    cmc = cumulative_matches(ranking, 10)
    return {'R1': cmc[0].item(), 'R5': cmc[4].item(), 'R10': cmc[9].item(), 'mAP': mean_average_precision(ranking).item(),
            'mINP': mean_inverse_negative_penalty(ranking).item(), 'ties': ranking.ties}


def table(results):
    """``{task: summary}`` as the table that papers print."""
    shown = PrettyTable(['task', 'R1', 'R5', 'R10', 'mAP', 'mINP'])
    for task, figures in results.items():
        shown.add_row([task] + [f"{figures[name]:.3f}" for name in shown.field_names[1:]])
    return shown.get_string()


@dataclass
class Independence:
    """How far embeddings move when the same samples are embedded in another order and in batches of one."""
    worst: dict = field(default_factory=dict)   # {'text': cosine distance, 'image': ...}
    threshold: float = 1e-4
    samples: int = 0

    @property
    def holds(self):
        return all(distance <= self.threshold for distance in self.worst.values())

    def __str__(self):
        distances = ', '.join(f'{side} {distance:.1e}' for side, distance in self.worst.items())
        if self.holds:
            return (f'each embedding depends on its own sample alone (largest cosine distance over {self.samples} samples in '
                    f'another order and one by one: {distances})')
        return (f'EMBEDDINGS DEPEND ON THE BATCH: the same {self.samples} samples embedded in another order or one by one differ by a '
                f'cosine distance of {distances} (allowed: {self.threshold:g}); the numbers above are of embeddings that saw '
                'their neighbours')


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
              if (bad := (~feats.isfinite().all(dim=1)).sum())]
    if broken:
        raise UserError(f"{' and '.join(broken)} embeddings are NaN or infinite; nothing is ranked")
    similarity = F.normalize(qfeats, dim=1) @ F.normalize(gfeats, dim=1).t()
    results = {'t2i': summary(similarity, qids, gids)}
    if i2t_metric:
        results['i2t'] = summary(similarity.t(), gids, qids)
    return results


@torch.no_grad()
def embed(encode, loader, model):
    """All of a loader's embeddings [S, D] and pids [S], on the CPU, with the model in evaluation mode for as long."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        pids, feats = [], []
        for pid, sample in loader:
            pids.append(torch.as_tensor(pid).flatten())
            feats.append(encode(sample.to(device, non_blocking=True)).float().cpu())
    finally:
        model.train(was_training)
    if not feats:
        raise UserError('nothing to evaluate: the split is empty')
    return torch.cat(feats), torch.cat(pids)


def check_independence(model, img_loader, txt_loader, embeddings=None, samples=32, seed=0):
    """Does each embedding depend on its own sample alone?

    Embeds ``samples`` captions and images, spread over the split, shuffled in one batch and in batches of one, and compares
    all with ``embeddings`` (the loaders' own, ``(qfeats, gfeats)``; embedded here in the loaders' order if not given).
    A cosine distance above 1e-4 in float32, 1e-2 in half precision, is a difference.
    """
    from model.build import amp_dtype
    device = next(model.parameters()).device
    half = amp_dtype(model.amp, device) is not None if hasattr(model, 'amp') else False
    result = Independence(threshold=1e-2 if half else 1e-4)
    sides = (('text', model.encode_text, txt_loader, 0), ('image', model.encode_image, img_loader, 1))
    for side, encode, loader, position in sides:
        total = len(loader.dataset)
        chosen = torch.linspace(0, total - 1, min(samples, total)).long().unique()
        inputs = torch.stack([loader.dataset[int(i)][1] for i in chosen])
        given = embeddings[position][chosen] if embeddings else None
        result.worst[side] = largest_move(encode, inputs.to(device), model, given, seed)
        result.samples = max(result.samples, len(chosen))
    return result


@torch.no_grad()
def largest_move(encode, inputs, model, given, seed):
    """The largest cosine distance between embeddings of ``inputs`` [S, ...] in a batch (or ``given`` [S, D]), in another order,
    and one by one."""
    was_training = model.training
    model.eval()
    try:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        shuffled = encode(inputs[order.to(inputs.device)]).float().cpu()[order.argsort()]
        alone = torch.cat([encode(inputs[i:i + 1]).float().cpu() for i in range(len(inputs))])
        reference = encode(inputs).float().cpu() if given is None else given
    finally:
        model.train(was_training)
    return max((1 - F.cosine_similarity(reference.double(), other.double())).max().item() for other in (shuffled, alone))

"""Retrieval metrics in percent: Rank-k, mean average precision, mean inverse negative penalty."""
import importlib

import torch
from prettytable import PrettyTable

from utils.ranking import rank_relevant


def __getattr__(name):
    """IRRA's scripts import the evaluator from here; it lives with the models' way of a batch."""
    if name == 'Evaluator':
        return importlib.import_module('processor.evaluation').Evaluator
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


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

    >>> similarity = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.5, 0.4]])      # two captions, three images
    >>> cmc, mAP, mINP, indices = rank(similarity, [7, 8], [8, 7, 8], max_rank=3)
    >>> cmc
    tensor([  0.,  50., 100.])
    >>> round(float(mAP), 2), round(float(mINP), 2)
    (45.83, 50.0)
    >>> indices
    tensor([[0, 2, 1],
            [1, 2, 0]])
    """
    ranking = rank_relevant(similarity, q_pids, g_pids, max_rank)
    cmc = cumulative_matches(ranking, max_rank)
    if not get_mAP:
        return cmc, ranking.top
    return cmc, mean_average_precision(ranking), mean_inverse_negative_penalty(ranking), ranking.top


def cumulative_matches(ranking, max_rank):
    """[max_rank] percent of queries with a relevant item among the first 1, 2, ..., max_rank."""
    return torch.stack([(ranking.first < k).float().mean() for k in range(1, max_rank + 1)]) * 100


def average_precision(ranking):
    """[Q] from 0 to 1: the mean over a query's relevant items of (relevant items so far) / rank."""
    starts = ranking.counts.cumsum(0) - ranking.counts
    query = torch.repeat_interleave(torch.arange(len(ranking.counts)), ranking.counts)      # [M]
    so_far = torch.arange(len(ranking.ranks)) - starts[query] + 1                           # [M]
    precision = so_far.double() / (ranking.ranks + 1)
    return torch.zeros(len(ranking.counts), dtype=torch.float64).index_add_(0, query, precision) / ranking.counts


def inverse_negative_penalty(ranking):
    """[Q] from 0 to 1: (number of relevant items) / rank of the last one."""
    return ranking.counts.double() / (ranking.last + 1)


def mean_average_precision(ranking):
    """Percent: the mean over queries of :func:`average_precision`."""
    return (average_precision(ranking).mean() * 100).float()


def mean_inverse_negative_penalty(ranking):
    """Percent: the mean over queries of :func:`inverse_negative_penalty`."""
    return (inverse_negative_penalty(ranking).mean() * 100).float()


def summary(similarity, q_pids, g_pids):
    """The :func:`retrieval_metrics` of similarities [Q, G]; see :func:`rank_relevant`."""
    return retrieval_metrics(rank_relevant(similarity, q_pids, g_pids))


def retrieval_metrics(ranking):
    """``{'R1', 'R5', 'R10', 'mAP', 'mINP'}`` in percent, and ``'ties'``: queries whose ranking a tie decides."""
    cmc = cumulative_matches(ranking, 10)
    return {'R1': cmc[0].item(), 'R5': cmc[4].item(), 'R10': cmc[9].item(), 'mAP': mean_average_precision(ranking).item(),
            'mINP': mean_inverse_negative_penalty(ranking).item(), 'ties': ranking.ties}


def table(results, intervals=None):
    """``{task: summary}`` as the table that papers print, with the 95% ``intervals`` (``{task: {'R1': (low, high), ...}}``), if given."""
    parts = [task.removesuffix('-t2i') for task in results if task.endswith('-t2i')]   # of similarities that are sums
    metrics, known = ['R1', 'R5', 'R10', 'mAP', 'mINP'], [name for name in ('R1', 'mAP') if intervals]
    shown = PrettyTable(['task', *metrics, *(f'{name}, 95%' for name in known)])
    for task, values in results.items():
        bounds = ['{:.2f} to {:.2f}'.format(*intervals[task][name]) if task in intervals else '' for name in known]
        name = f"{'+'.join(parts)}-t2i" if parts and task == 't2i' else task
        shown.add_row([name, *(f'{values[name]:.3f}' for name in metrics), *bounds])
    return shown.get_string()

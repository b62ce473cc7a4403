"""Retrieval metrics in percent: Rank-k, mean average precision, mean inverse negative penalty."""
import torch
from prettytable import PrettyTable

from utils.ranking import rank_relevant


def rank(similarity, q_pids, g_pids, max_rank=10, get_mAP=True):
    """Compute text-to-image (or image-to-text) retrieval metrics in percent.

    Args:
        similarity: [Q, G], higher is more similar.
        q_pids: [Q] identities of the queries.
        g_pids: [G] identities of the gallery.
        max_rank: Rank-1 to Rank-``max_rank`` are computed.
        get_mAP: whether to compute mean average precision and mean inverse negative penalty (Ye et al., TPAMI 2021).

    Returns:
        ``(cmc [max_rank], mAP, mINP, indices [Q, max_rank])``, or ``(cmc, indices)`` without ``get_mAP``. Equal
        similarities are ranked in gallery order.

    Raises:
        UserError: a similarity is NaN, or a query has no relevant gallery item.

    Example:
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
    """Percentage of queries with a relevant item among the first 1, 2, ..., max_rank: [max_rank]."""
    return torch.stack([(ranking.first < k).float().mean() for k in range(1, max_rank + 1)]) * 100


def average_precision(ranking):
    """Mean over a query's relevant items of (number of relevant items so far) / rank: [Q] from 0 to 1."""
    starts = ranking.counts.cumsum(0) - ranking.counts
    query = torch.repeat_interleave(torch.arange(len(ranking.counts)), ranking.counts)      # [M]
    count = torch.arange(len(ranking.ranks)) - starts[query] + 1                            # [M]
    precision = count.double() / (ranking.ranks + 1)
    sums = torch.zeros(len(ranking.counts), dtype=torch.float64).index_add_(0, query, precision)
    return sums / ranking.counts


def inverse_negative_penalty(ranking):
    """Number of a query's relevant items / rank of the last one: [Q] from 0 to 1."""
    return ranking.counts.double() / (ranking.last + 1)


def mean_average_precision(ranking):
    """Mean over queries of :func:`average_precision`, in percent."""
    return (average_precision(ranking).mean() * 100).float()


def mean_inverse_negative_penalty(ranking):
    """Mean over queries of :func:`inverse_negative_penalty`, in percent."""
    return (inverse_negative_penalty(ranking).mean() * 100).float()


def compute_metrics(similarity, q_pids, g_pids):
    """Compute the :func:`retrieval_metrics` of similarities [Q, G]; see :func:`rank_relevant`."""
    return retrieval_metrics(rank_relevant(similarity, q_pids, g_pids))


def retrieval_metrics(ranking):
    """Compute the metrics of a :class:`~utils.ranking.Ranking`.

    Returns:
        ``{'R1', 'R5', 'R10', 'mAP', 'mINP'}`` in percent, and ``'ties'``, the number of queries whose ranking depends
        on the order of equal similarities.
    """
    cmc = cumulative_matches(ranking, 10)
    return {'R1': cmc[0].item(), 'R5': cmc[4].item(), 'R10': cmc[9].item(),
            'mAP': mean_average_precision(ranking).item(), 'mINP': mean_inverse_negative_penalty(ranking).item(),
            'ties': ranking.ties}


def format_table(results, intervals=None):
    """Format results as the table that papers print.

    Args:
        results: ``{task: retrieval_metrics}``
        intervals: 95% intervals, ``{task: {'R1': (low, high), ...}}``.
    """
    # the terms of a summed similarity
    parts = [task.removesuffix('-t2i') for task in results if task.endswith('-t2i')]
    metrics, interval_metrics = ['R1', 'R5', 'R10', 'mAP', 'mINP'], ['R1', 'mAP'] if intervals else []
    table = PrettyTable(['task', *metrics, *(f'{name}, 95%' for name in interval_metrics)])
    for task, values in results.items():
        bounds = ['{:.2f} to {:.2f}'.format(*intervals[task][name]) if task in intervals else ''
                  for name in interval_metrics]
        name = f"{'+'.join(parts)}-t2i" if parts and task == 't2i' else task
        table.add_row([name, *(f'{values[name]:.3f}' for name in metrics), *bounds])
    return table.get_string()

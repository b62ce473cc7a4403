"""Compare the queries of a group, such as captions with the word 'red', with all other queries.

The queries of an identity are similar: identities are resampled and permuted with all their queries, as in
:mod:`utils.statistics`.

Shapes: Q queries, G identities, W groups. A group may share queries with another one.
"""
from statistics import NormalDist

import numpy as np

from utils.statistics import DRAWS, LEVEL, chunk_sizes

MIN_IDENTITIES = 20        # with fewer, a 95% interval holds the truth in fewer than 92% of all cases
DRAWS_PER_GROUP = 100      # so that Holm's correction can reach p = 0.01
MAX_PADDING = 4            # longest row of an identity's values, in units of the mean number of its queries
MAX_EXCEEDANCES = 100      # of a group, after which its p is known to a tenth (Besag and Clifford, 1991)


def count_identities(groups, pids):
    """Count the identities with a query in each group: bool [W, Q], [Q] -> [W]."""
    return (sum_by_identities(groups, pids) > 0).sum(axis=1)


def compare_groups(values, groups):
    """Compute means of groups and their differences to all other queries.

    Args:
        values: [Q] values of the queries.
        groups: bool [W, Q], which queries each group has.

    Returns:
        ``(means, differences)``, [W] each. NaN if a group has no query, or all.

    Example:
        >>> compare_groups([100, 0, 0, 0], [[True, True, False, False]])
        (array([50.]), array([50.]))
    """
    values, groups = np.asarray(values, float), np.asarray(groups, bool)
    return means_and_differences(np.append(groups @ values, values.sum()), np.append(groups.sum(axis=1), len(values)))


def bootstrap_groups(values, groups, pids, draws=DRAWS, seed=0, level=LEVEL):
    """Compute intervals of the means of groups, and of their differences to all other queries.

    All groups share the draws of identities. The intervals are widened as those of
    :func:`utils.statistics.bootstrap_interval`, by the number of the group's identities.

    Args:
        values: [Q] values of the queries, in percent.
        groups: bool [W, Q], which queries each group has.
        pids: [Q] identities of the queries.
        draws, seed, level: see :func:`utils.statistics.bootstrap_interval`.

    Returns:
        ``(lows, highs, difference_lows, difference_highs)``, [W] each: intervals of the means of groups, and of their
        differences to all other queries. NaN for groups of one identity.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> pids = np.repeat(np.arange(200), 8)
        >>> groups = rng.random((1, 1600)) < 0.3
        >>> hits = 100.0 * (rng.random(1600) < 0.6 - 0.2 * groups[0])
        >>> intervals = bootstrap_groups(hits, groups, pids)
        >>> print('Rank-1 %.1f, others %+.1f' % tuple(map(np.squeeze, compare_groups(hits, groups))))
        Rank-1 39.1, others -24.3
        >>> print('95%% intervals %.1f to %.1f, %+.1f to %+.1f' % tuple(map(np.squeeze, intervals)))
        95% intervals 34.9 to 43.5, -29.3 to -19.2
    """
    values, groups = np.asarray(values, float), np.asarray(groups, bool)
    sums = sum_by_identities(np.concatenate([groups * values, values[None]]), pids)            # [W + 1, G]
    counts = sum_by_identities(np.concatenate([groups, np.ones_like(groups[:1])]), pids)       # [W + 1, G]
    rng, identities = np.random.default_rng(seed), sums.shape[1]
    mean, difference = compare_groups(values, groups)
    drawn = []
    for rows in chunk_sizes(draws, max(identities, len(sums))):
        weights = rng.multinomial(identities - 1, np.full(identities, 1 / identities), rows).astype(np.float32)
        drawn.append(means_and_differences(weights @ sums.T, weights @ counts.T))              # [rows, W] each
    inside = (counts[:-1] > 0).sum(axis=1)
    outside = (counts[-1] > counts[:-1]).sum(axis=1)
    drawn_means, drawn_differences = map(np.concatenate, zip(*drawn))
    low, high = widened_interval(drawn_means, mean, inside, level)
    difference_low, difference_high = widened_interval(drawn_differences, difference, np.minimum(inside, outside),
                                                       level)
    return low.clip(min=0), high.clip(max=100), difference_low.clip(min=-100), difference_high.clip(max=100)


def means_and_differences(sums, counts):
    """Compute the means of groups and their differences to all other queries.

    Args:
        sums: [..., W + 1] sums of the groups' values, and of all values.
        counts: [..., W + 1] numbers of queries.

    Returns:
        ``(means, differences)``, [..., W] each. NaN if a group has no query, or all.
    """
    (total_sum, total), (sums, counts) = (sums[..., -1:], counts[..., -1:]), (sums[..., :-1], counts[..., :-1])
    with np.errstate(invalid='ignore', divide='ignore'):
        means = sums / counts
        return means, means - (total_sum - sums) / (total - counts)


def widened_interval(drawn, center, identities, level):
    """Compute the intervals of draws, widened for few identities: by Student's t, and because draws vary too little.

    Args:
        drawn: [draws, W]; NaN if a draw has no query of a group, which then counts as the center.
        center: [W] the middles of the intervals.
        identities: [W] number of identities.
        level: level of the intervals.

    Returns:
        ``(low, high)``, [W] each; NaN for groups of one identity.
    """
    quantiles = np.quantile(np.where(np.isnan(drawn), center, drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    normal = NormalDist().inv_cdf((1 + level) / 2)
    with np.errstate(divide='ignore', invalid='ignore'):
        factors = student_t_quantiles(identities - 1, normal) / normal * (identities / (identities - 1)) ** 0.5
        intervals = center + (quantiles - center) * factors
    return np.where(identities > 1, intervals, np.nan)


def student_t_quantiles(freedom, normal):
    """Return quantiles of Student's t for many degrees of freedom, from the quantile of the normal distribution.

    It is the expansion of Abramowitz and Stegun (1964, 26.7.5), exact to 0.003 from 5 degrees of freedom.

    >>> student_t_quantiles(np.array([5, 19, 1000]), NormalDist().inv_cdf(0.975)).round(3).tolist()
    [2.568, 2.093, 1.962]
    """
    square = normal ** 2
    terms = ((square + 1) / 4, ((5 * square + 16) * square + 3) / 96,
             (((3 * square + 19) * square + 17) * square - 15) / 384)
    return normal * (1 + sum(term / freedom ** power for power, term in enumerate(terms, 1)))


def permutation_p_values(values, groups, pids, seed=0):
    """Compute p of each group's difference to all other queries, by permutations of identities.

    If the group made no difference, the values of an identity could be those of any other one. A permutation gives
    each identity the values of another one, in their order; values of an identity with fewer queries are repeated. p
    is the fraction of permutations with at least as large a difference, in either direction. The given order counts
    as one of them (Phipson and Smyth, 2010).

    Args:
        values: [Q] values of the queries.
        groups: bool [W, Q], which queries each group has.
        pids: [Q] identities of the queries.
        seed: seed of the permutations.

    Returns:
        [W] probabilities; 1 for a group without queries or with all.
    """
    groups = np.asarray(groups, bool)
    _, owner, sizes = np.unique(np.asarray(pids), return_inverse=True, return_counts=True)
    values, weights = np.asarray(values, np.float32), difference_weights(groups)       # [Q], [W, Q]
    blocks = pad_blocks(values, owner, sizes)                            # [G, N]
    slots = owner * blocks.shape[1] + positions_within_identities(owner) % blocks.shape[1]    # [Q] indices in G x N
    bounds = np.abs(weights @ values) - 1e-4                             # tolerance for rounding
    draws = max(DRAWS, DRAWS_PER_GROUP * len(groups))
    rng, drawn, exceeded = np.random.default_rng(seed), np.zeros(len(groups)), np.zeros(len(groups))
    for rows in chunk_sizes(draws, blocks.size):
        active = np.flatnonzero(exceeded < MAX_EXCEEDANCES)
        if not len(active):
            break
        order = rng.permuted(np.tile(np.arange(len(sizes)), (rows, 1)), axis=1)
        permuted = blocks.take(order, axis=0).reshape(rows, -1).take(slots, axis=1)    # [rows, Q]
        exceeded[active] += (np.abs(permuted @ weights[active].T) >= bounds[active]).sum(axis=0)
        drawn[active] += rows
    return (exceeded + 1) / (drawn + 1)


def difference_weights(groups):
    """Return weights whose product with the values is each group's difference to all others: [W, Q] -> [W, Q]."""
    inside = groups.sum(axis=1, keepdims=True)                           # [W, 1]
    outside = groups.shape[1] - inside
    has_both = (inside * outside > 0).astype(np.float32)
    return np.where(groups, has_both / np.maximum(inside, 1, dtype=np.float32),
                    -has_both / np.maximum(outside, 1, dtype=np.float32))


def pad_blocks(values, owner, sizes):
    """Return the values of each identity as a row, repeated up to the length of the longest: [Q] -> [G, N].

    An identity with far more queries than the others has a part of them in its row, at equal distances.

    >>> pad_blocks(np.array([1, 2, 3, 4]), np.array([0, 0, 0, 1]), np.array([3, 1])).tolist()
    [[1, 2, 3], [4, 4, 4]]
    """
    length = min(sizes.max(), MAX_PADDING * -(-len(values) // len(sizes)))
    parts = np.split(values[np.argsort(owner, kind='stable')], np.cumsum(sizes)[:-1])
    return np.stack([np.resize(part[np.arange(min(length, len(part))) * len(part) // min(length, len(part))], length)
                     for part in parts])


def positions_within_identities(owner):
    """Number the queries of each identity from 0, in their order: [Q] -> [Q].

    >>> positions_within_identities(np.array([0, 1, 0, 1, 1])).tolist()
    [0, 0, 1, 1, 2]
    """
    order = np.argsort(owner, kind='stable')
    starts = np.searchsorted(owner[order], owner)
    positions = np.empty(len(owner), int)
    positions[order] = np.arange(len(owner))
    return positions - starts


def sum_by_identities(rows, pids):
    """Sum rows [W, Q] over the queries of each identity: float32 [W, G]."""
    _, owner = np.unique(np.asarray(pids), return_inverse=True)
    order = np.argsort(owner, kind='stable')
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    return np.add.reduceat(np.asarray(rows, np.float32)[:, order], starts, axis=1)

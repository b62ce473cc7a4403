"""Intervals and tests for means over queries, where the queries of an identity are resampled together.

Rank-1 and mAP are means over queries of one value per query. The captions of a person are similar, so identities are
resampled with all their queries, never single queries. The gallery is fixed: an interval is about other people who are
searched for in a gallery such as this one.

Shapes: Q queries, G identities, S seeds.
"""
import functools
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

LEVEL = 0.95
DRAWS = 10_000     # their noise is about a hundredth of an interval's width
CHUNK = 1 << 22    # identities to draw at a time: 32 MiB of indices


@dataclass
class Difference:
    """The difference of two models' means.

    Attributes:
        value: the difference.
        low, high: its interval.
        p: probability of such a large difference if the models were equal.
    """
    value: float
    low: float
    high: float
    p: float


def bootstrap_interval(values, pids, draws=DRAWS, seed=0, level=LEVEL):
    """Compute the bootstrap interval ``(low, high)`` of a mean over queries.

    Identities are resampled with all their queries (Davison and Hinkley, Bootstrap Methods, 1997, 3.8). A sample has
    one identity fewer than there are, which makes the variance of the draws unbiased (McCarthy and Snowden, 1985). The
    percentiles' distances from the mean are widened by the ratio of Student's t to the normal distribution. With
    several seeds, the seeds are also resampled.

    Args:
        values: [Q] values of the queries, or [S, Q] for S seeds; in percent.
        pids: [Q] identities of the queries.
        draws: number of bootstrap samples.
        seed: seed of the draws.
        level: level of the interval.

    Raises:
        UserError: all queries are of one identity.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> pids = np.repeat(np.arange(200), 8)
        >>> hits = 100 * (rng.random(1600) < rng.random(200)[pids])     # some people are easier to find than others
        >>> print('Rank-1 %.1f, 95%% interval %.1f to %.1f' % (hits.mean(), *bootstrap_interval(hits, pids)))
        Rank-1 47.9, 95% interval 43.4 to 52.2
    """
    _, low, high, _ = bootstrap_mean([values], pids, draws, seed, level)
    return max(low, 0.0), min(high, 100.0)


def compare_means(a, b, pids, draws=DRAWS, seed=0, level=LEVEL):
    """Compare the means of two models over the same queries.

    The interval is that of :func:`bootstrap_interval`, paired: a sample has the same identities for both models.

    With one seed per model, p comes from a permutation test, and is about these two trainings. If the models were
    equal, the difference of each identity would have either sign with the same probability.

    With several seeds, p is about any two trainings. It comes from Student's t with the variance between seeds and its
    degrees of freedom.

    Args:
        a, b: [Q] values of the queries for either model, or [S, Q] and [T, Q] for several seeds; in percent.
        pids: [Q] identities of the queries.
        draws, seed, level: see :func:`bootstrap_interval`.

    Returns:
        A :class:`Difference`.

    Raises:
        UserError: all queries are of one identity.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    value, low, high, p = bootstrap_mean([a, b], pids, draws, seed, level)
    if len(a) == len(b) == 1:
        p = permutation_p_value(a[0] - b[0], pids, draws, seed)
    return Difference(value, low, high, p)


def holm_correction(probabilities):
    """Apply Holm's correction (1979) for several tests: [T] -> [T] adjusted probabilities.

    Example:
        >>> holm_correction([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(probabilities, float)
    order = np.argsort(p, kind='stable')
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def permutation_p_value(differences, pids, draws=DRAWS, seed=0):
    """Compute the p value of a sum of differences [Q], by random signs of each identity's sum.

    It is the fraction of random signs whose sum is at least as far from 0. The given signs are counted as one of them
    (Phipson and Smyth, 2010).
    """
    sums, _ = sum_by_identity(differences, pids)                                      # [G]
    rng, count = np.random.default_rng(seed), 0
    bound = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()                               # tolerance for rounding
    for rows in chunk_sizes(draws, len(sums)):
        signs = rng.integers(0, 2, (rows, len(sums)), dtype=np.int8) * 2 - 1
        count += int((np.abs(signs @ sums) >= bound).sum())
    return (count + 1) / (draws + 1)


# -- the bootstrap -----------------------------------------------------------------------------------------------------

def bootstrap_mean(models, pids, draws, seed, level):
    """Bootstrap the mean of the first model, minus that of the second if there are two.

    A seed's mean also varies because its queries do. The draws of identities already include this part of the variance,
    so the deviations between seeds are shrunk by it.

    Args:
        models: one or two arrays of values, [S, Q] or [Q].
        pids, draws, seed, level: see :func:`bootstrap_interval`.

    Returns:
        ``(value, low, high, p)``, where p is of Student's t against 0.
    """
    rng = np.random.default_rng(seed)
    sums = [sum_by_identity(np.atleast_2d(values), pids)[0] for values in models]     # [S, G] each
    counts = sum_by_identity(np.ones(len(pids)), pids)[1]                             # [G]
    identities = len(counts)
    if identities < 2:
        raise UserError('all queries are of one identity: an interval needs several identities')
    total = counts.sum()
    profile = sum(sign * model.mean(axis=0) for sign, model in zip((1, -1), sums))    # [G]
    value = profile.sum() / total
    means = draw_means(profile, counts, draws, rng)                                   # [draws]
    terms = [(sum_variance(profile - value * counts) / total ** 2, identities - 1)]   # (variance, degrees of freedom)
    for sign, model in zip((1, -1), sums):
        if len(model) > 1:
            deviations, between, noise = seed_deviations(model, counts)
            means += sign * rng.choice(deviations, (draws, len(model) - 1)).mean(axis=1)
            terms += [(between / len(model), len(model) - 1),
                      (-noise / len(model), (len(model) - 1) * (identities - 1))]
    variance = max(terms[0][0], sum(term for term, _ in terms))
    if not variance:
        return value, value, value, float(value == 0)
    freedom = variance ** 2 / sum(term ** 2 / degrees for term, degrees in terms)
    widening = student_t_quantile(freedom, level) / student_t_quantile(np.inf, level)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    p = float((draw_student_t(freedom) >= abs(value) / variance ** 0.5).mean())
    return float(value), float(value + (low - value) * widening), float(value + (high - value) * widening), p


def draw_means(sums, counts, draws, rng):
    """Draw G - 1 identities with replacement, and compute the mean over their queries: [draws].

    Args:
        sums, counts: [G] sum of the values, and number of queries of each identity.
        draws: number of samples.
        rng: NumPy's generator.
    """
    means = []
    for rows in chunk_sizes(draws, len(counts)):
        chosen = rng.integers(0, len(counts), (rows, len(counts) - 1))
        means.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    return np.concatenate(means)


def seed_deviations(sums, counts):
    """Compute how far the means of seeds deviate from their mean.

    Args:
        sums: [S, G] sum of the values of each seed and identity.
        counts: [G] number of queries of each identity.

    Returns:
        ``(deviations [S], between, noise)``: ``between`` is the variance between the seeds' means, ``noise`` the part
        of it that the queries explain. The deviations are shrunk by this part.
    """
    total = counts.sum()
    deviations = (sums - sums.mean(axis=0)).sum(axis=1) / total                       # [S]
    residuals = sums - sums.mean(axis=0) - deviations[:, None] * counts               # [S, G]
    between, noise = deviations.var(ddof=1), sum_variance(residuals) / total ** 2 / (len(sums) - 1)
    shrinkage = max(0.0, 1 - noise / between) ** 0.5 if between else 0.0
    return deviations * shrinkage, between, noise


def sum_variance(residuals):
    """Estimate the variance of a sum over G identities from their residuals [..., G]."""
    return (residuals ** 2).sum() * residuals.shape[-1] / (residuals.shape[-1] - 1)


def sum_by_identity(values, pids):
    """Sum values [..., Q] over the queries of each identity: ``(sums [..., G], counts [G])``."""
    values = np.asarray(values, float)
    _, group, counts = np.unique(np.asarray(pids), return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(group, row) for row in values.reshape(-1, values.shape[-1])])
    return sums.reshape(*values.shape[:-1], len(counts)), counts


def chunk_sizes(rows, columns):
    """Split ``rows`` into chunks of at most ``CHUNK`` elements."""
    size = max(1, CHUNK // columns)
    return [min(size, rows - start) for start in range(0, rows, size)]


@functools.lru_cache(maxsize=16)
def draw_student_t(freedom):
    """Draw absolute values of Student's t; of the normal distribution if ``freedom`` is infinite."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(1 << 17)
    return np.abs(normal if freedom == np.inf else normal / np.sqrt(rng.chisquare(freedom, len(normal)) / freedom))


@functools.lru_cache(maxsize=16)
def student_t_quantile(freedom, level):
    """Return the value that the absolute value of Student's t does not exceed with probability ``level``."""
    return float(np.quantile(draw_student_t(freedom), level))

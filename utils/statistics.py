"""How sure a figure is: intervals and tests for means over queries, where the queries of an identity go together.

Rank-1 and mAP are means over queries of what each query reaches, so one array of values tells all about them. Captions of a person
are alike, and so identities are drawn anew, each with all its queries, and never single queries. The gallery stays as it is: an interval is
about other people who are looked for in a gallery such as this one.
"""
import functools
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

LEVEL = 0.95
DRAWS = 10_000     # their own noise is about a hundredth of an interval's width
CHUNK = 1 << 22    # identities that are drawn at a time: 32 MiB of indices


@dataclass
class Difference:
    """One model's mean less another's, its interval, and the probability of one as large if the models were alike."""
    value: float
    low: float
    high: float
    p: float


def interval(values, pids, draws=DRAWS, seed=0, level=LEVEL):
    """The bootstrap interval ``(low, high)`` of a mean over queries.

    Args:
        values: [Q] what each query reaches, or [S, Q] of S seeds; in percent.
        pids: [Q] identities of the queries.

    Identities are drawn anew with all their queries (Davison and Hinkley, Bootstrap Methods, 1997, 3.8), one fewer than there are, with
    which the variance of the draws is unbiased (McCarthy and Snowden, 1985), and the percentiles' distances from the mean are widened as
    Student's t is wider than the normal distribution. With several seeds these are drawn, too.

    >>> rng = np.random.default_rng(0)
    >>> pids = np.repeat(np.arange(200), 8)
    >>> found = 100 * (rng.random(1600) < rng.random(200)[pids])     # people differ in how easily they are found
    >>> print('Rank-1 %.1f, 95%% interval %.1f to %.1f' % (found.mean(), *interval(found, pids)))
    Rank-1 47.9, 95% interval 43.4 to 52.2

    Raises:
        UserError: all queries are of one identity.
    """
    _, low, high, _ = drawn_anew([values], pids, draws, seed, level)
    return max(low, 0.0), min(high, 100.0)


def difference(a, b, pids, draws=DRAWS, seed=0, level=LEVEL):
    """The :class:`Difference` of the means of two models over the same queries.

    Args:
        a, b: [Q] what each query reaches with either model, or [S, Q] and [T, Q] of several seeds; in percent.
        pids: [Q] identities of the queries.

    The interval is that of :func:`interval`, paired: an identity is drawn with its queries in both models. With one seed of each, p is of a
    permutation test: were the models alike, an identity's difference would as likely have the other sign. It is about these two
    trainings. With several seeds it is about any: p is of Student's t, with the variance between seeds and its degrees of freedom.

    Raises:
        UserError: all queries are of one identity.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    value, low, high, p = drawn_anew([a, b], pids, draws, seed, level)
    return Difference(value, low, high, flipped(a[0] - b[0], pids, draws, seed) if len(a) == len(b) == 1 else p)


def holm(probabilities):
    """Holm's correction (1979) for several tests: [T] adjusted probabilities, in the given order.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(probabilities, float)
    order = np.argsort(p, kind='stable')
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def flipped(differences, pids, draws=DRAWS, seed=0):
    """How probable a sum of ``differences`` [Q] as far from 0 is where each identity's could as well have the other sign: the share of
    random signs that reach it, with the given ones among them (Phipson and Smyth, 2010)."""
    sums, _ = by_identity(differences, pids)                                          # [G]
    rng, reached = np.random.default_rng(seed), 0
    bound = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()                               # sums in another order round otherwise
    for rows in chunks(draws, len(sums)):
        signs = rng.integers(0, 2, (rows, len(sums)), dtype=np.int8) * 2 - 1
        reached += int((np.abs(signs @ sums) >= bound).sum())
    return (reached + 1) / (draws + 1)


# -- the bootstrap -------------------------------------------------------------------------------------------------------

def drawn_anew(models, pids, draws, seed, level):
    """``(value, low, high, p)`` of the first model's mean, less the second's if there are two; p is of Student's t against 0.

    A seed's mean also moves with its queries, by what no other seed shares. That is in the draws of identities already, so a
    seed's distance from the others counts as far as it is more than that.
    """
    rng = np.random.default_rng(seed)
    sums = [by_identity(np.atleast_2d(values), pids)[0] for values in models]         # [S, G] each
    counts = by_identity(np.ones(len(pids)), pids)[1]                                 # [G]
    identities = len(counts)
    if identities < 2:
        raise UserError('all queries are of one identity: an interval needs several, which differ')
    total = counts.sum()
    profile = sum(sign * one.mean(axis=0) for sign, one in zip((1, -1), sums))        # [G]
    value = profile.sum() / total
    drawn = means_of_draws(profile, counts, draws, rng)                               # [draws]
    parts = [(squares(profile - value * counts) / total ** 2, identities - 1)]        # (variance, its degrees of freedom)
    for sign, one in zip((1, -1), sums):
        if len(one) > 1:
            deviations, between, noise = seeds_apart(one, counts)
            drawn += sign * rng.choice(deviations, (draws, len(one) - 1)).mean(axis=1)
            parts += [(between / len(one), len(one) - 1), (-noise / len(one), (len(one) - 1) * (identities - 1))]
    variance = max(parts[0][0], sum(part for part, _ in parts))
    if not variance:
        return value, value, value, float(value == 0)
    freedom = variance ** 2 / sum(part ** 2 / degrees for part, degrees in parts)
    wider = student(freedom, level) / student(np.inf, level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    p = float((students(freedom) >= abs(value) / variance ** 0.5).mean())
    return float(value), float(value + (low - value) * wider), float(value + (high - value) * wider), p


def means_of_draws(sums, counts, draws, rng):
    """[draws] means over queries of as many identities less one, drawn with replacement from those with ``sums`` and ``counts`` [G]."""
    means = []
    for rows in chunks(draws, len(counts)):
        chosen = rng.integers(0, len(counts), (rows, len(counts) - 1))
        means.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    return np.concatenate(means)


def seeds_apart(sums, counts):
    """``(deviations [S], between, noise)`` of seeds whose queries sum to ``sums`` [S, G]: the variance between the seeds' means, how
    much of it their queries alone explain, and the deviations from their mean, shrunk by as much."""
    total = counts.sum()
    deviations = (sums - sums.mean(axis=0)).sum(axis=1) / total                       # [S]
    rest = sums - sums.mean(axis=0) - deviations[:, None] * counts                    # [S, G]
    between, noise = deviations.var(ddof=1), squares(rest) / total ** 2 / (len(sums) - 1)
    shrunk = max(0.0, 1 - noise / between) ** 0.5 if between else 0.0
    return deviations * shrunk, between, noise


def squares(residuals):
    """The variance of the sum over G identities, from each one's residual [..., G]."""
    return (residuals ** 2).sum() * residuals.shape[-1] / (residuals.shape[-1] - 1)


def by_identity(values, pids):
    """(sums [..., G], counts [G]) over the queries of each identity, of values [..., Q]."""
    values = np.asarray(values, float)
    _, group, counts = np.unique(np.asarray(pids), return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(group, row) for row in values.reshape(-1, values.shape[-1])])
    return sums.reshape(*values.shape[:-1], len(counts)), counts


def chunks(rows, columns):
    """``rows`` in numbers of at most CHUNK elements."""
    size = max(1, CHUNK // columns)
    return [min(size, rows - start) for start in range(0, rows, size)]


@functools.lru_cache(maxsize=16)
def students(freedom):
    """Draws of the absolute value of Student's t; of the normal distribution for infinite ``freedom``."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(1 << 17)
    return np.abs(normal if freedom == np.inf else normal / np.sqrt(rng.chisquare(freedom, len(normal)) / freedom))


@functools.lru_cache(maxsize=16)
def student(freedom, level):
    """What the absolute value of Student's t stays below with probability ``level``."""
    return float(np.quantile(students(freedom), level))

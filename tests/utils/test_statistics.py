"""Intervals and tests against scipy's, and by simulation: how often they are right."""
import doctest
import itertools

import numpy as np
import pytest
import scipy.stats

import utils.statistics
from utils.errors import UserError
from utils.statistics import bootstrap_interval, compare_means, holm_correction, permutation_p_value, sum_by_identity

TRIALS = 500   # a rate of 95% then has a standard error of 1%


def people(rng, identities, spread=1.5):
    """Draw (pids [Q], ease [Q]): 2 to 12 captions per person, who is hard or easy to find."""
    pids = np.repeat(np.arange(identities), rng.integers(2, 13, identities))
    return pids, rng.normal(0, spread, identities)[pids]


def draw_hits(rng, ease):
    """Draw 100 if a caption's person is found, else 0; ``ease`` [..., Q] raises the probability."""
    return 100.0 * (rng.random(ease.shape) < 1 / (1 + np.exp(-ease)))


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(utils.statistics).failed == 0


# -- simulations -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shift', [0.0, 2.5], ids=['half are found', 'nearly all are found'])
def test_intervals_hold_the_truth_as_often_as_they_say(shift):
    """Draw people with their captions from a known distribution.

    Intervals from single captions cover the truth far less often.
    """
    truth = 100 * np.mean(1 / (1 + np.exp(-np.random.default_rng(0).normal(0, 1.5, 1_000_000) - shift)))
    rng, held, naive = np.random.default_rng(1), 0, 0
    for trial in range(TRIALS):
        pids, ease = people(rng, 100)
        values = draw_hits(rng, ease + shift)
        low, high = bootstrap_interval(values, pids, draws=1000, seed=trial)
        held += low <= truth <= high
        naive += abs(values.mean() - truth) <= 1.96 * values.std() / len(values) ** 0.5
    assert 0.93 <= held / TRIALS <= 0.97
    assert naive / TRIALS < 0.90


def test_models_that_differ_by_chance_are_told_apart_in_5_percent_of_trials():
    rng, differences_found, excluded = np.random.default_rng(2), 0, 0
    for trial in range(TRIALS):
        pids, ease = people(rng, 60)
        # each finds some people more easily
        a, b = draw_hits(rng, np.stack([ease, ease]) + rng.normal(0, 1, (2, 60))[:, pids])
        result = compare_means(a, b, pids, draws=999, seed=trial)
        differences_found += result.p <= 0.05
        excluded += not result.low <= 0 <= result.high
    assert 0.03 <= differences_found / TRIALS <= 0.07
    assert 0.03 <= excluded / TRIALS <= 0.07


@pytest.mark.parametrize('between', [0.0, 0.4], ids=['seeds differ by their captions alone', 'seeds differ as a whole'])
def test_methods_that_differ_by_their_seeds_alone_are_told_apart_as_rarely(between):
    """Compare three seeds of each model. If only captions were resampled, far more trials would show a difference."""
    rng, differences_found, by_one = np.random.default_rng(3), 0, 0
    for trial in range(TRIALS):
        pids, ease = people(rng, 60)
        a, b = draw_hits(rng, ease + rng.normal(0, between, (2, 3, 1)))                   # [3, Q] each
        differences_found += compare_means(a, b, pids, draws=200, seed=trial).p <= 0.05
        by_one += permutation_p_value(a.mean(axis=0) - b.mean(axis=0), pids, draws=200, seed=trial) <= 0.05
    assert differences_found / TRIALS <= 0.07
    if between:
        assert differences_found / TRIALS >= 0.02 and by_one / TRIALS > 0.15


# -- against other computations ----------------------------------------------------------------------------------------

def test_an_interval_is_scipys():
    """Compare with scipy's bootstrap of pairs (sum of an identity's values, number of its captions).

    It draws one identity more.
    """
    rng = np.random.default_rng(4)
    pids, ease = people(rng, 200)
    values = draw_hits(rng, ease)
    sums, counts = sum_by_identity(values, pids)
    expected = scipy.stats.bootstrap((sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True,
                                     vectorized=True,
                                     n_resamples=20_000, method='percentile', rng=rng).confidence_interval
    assert bootstrap_interval(values, pids, draws=20_000) == pytest.approx(expected, abs=0.15)  # of a width of 9 points


def test_the_difference_and_its_interval_are_scipys():
    rng = np.random.default_rng(5)
    pids, ease = people(rng, 200)
    a, b = draw_hits(rng, np.stack([ease + 0.3, ease]))
    sums, counts = sum_by_identity(a - b, pids)
    expected = scipy.stats.bootstrap((sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True,
                                     vectorized=True,
                                     n_resamples=20_000, method='percentile', rng=rng).confidence_interval
    result = compare_means(a, b, pids, draws=20_000)
    assert result.value == pytest.approx(a.mean() - b.mean())
    assert (result.low, result.high) == pytest.approx(expected, abs=0.1)
    assert result.low > 0 and result.p < 0.01


@pytest.mark.parametrize('identities', [8, 40])
def test_p_is_scipys(identities):
    rng = np.random.default_rng(6)
    pids, ease = people(rng, identities)
    a, b = draw_hits(rng, np.stack([ease + 0.3, ease]))
    sums, _ = sum_by_identity(a - b, pids)
    expected = scipy.stats.permutation_test((sums, np.zeros(identities)), lambda x, y, axis: (x - y).sum(axis),
                                            permutation_type='samples',
                                            vectorized=True, n_resamples=50_000, rng=rng).pvalue
    assert compare_means(a, b, pids, draws=50_000).p == pytest.approx(expected, abs=0.01)


def test_p_is_the_share_of_all_signs():
    differences, pids = np.array([30.0, 10, -20, 60, 5]), [0, 0, 1, 2, 3]
    sums = np.array([40.0, -20, 60, 5])
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=4)]
    expected = np.mean(np.array(totals) >= 85)
    assert permutation_p_value(differences, pids, draws=50_000) == pytest.approx(expected, abs=0.01)


def test_seeds_are_compared_as_welchs_test_does_where_people_make_no_difference():
    """With very many captions only the seeds differ: p and interval are Welch's."""
    rng = np.random.default_rng(7)
    pids = np.arange(2000)
    a, b = np.array([61.0, 63.5, 62.0, 64.0]), np.array([60.0, 60.8, 59.9])
    noise = rng.normal(0, 0.01, 2000)
    result = compare_means(a[:, None] + noise, b[:, None] + noise, pids, draws=20_000)
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert result.p == pytest.approx(expected.pvalue, abs=0.003)
    welch = expected.confidence_interval()
    # three seeds' draws take few values
    assert result.high - result.low == pytest.approx(welch.high - welch.low, rel=0.12)


def test_holm():
    """An example of Holm's procedure by hand: sorted, times 4, 3, 2 and 1, never decreasing, at most 1."""
    assert holm_correction([0.02, 0.005, 0.6, 0.03]).tolist() == pytest.approx([0.06, 0.02, 0.6, 0.06])
    assert holm_correction([0.9, 0.8]).tolist() == [1, 1] and holm_correction([0.3]).tolist() == [0.3]


# -- other properties --------------------------------------------------------------------------------------------------

def test_the_same_model_twice():
    pids = np.repeat(np.arange(10), 3)
    values = np.random.default_rng(8).random(30) * 100
    result = compare_means(values, values, pids)
    assert (result.value, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_the_order_of_the_queries_makes_no_difference_and_the_seed_repeats_the_draws():
    rng = np.random.default_rng(9)
    pids, ease = people(rng, 50)
    a, b = draw_hits(rng, np.stack([ease, ease]))
    order = rng.permutation(len(pids))
    one, other = compare_means(a, b, pids), compare_means(a[order], b[order], pids[order])
    assert vars(one) == pytest.approx(vars(other))
    first = bootstrap_interval(a, pids, seed=1)
    assert first == bootstrap_interval(a, pids, seed=1) != bootstrap_interval(a, pids, seed=2)


def test_intervals_are_percentages():
    pids = np.arange(12)
    low, high = bootstrap_interval(np.array([0.0] * 11 + [100]), pids)
    assert low == 0 and 8 < high < 100
    low, high = bootstrap_interval(np.array([100.0] * 11 + [0]), pids)
    assert high == 100


def test_one_identity():
    with pytest.raises(UserError, match='all queries are of one identity'):
        bootstrap_interval([0.0, 100.0], [3, 3])
    with pytest.raises(UserError, match='all queries are of one identity'):
        compare_means([0.0, 100.0], [100.0, 100.0], [3, 3])

"""Groups of queries against all others: against other computations, and by simulation."""
import numpy as np
import pytest
import scipy.stats

from utils import group_statistics
from utils.group_statistics import bootstrap_groups, compare_groups, count_identities, permutation_p_values
from utils.statistics import bootstrap_interval, holm_correction


def draw_people(rng, identities, groups, shift=0.0):
    """Draw (hits [Q] in percent, groups [W, Q], pids [Q]): people are hard or easy, and mostly in a group or not.

    ``shift`` makes the captions of the first group harder.
    """
    pids = np.repeat(np.arange(identities), rng.integers(2, 9, identities))
    members = (rng.random((groups, identities)) < 0.3)[:, pids]
    members &= rng.random(members.shape) < 0.8
    ease = rng.normal(0, 1.5, identities)[pids] - shift * members[0]
    return 100.0 * (rng.random(len(pids)) < 1 / (1 + np.exp(-ease))), members, pids


def test_differences_are_those_of_the_means():
    values, groups, _ = draw_people(np.random.default_rng(0), 30, 5)
    means, differences = compare_groups(values, groups)
    assert means == pytest.approx([values[group].mean() for group in groups])
    assert differences == pytest.approx([values[group].mean() - values[~group].mean() for group in groups])
    means, differences = compare_groups(values, np.array([np.ones(len(values)), np.zeros(len(values))]))
    assert means[0] == pytest.approx(values.mean()) and np.isnan([means[1], *differences]).all()


def test_identities_are_counted():
    assert count_identities([[True, True, False, False], [False, True, True, False]], [7, 7, 5, 9]).tolist() == [1, 2]


def test_a_group_of_whole_identities_has_the_interval_of_these_identities():
    """The number of drawn identities varies here, so the two intervals are not exactly equal."""
    values, _, pids = draw_people(np.random.default_rng(1), 300, 1)
    group = pids < 60
    low, high, _, _ = bootstrap_groups(values, group[None], pids)
    assert (low[0], high[0]) == pytest.approx(bootstrap_interval(values[group], pids[group]), abs=0.5)
    low, high, difference_low, _ = bootstrap_groups(values, np.ones_like(group)[None], pids)
    assert (low[0], high[0]) == pytest.approx(bootstrap_interval(values, pids), abs=0.2) and np.isnan(difference_low[0])


def test_p_is_that_of_scipys_permutations():
    """With one query per identity, permutations of identities are permutations of queries."""
    rng = np.random.default_rng(2)
    values, group = rng.random(60), np.arange(60) < 20
    values[group] += 0.18
    expected = scipy.stats.permutation_test(
        (values[group], values[~group]), lambda a, b, axis: a.mean(axis) - b.mean(axis), vectorized=True,
        n_resamples=20_000, rng=rng).pvalue
    assert permutation_p_values(values, group[None], np.arange(60))[0] == pytest.approx(expected, rel=0.3)


def test_groups_without_a_difference_have_p_1():
    pids = np.repeat(np.arange(30), 3)
    everywhere, nowhere, some = np.ones(90, bool), np.zeros(90, bool), pids < 10
    values = np.random.default_rng(3).random(90)
    assert permutation_p_values(values, np.stack([everywhere, nowhere]), pids).tolist() == [1, 1]
    assert permutation_p_values(np.full(90, 50.0), some[None], pids).tolist() == [1]


def test_one_identity_with_most_queries_takes_little_memory():
    """Rows of 20,000 values for each of 2,000 identities would have 160 MB, and each permutation as much."""
    pids = np.concatenate([np.arange(2000), np.full(20_000, 2000)])
    values = np.random.default_rng(6).random(len(pids))
    sizes = np.unique(pids, return_counts=True)[1]
    blocks = group_statistics.pad_blocks(values, pids, sizes)
    assert blocks.shape == (2001, 44) and blocks[-1].mean() == pytest.approx(0.5, abs=0.15)
    assert (blocks[:-1] == values[:2000, None]).all()


def test_by_chance_few_runs_report_a_group_and_a_planted_one_is_found(monkeypatch):
    """Holm's corrected p is at most 0.05 in at most 5% of draws without an effect (standard error 2%)."""
    monkeypatch.setattr(group_statistics, 'DRAWS', 1000)
    monkeypatch.setattr(group_statistics, 'DRAWS_PER_GROUP', 0)
    rng, trials, chance, planted = np.random.default_rng(4), 120, 0, 0
    single = 0
    for trial in range(trials):
        values, groups, pids = draw_people(rng, 60, 8)
        p = permutation_p_values(values, groups, pids, seed=trial)
        chance += holm_correction(p).min() <= 0.05
        single += scipy.stats.fisher_exact([[values[group].sum() / 100, (100 - values[group]).sum() / 100]
                                            for group in (groups[0], ~groups[0])]).pvalue <= 0.05
        if trial < 20:
            values, groups, pids = draw_people(rng, 60, 8, shift=3.0)
            adjusted = holm_correction(permutation_p_values(values, groups, pids, seed=trial))
            planted += adjusted[0] <= 0.05
    assert chance / trials <= 0.08 and planted >= 18
    assert single / trials > 0.1     # Fisher's test takes captions of one person for independent ones


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held, trials = np.random.default_rng(5), [], 150
    truth = 100 * np.mean(1 / (1 + np.exp(-np.random.default_rng(0).normal(0, 1.5, 1_000_000))))
    for trial in range(trials):
        values, groups, pids = draw_people(rng, 70, 4)
        low, high, difference_low, difference_high = bootstrap_groups(values, groups, pids, draws=500, seed=trial)
        held += [(low <= truth) & (truth <= high), (difference_low <= 0) & (difference_high >= 0)]
    coverage = np.mean(held)
    assert 0.92 <= coverage <= 0.98

import collections
import random

import pytest

from datasets.sampler import (BatchSampler, IdentityBatches, RandomSizeIdentityBatches, RandomBatches,
                              build_batch_sampler)
from tests.support import options
from utils.errors import UserError
from utils.seeding import derive_seed


@pytest.fixture(scope='module')
def pids():
    """Identities with 1 to 9 captions, mixed."""
    pids = [pid for pid in range(40) for _ in range(1 + pid % 9)]
    random.Random(0).shuffle(pids)
    return pids


def make(name, pids, batch_size=12, num_instance=3, seed=7):
    args = options(sampler=name, batch_size=batch_size, num_instance=num_instance, seed=seed)
    return build_batch_sampler(args, pids)


def indices(sampler):
    return [[index for index, _ in batch] for batch in sampler]


EVERY = pytest.mark.parametrize('name', ['random', 'identity', 'idrannum'])


# -- what all have in common -------------------------------------------------------------------------------------------

@EVERY
def test_an_epoch_follows_from_seed_and_epoch(pids, name):
    one, other = make(name, pids), make(name, pids)
    one.set_epoch(3)
    list(one)
    one.set_epoch(5)
    other.set_epoch(5)
    fifth = list(one)
    assert fifth == list(other)
    other.set_epoch(6)
    assert indices(other) != [[index for index, _ in batch] for batch in fifth]
    third = make(name, pids, seed=8)
    third.set_epoch(5)
    assert indices(third) != [[index for index, _ in batch] for batch in fifth]


@EVERY
def test_global_randomness_is_neither_read_nor_changed(pids, name):
    sampler = make(name, pids)
    random.seed(1)
    sampler.set_epoch(1)
    first, state = list(sampler), random.getstate()
    random.seed(1)
    assert state == random.getstate()
    random.seed(2)
    sampler.set_epoch(1)
    assert list(sampler) == first


@EVERY
def test_the_first_steps_may_be_left_out(pids, name):
    sampler = make(name, pids)
    sampler.set_epoch(2)
    all_batches = list(sampler)
    for first_step in (0, 1, 5, len(all_batches)):
        sampler.set_epoch(2, first_step)
        assert len(sampler) == len(all_batches)  # of the whole epoch
        assert list(sampler) == all_batches[first_step:]


@EVERY
def test_without_set_epoch_the_epochs_follow_each_other(pids, name):
    sampler, other = make(name, pids), make(name, pids)
    for epoch in (1, 2, 3):
        other.set_epoch(epoch)
        assert list(sampler) == list(other)
    sampler.set_epoch(8)
    next(iter(sampler))  # an epoch that is interrupted is also over
    other.set_epoch(9)
    assert list(sampler) == list(other)


@EVERY
def test_length_is_the_number_of_batches(pids, name):
    sampler = make(name, pids)
    for epoch in range(1, 6):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))


@EVERY
def test_sample_seeds(pids, name):
    """derive_seed(seed, epoch, index, how often the index came before)."""
    sampler = make(name, pids, seed=4)
    sampler.set_epoch(3)
    before, seeds = collections.Counter(), set()
    for batch in sampler:
        for index, seed in batch:
            assert seed == derive_seed(4, 3, index, before[index])
            before[index] += 1
            seeds.add(seed)
    assert len(seeds) == sum(before.values())
    assert name == 'random' or max(before.values()) > 1  # identities with fewer captions than a group


@EVERY
def test_batch_larger_than_the_dataset(name):
    with pytest.raises(UserError, match='^--batch_size 12 is larger than the training set of 11 captions: lower it$'):
        make(name, list(range(11)))


def test_unknown_sampler(pids):
    with pytest.raises(UserError, match='^unknown sampler .identiy.; did you mean identity.$'):
        make('identiy', pids)


# -- random ------------------------------------------------------------------------------------------------------------

def test_random_draws_each_caption_once(pids):
    batches = indices(make('random', pids))
    assert [len(batch) for batch in batches[:-1]] == [12] * (len(pids) // 12)
    assert len(batches[-1]) == len(pids) % 12 != 0  # the last one is smaller
    order = sum(batches, [])
    assert sorted(order) == list(range(len(pids))) and order != sorted(order)


def test_random_is_uniform():
    sampler, positions = RandomBatches([0] * 4, 4), collections.Counter()
    for epoch in range(1, 2401):
        sampler.set_epoch(epoch)
        positions[tuple(indices(sampler)[0])] += 1
    assert len(positions) == 24
    assert sum((count - 100) ** 2 / 100 for count in positions.values()) < 50  # chi-square, 23 degrees: 1 in 1,000


# -- identity ----------------------------------------------------------------------------------------------------------

def groups_of(batch, pids):
    """[(pid, indices)] of the runs of equal pids."""
    groups = []
    for index in batch:
        if not groups or groups[-1][0] != pids[index]:
            groups.append((pids[index], []))
        groups[-1][1].append(index)
    return groups


def check_groups(batches, pids, sizes, identities):
    """Check the groups of each identity against a plain description. Returns {pid: groups}."""
    captions, used, drawn = collections.Counter(pids), collections.Counter(), collections.defaultdict(list)
    for batch in batches:
        groups = groups_of(batch, pids)
        assert len({pid for pid, _ in groups}) == len(groups) == identities
        for pid, group in groups:
            assert len(group) == sizes[pid]
            used[pid] += 1
            drawn[pid] += group
    for pid, group in drawn.items():
        if captions[pid] >= sizes[pid]:
            assert len(set(group)) == len(group)  # without replacement
        assert used[pid] <= max(1, captions[pid] // sizes[pid])
    return used


def test_identity_batches(pids):
    sampler = make('identity', pids)
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        batches = indices(sampler)
        used = check_groups(batches, pids, collections.defaultdict(lambda: 3), identities=4)
        captions = collections.Counter(pids)
        left = {pid for pid in captions if used[pid] < max(1, captions[pid] // 3)}
        assert len(left) < 4  # it continues until too few identities are left


def test_identity_with_fewer_captions_draws_with_replacement():
    batches = [indices(IdentityBatches([0, 0, 1, 1, 1, 1, 1, 1], 8, 4, seed))[0] for seed in range(30)]
    few = [sorted(index for index in batch if index < 2) for batch in batches]
    assert all(len(group) == 4 for group in few)
    assert len({tuple(group) for group in few}) > 2


def test_each_epoch_drops_other_remainders():
    sampler, dropped = IdentityBatches([0] * 5 + [1] * 5, 4, 2), set()
    for epoch in range(1, 20):
        sampler.set_epoch(epoch)
        batches = indices(sampler)
        assert [len(batch) for batch in batches] == [4, 4]
        dropped |= set(range(10)) - set(sum(batches, []))
    assert dropped == set(range(10))


def test_idrannum_batches(pids):
    sampler, seen = make('idrannum', pids), collections.defaultdict(set)
    for epoch in range(1, 8):
        sampler.set_epoch(epoch)
        batches = indices(sampler)
        sizes = {pid: len(group) for batch in batches for pid, group in groups_of(batch, pids)}
        check_groups(batches, pids, sizes, identities=4)  # one size an identity throughout the epoch
        for pid, size in sizes.items():
            seen[pid].add(size)
        assert max(map(len, batches)) <= 12
    assert set().union(*seen.values()) == {1, 2, 3}
    assert sum(len(sizes) > 1 for sizes in seen.values()) > 30  # another size in another epoch


@pytest.mark.parametrize('kind', [RandomSizeIdentityBatches, IdentityBatches])
def test_one_instance_is_a_batch_of_different_identities(pids, kind):
    batches = indices(kind(pids, 12, 1))
    assert batches and all(len({pids[index] for index in batch}) == len(batch) == 12 for batch in batches)


@pytest.mark.parametrize('name', ['identity', 'idrannum'])
def test_batch_and_num_instance_must_fit(pids, name):
    for num_instance in (5, 13, 24):
        with pytest.raises(UserError, match=f'^--batch_size 12 is no multiple of --num_instance {num_instance}$'):
            make(name, pids, num_instance=num_instance)
    make('random', pids, num_instance=5)  # which doesn't read it


@pytest.mark.parametrize('name', ['identity', 'idrannum'])
def test_too_few_identities(name):
    with pytest.raises(UserError, match='needs 4 identities, and the training set has 3'):
        make(name, [0] * 10 + [1] * 10 + [2] * 10)


def test_plan_is_for_subclasses():
    with pytest.raises(NotImplementedError):
        BatchSampler([0], 1)

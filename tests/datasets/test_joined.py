"""Several datasets joined with +."""
import logging
import os
from collections import Counter

import pytest

from datasets.check import check
from datasets.build import build_dataloader, build_dataset, build_training_loaders
from datasets.sampler import WeightedBatches
from datasets.samples import proportional_counts
from datasets.synthpedes import generate
from tests.support import options
from utils.errors import UserError
from utils.options import get_args


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('joined')
    for name, people in (('CUHK-PEDES', 6), ('RSTPReid', 4)):
        generate(str(folder), people + 4, images_per_id=2, size=(32, 16), format=name, test_ids=2, val_ids=2, workers=1)
    return str(folder)


def test_identities_and_images_are_kept_apart(root):
    one, other = (build_dataset(name, root) for name in ('CUHK-PEDES', 'RSTPReid'))
    both = build_dataset('CUHK-PEDES+RSTPReid', root)
    assert both.sizes == [len(one.train), len(other.train)] and both.train[:len(one.train)] == one.train
    people, images = len(one.train_id_container), 1 + max(image for _, image, *_ in one.train)
    assert both.train[len(one.train):] == [(people + pid, images + image, *rest) for pid, image, *rest in other.train]
    assert both.train_id_container == {pid for pid, *_ in both.train} and len(both.train_id_container) == 10
    assert (both.val, both.test) == (one.val, one.test)


def test_shares_of_an_epoch():
    sampler = WeightedBatches(range(100), 10, 1, sizes=[90, 10], weights=[1, 1])
    drawn = Counter(index for batch in sampler for index, _ in batch)
    assert sum(drawn[index] for index in range(90)) == 50 and max(drawn[index] for index in range(90)) == 1
    assert {drawn[index] for index in range(90, 100)} == {5} and len(sampler) == 10
    seeds = [seed for batch in sampler for _, seed in batch]
    assert len(set(seeds)) == 100                           # a caption that comes again is augmented otherwise
    sampler.set_epoch(1)
    again = [index for batch in sampler for index, _ in batch]
    sampler.set_epoch(1)
    assert [index for batch in sampler for index, _ in batch] == again
    assert sum(WeightedBatches(range(7), 2, 1, sizes=[3, 4], weights=[1, 2]).counts) == 7


def loaders(root, build=build_dataloader, **changes):
    return build(options(root_dir=root, batch_size=4, num_workers=0, img_size=(32, 16), **changes))


def training(root, **changes):
    return loaders(root, build_training_loaders, **changes)


def test_a_flag_cut_short_is_the_datasets_name():
    args = get_args(['--dataset', 'RSTPReid', '--batch_size', '8'])
    assert (args.dataset_name, args.dataset_shares) == ('RSTPReid', None)
    assert get_args(['--dataset', 'RSTPReid+ICFG-PEDES', '--dataset_shares', '1', '2']).dataset_shares == [1, 2]


def test_limit_train_takes_captions_of_each(root, caplog):
    one, other = (build_dataset(name, root).train for name in ('CUHK-PEDES', 'RSTPReid'))
    with caplog.at_level(logging.INFO, 'Pedestal.dataset'):
        loaders = training(root, dataset_name='CUHK-PEDES+RSTPReid', limit_train=10)
    captions = [caption for *_, caption in loaders.train.dataset.samples]
    first = round(10 * len(one) / (len(one) + len(other)))
    assert captions == [caption for *_, caption in [*one[:first], *other[:10 - first]]] and 0 < first < 10
    sentence = f'the first 10 of {len(one) + len(other)} training captions ({first} + {10 - first} of the datasets)'
    assert sentence in caplog.text


@pytest.mark.parametrize('total, sizes, counts', [
    (10, [50, 50], [5, 5]), (1, [50, 50], [1, 0]), (2, [1000, 1], [1, 1]), (3, [1, 1000, 1], [1, 1, 1]),
    (7, [3, 3, 3], [3, 2, 2]), (9, [3, 3, 3], [3, 3, 3]), (5, [0, 8], [0, 5])])
def test_parts_of_a_limit(total, sizes, counts):
    assert proportional_counts(total, sizes) == counts


def test_the_check_takes_one_at_a_time(root):
    with pytest.raises(UserError, match='checked one by one'):
        check('CUHK-PEDES+RSTPReid', root, 1)


def test_batches_hold_both(root):
    loader, *_, classes = loaders(root, dataset_name='CUHK-PEDES+RSTPReid', dataset_shares=(0.5, 0.5))
    assert classes == 10
    pids = [pid for batch in loader for pid in batch['pids'].tolist()]
    assert abs(sum(pid >= 6 for pid in pids) / len(pids) - 0.5) < 0.05


def test_training_is_evaluated_on_each(root):
    one, other = (loaders(root, dataset_name=name)[2].dataset.captions for name in ('CUHK-PEDES', 'RSTPReid'))
    loaders_of_run = training(root, dataset_name='CUHK-PEDES+RSTPReid')
    captions_by_name = {name: captions.dataset.captions for name, (_, captions) in loaders_of_run.evaluations.items()}
    assert captions_by_name == {'CUHK-PEDES': one, 'RSTPReid': other}
    assert list(loaders_of_run.evaluations) == ['CUHK-PEDES', 'RSTPReid']                      # the first one chooses
    assert list(training(root, dataset_name='CUHK-PEDES+RSTPReid', eval_dataset='RSTPReid').evaluations) == ['RSTPReid']


def test_a_dataset_without_the_split_is_left_out_of_evaluations(root, tmp_path, caplog):
    generate(str(tmp_path), 8, images_per_id=2, size=(32, 16), format='ICFG-PEDES', test_ids=2, workers=1)
    for name in ('CUHK-PEDES', 'RSTPReid'):
        os.symlink(os.path.join(root, name), tmp_path / name)
    with caplog.at_level('INFO', 'Pedestal'):
        loaders_of_run = training(str(tmp_path), dataset_name='CUHK-PEDES+ICFG-PEDES+RSTPReid', val_dataset='val')
    assert list(loaders_of_run.evaluations) == ['CUHK-PEDES', 'RSTPReid']
    assert 'ICFG-PEDES has no split val' in caplog.text
    with pytest.raises(UserError, match="no entries in the split 'val'"):            # the first one has to choose
        training(str(tmp_path), dataset_name='ICFG-PEDES+RSTPReid', val_dataset='val')


@pytest.mark.parametrize('changes, sentence', [
    ({'dataset_name': 'CUHK-PEDES+CUHK-PEDES'}, 'names CUHK-PEDES twice'),
    ({'dataset_name': 'CUHK-PEDES+'}, 'before or after a +'),
    ({'dataset_name': 'CUHK-PEDES+RSTPRied'}, "unknown dataset 'RSTPRied'.*RSTPReid"),
    ({'dataset_name': 'CUHK-PEDES', 'dataset_shares': (1.0,)}, 'is for several datasets'),
    ({'dataset_name': 'CUHK-PEDES+RSTPReid', 'dataset_shares': (1.0,)}, 'has 1 numbers for the 2 datasets'),
    ({'dataset_name': 'CUHK-PEDES+RSTPReid', 'dataset_shares': (1.0, 1.0), 'limit_train': 5}, 'leave one of them out'),
    ({'dataset_name': 'CUHK-PEDES+RSTPReid', 'dataset_shares': (1.0, 1.0), 'sampler': 'identity'}, '--sampler random')])
def test_what_is_refused(root, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        loaders(root, **changes)

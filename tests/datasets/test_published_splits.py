"""Counts of a split next to the published ones, in a run's log and in tools that read results."""
import logging

import pytest

from datasets import published_splits, registry
from datasets.build import build_dataset
from datasets.synthpedes import generate
from datasets.table import table_class

RSTP = 'not the published test split of RSTPReid: '


@pytest.mark.parametrize('name, split, counts, note', [
    ('RSTPReid', 'test', (200, 1000, 2000), ''),
    ('RSTPReid', 'test', (200, 1000, 1999), f'{RSTP}1999 captions (published: 2000)'),
    ('RSTPReid', 'test', (4, 8, 16), f'{RSTP}4 identities (published: 200), 8 images (1000), 16 captions (2000)'),
    ('RSTPReid', 'test', (None, 8, None), f'{RSTP}8 images (published: 1000)'),
    ('CUHK-PEDES', 'val', (1000, 3078, 6150),
     'not the published val split of CUHK-PEDES: 6150 captions (published: 6158)'),
    ('ICFG-PEDES', 'val', (0, 0, 7), 'not the published val split of ICFG-PEDES: 7 captions (published: 0)'),
    ('PA-100K', 'test', (10000, 10000, 52), ''), ('PA-100K', 'test', (9, 9, 52),
                                                  'not the published test split of PA-100K: 9 identities '
                                                  '(published: 10000), 9 images (10000)'),
    ('synthpedes', 'test', (1, 1, 1), ''), ('people.csv', 'test', (1, 1, 1), ''), ('nobody', 'test', (1, 1, 1), ''),
    (None, 'test', (1, 1, 1), '')])
def test_a_note_says_what_differs(name, split, counts, note):
    assert registry.published_split_note(name, counts, split) == note


def test_a_run_starts_with_what_differs_in_the_splits_that_it_uses(tmp_path, caplog):
    generate(str(tmp_path), 6, images_per_id=1, size=(32, 16), format='RSTPReid', test_ids=2, val_ids=1, workers=1)
    with caplog.at_level(logging.INFO, 'Pedestal.dataset'):
        dataset = build_dataset('RSTPReid', str(tmp_path), splits=('train', 'test'))
    messages = [record.getMessage() for record in caplog.records]
    train, test = (message for message in messages if message.startswith('not the published'))
    assert train.startswith('not the published train split of RSTPReid: 3 identities (published: 3701), '
                            '3 images (18505)')
    assert test.endswith('; its results are not comparable with published ones')
    assert dataset.counts('test')[:2] == (2, 2)
    caplog.clear()
    build_dataset('RSTPReid', str(tmp_path), verbose=False)
    assert not caplog.records


def test_a_table_of_ones_own_has_no_published_split():
    assert published_splits.split_note(table_class('people.csv'), 'test', (1, 1, 1)) == ''

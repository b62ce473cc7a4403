"""The leak's table and figure, on made-up results."""
import numpy as np
import pytest

from run_scripts.leak import WAYS, draw, report
from utils.pictures import save_picture
from utils.queries import Queries
from utils.statistics import difference, interval

PIDS = np.repeat(np.arange(30), 4)


def queries(seed, found):
    """Queries of whom a share is found first."""
    first_rank = np.where(np.random.default_rng(seed).random(len(PIDS)) < found, 1, 5)
    return Queries(PIDS, first_rank, 100.0 / first_rank, 100.0 / first_rank, [''] * len(PIDS))


@pytest.fixture(scope='module')
def results():
    batch = [{way: queries((seed, number), found) for number, (way, found) in enumerate(zip(WAYS, (0.6, 0.5, 0.3)))} for seed in (1, 2, 3)]
    plain, slots = ([{'as loaded': queries((seed, number), 0.4)} for seed in (1, 2, 3)] for number in (7, 8))
    return {'sdm+itc': plain, 'slots': slots, 'batch': batch}


def test_the_table_has_each_model_each_way_and_the_differences(results):
    text = report(results)
    values = {way: np.stack([run[way].reaches('R1') for run in results['batch']]) for way in WAYS}
    for way in WAYS:
        assert '| batch | {} | {:.2f} [{:.2f}, {:.2f}] |'.format(way, values[way].mean(), *interval(values[way], PIDS)) in text
    assert text.count('| slots | ') == text.count('| sdm+itc | ') == 1
    leak = difference(values['as loaded'] - values['one by one'], np.zeros(len(PIDS)), PIDS)
    assert f'| batch: as loaded - one by one | {leak.value:+.2f} [{leak.low:+.2f}, {leak.high:+.2f}] |' in text
    other = difference(values['as loaded'], np.stack([run['as loaded'].reaches('R1') for run in results['slots']]), PIDS)
    assert f'| batch as loaded - slots | {other.value:+.2f} [{other.low:+.2f}, {other.high:+.2f}] |' in text
    assert 'mean of 3 seeds in percent, 120 captions of 30 people' in text


def test_the_figure(results, tmp_path):
    picture = draw(results)
    axes, = picture.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ['sdm+itc', 'slots', 'batch']
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(WAYS)
    save_picture(picture, str(tmp_path / 'leak.png'))
    assert (tmp_path / 'leak.png').stat().st_size > 1000

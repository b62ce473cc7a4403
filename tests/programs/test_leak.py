"""The leak's table and figure, on made-up results."""
import numpy as np
import pytest

from run_scripts.leak import ORDERS, draw_metrics, format_report
from utils.figures import save_figure
from utils.queries import QueryResults
from utils.statistics import compare_means, bootstrap_interval

PIDS = np.repeat(np.arange(30), 4)


def queries(seed, found):
    """Queries of whom a share is found first."""
    first_rank = np.where(np.random.default_rng(seed).random(len(PIDS)) < found, 1, 5)
    return QueryResults(PIDS, first_rank, 100.0 / first_rank, 100.0 / first_rank, [''] * len(PIDS))


@pytest.fixture(scope='module')
def results():
    batch = [{way: queries((seed, number), found) for number, (way, found) in enumerate(zip(ORDERS, (0.6, 0.5, 0.3)))}
             for seed in (1, 2, 3)]
    plain, slots = ([{'as loaded': queries((seed, number), 0.4)} for seed in (1, 2, 3)] for number in (7, 8))
    return {'sdm+itc': plain, 'slots': slots, 'batch': batch}


def test_the_table_has_each_model_each_way_and_the_differences(results):
    text = format_report(results)
    values = {way: np.stack([run[way].metric_values('R1') for run in results['batch']]) for way in ORDERS}
    for way in ORDERS:
        assert '| batch | {} | {:.2f} [{:.2f}, {:.2f}] |'.format(way, values[way].mean(),
                                                                 *bootstrap_interval(values[way], PIDS)) in text
    assert text.count('| slots | ') == text.count('| sdm+itc | ') == 1
    leak = compare_means(values['as loaded'] - values['one by one'], np.zeros(len(PIDS)), PIDS)
    assert f'| batch: as loaded - one by one | {leak.value:+.2f} [{leak.low:+.2f}, {leak.high:+.2f}] |' in text
    other = compare_means(values['as loaded'],
                          np.stack([run['as loaded'].metric_values('R1') for run in results['slots']]), PIDS)
    assert f'| batch as loaded - slots | {other.value:+.2f} [{other.low:+.2f}, {other.high:+.2f}] |' in text
    assert 'mean of 3 seeds in percent, 120 captions of 30 people' in text


def test_the_figure(results, tmp_path):
    picture = draw_metrics(results)
    axes, = picture.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ['sdm+itc', 'slots', 'batch']
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(ORDERS)
    save_figure(picture, str(tmp_path / 'leak.png'))
    assert (tmp_path / 'leak.png').stat().st_size > 1000

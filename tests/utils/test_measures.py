"""The measure of an evaluation: Rank-1, mA, or one that an evaluator declares."""
import pytest

from utils.measures import MEAN_ACCURACY, RANK1, Measure, find_measure, has_all_metrics, metric_columns
from utils.tables import ATTRIBUTE_METRICS, METRICS

RETRIEVAL, ATTRIBUTES = dict.fromkeys(METRICS, 50.0), dict.fromkeys(ATTRIBUTE_METRICS, 60.0)


@pytest.mark.parametrize('metrics, measure', [
    (RETRIEVAL, RANK1), (ATTRIBUTES, MEAN_ACCURACY), ({'mAP': 1.0, 'R1': 2.0}, RANK1),
    ({'split': 'test', 'recall': 3.0, 'accuracy': 4.0}, Measure('recall', 'recall'))])
def test_the_measure_of_metrics(metrics, measure):
    assert find_measure(metrics) == measure


def test_older_versions_wrote_r1_as_the_key_of_every_measure():
    assert MEAN_ACCURACY.value_in({'R1': 80.0}) == MEAN_ACCURACY.value_in({'mA': 80.0, 'R1': 1.0}) == 80.0
    assert MEAN_ACCURACY.value_in({'epoch': 0}, -1.0) == -1.0 and RANK1.value_in({'mA': 80.0}) is None


@pytest.mark.parametrize('metrics, is_complete', [
    (RETRIEVAL, True), (ATTRIBUTES, True), ({'R1': 50.0}, False), ({}, False), (None, False),
    ({**RETRIEVAL, 'mINP': '50'}, False)])
def test_metrics_with_all_names(metrics, is_complete):
    assert has_all_metrics(metrics) is is_complete


def test_the_columns_of_a_table():
    assert metric_columns([]) == metric_columns([{}, RETRIEVAL]) == METRICS
    assert metric_columns([ATTRIBUTES]) == ATTRIBUTE_METRICS
    assert metric_columns([ATTRIBUTES, RETRIEVAL]) == METRICS + ATTRIBUTE_METRICS

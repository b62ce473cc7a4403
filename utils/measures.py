"""The measure of an evaluation: the metric that selects the best epoch, with its name.

An evaluator declares its measure. Files hold no measure, only metrics: :func:`find_measure` returns theirs.
"""
from typing import NamedTuple

from utils.tables import ATTRIBUTE_METRICS, METRICS


class Measure(NamedTuple):
    """A metric that selects the best epoch.

    Attributes:
        key: its name in metrics.json, metrics.jsonl and checkpoints.
        label: its name in texts.
    """
    key: str
    label: str

    def value_in(self, metrics, default=None):
        """Return the measure's value in ``{name: number}``. Older versions wrote R1 as the key of every measure."""
        return metrics.get(self.key, metrics.get(RANK1.key, default))


RANK1 = Measure('R1', 'Rank-1')
MEAN_ACCURACY = Measure('mA', 'mA')
RERANKED_RANK1 = Measure('reranked_R1', 're-ranked Rank-1')     # with --val_rerank; R1 stays that of the embeddings
MEASURES = (RERANKED_RANK1, RANK1, MEAN_ACCURACY)


def find_measure(metrics):
    """Return the :class:`Measure` of metrics ``{name: number}``: re-ranked Rank-1, Rank-1 or mA, else the first metric.

    >>> find_measure({'mA': 80.0, 'accuracy': 70.0}), find_measure({'split': 'test', 'recall': 60.0})
    (Measure(key='mA', label='mA'), Measure(key='recall', label='recall'))
    """
    known = next((measure for measure in MEASURES if measure.key in metrics), None)
    return known or next(Measure(name, name) for name, value in metrics.items() if isinstance(value, (int, float)))


def has_all_metrics(metrics):
    """Whether ``metrics`` is a mapping with all metrics of retrieval, or all of attribute recognition, as numbers."""
    return isinstance(metrics, dict) and any(all(isinstance(metrics.get(name), (int, float)) for name in names)
                                             for names in (METRICS, ATTRIBUTE_METRICS))


def metric_columns(rows):
    """Return the names of the metrics that a table of rows ``{name: number}`` has as columns.

    These are the metrics of retrieval, of attribute recognition, or of both if there are rows of both.

    >>> metric_columns([{}, {'mA': 80.0}])
    ('mA', 'accuracy', 'precision', 'recall', 'F1')
    """
    rows = list(rows)
    columns = [names for names in (METRICS, ATTRIBUTE_METRICS) if any(names[0] in row for row in rows)]
    return sum(columns, ()) or METRICS

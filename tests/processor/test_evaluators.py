"""The evaluator of several datasets: the first one's measure selects the best epoch."""
from processor.evaluators import MultiDatasetEvaluator
from utils.measures import MEAN_ACCURACY, RANK1, Measure


class FixedEvaluator:
    """An evaluator with given metrics."""

    def __init__(self, measure, metrics):
        self.measure, self.metrics, self.result = measure, {}, metrics

    def eval(self, model):
        self.metrics = self.result
        return self.result[self.measure.key]


def test_the_first_dataset_gives_the_measure():
    attributes, retrieval = {'mA': 80.0, 'F1': 70.0}, {'R1': 50.0, 'mAP': 40.0}
    evaluator = MultiDatasetEvaluator({'PA-100K': FixedEvaluator(MEAN_ACCURACY, attributes),
                                       'RSTPReid': FixedEvaluator(RANK1, retrieval)})
    assert evaluator.measure == Measure('mA', 'mA on PA-100K')
    assert evaluator.eval(model=None) == 80.0
    assert evaluator.metrics == attributes and evaluator.other_metrics == {'RSTPReid': retrieval}

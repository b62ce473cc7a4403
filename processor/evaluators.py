"""The evaluator of a training run."""
import logging

from processor.evaluation import Evaluator
from processor.recognition import AttributeEvaluator

logger = logging.getLogger('Pedestal.eval')


def build_evaluator(evaluations):
    """Build the evaluator of one or several datasets.

    Args:
        evaluations: ``{dataset: (image loader, caption loader)}`` of a split.
    """
    evaluators = {name: AttributeEvaluator(images) if images.dataset.evaluates_attributes
                  else Evaluator(images, captions) for name, (images, captions) in evaluations.items()}
    return next(iter(evaluators.values())) if len(evaluators) == 1 else MultiDatasetEvaluator(evaluators)


class MultiDatasetEvaluator:
    """Evaluates a model on several datasets. The first dataset selects the best epoch.

    Args:
        evaluators: ``{dataset: evaluator}``.

    Attributes:
        measure: the first dataset's measure, whose label also names the dataset.
        metrics: the first dataset's metrics after :meth:`eval`.
        other_metrics: ``{dataset: metrics}`` of the other datasets after :meth:`eval`.
    """

    def __init__(self, evaluators):
        self.evaluators, self.metrics, self.other_metrics = evaluators, {}, {}
        name, evaluator = next(iter(evaluators.items()))
        self.measure = evaluator.measure._replace(label=f'{evaluator.measure.label} on {name}')

    def eval(self, model):
        """Evaluate a model and return the first dataset's measure in percent."""
        for name, evaluator in self.evaluators.items():
            logger.info('evaluation on %s', name)
            evaluator.eval(model)
        metrics = {name: evaluator.metrics for name, evaluator in self.evaluators.items()}
        first = next(iter(metrics))
        self.metrics, self.other_metrics = metrics.pop(first), metrics
        return self.metrics[self.measure.key]

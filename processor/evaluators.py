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
        results: the first dataset's results after :meth:`eval`.
        other_results: ``{dataset: metrics}`` of the other datasets after :meth:`eval`.
    """

    def __init__(self, evaluators):
        self.evaluators, self.results, self.other_results = evaluators, {}, {}
        name, evaluator = next(iter(evaluators.items()))
        self.metric_label, self.metric_key = f'{evaluator.metric_label} on {name}', evaluator.metric_key

    def eval(self, model):
        """Evaluate a model and return the first dataset's metric in percent."""
        figures = []
        for name, evaluator in self.evaluators.items():
            logger.info('evaluation on %s', name)
            figures.append(evaluator.eval(model))
        results = {name: evaluator.results for name, evaluator in self.evaluators.items()}
        first, *others = results
        self.results, self.other_results = results[first], {name: results[name]['t2i'] for name in others}
        return figures[0]

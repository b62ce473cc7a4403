"""The evaluator of a training run."""
import logging

from processor.evaluation import Evaluator
from processor.recognition import AttributeEvaluator
from utils.errors import UserError

logger = logging.getLogger('Pedestal.eval')


def build_evaluator(evaluations, rerank_settings=None, model=None):
    """Build the evaluator of one or several datasets.

    Args:
        evaluations: ``{dataset: (image loader, caption loader)}`` of a split.
        rerank_settings: the settings of ``--val_rerank`` (:mod:`utils.rerank_options`); None: no re-ranking.
        model: the model that is evaluated, to check that it can be re-ranked.

    Raises:
        UserError: ``--val_rerank`` cannot work with the model or with a dataset.
    """
    name, (images, _) = next(iter(evaluations.items()))
    if rerank_settings and images.dataset.evaluates_attributes:
        raise UserError(f'--val_rerank orders images for captions, and {name} has none: leave --val_rerank out')
    evaluators = {name: AttributeEvaluator(images) if images.dataset.evaluates_attributes
                  else Evaluator(images, captions, rerank_settings)
                  for name, (images, captions) in evaluations.items()}
    for evaluator in evaluators.values():
        if isinstance(evaluator, Evaluator):
            evaluator.validate(model, '--val_rerank')
    return next(iter(evaluators.values())) if len(evaluators) == 1 else MultiDatasetEvaluator(evaluators)


class MultiDatasetEvaluator:
    """Evaluates a model on several datasets. The first dataset selects the best epoch.

    Args:
        evaluators: ``{dataset: evaluator}``.

    Attributes:
        measure: the first dataset's measure, whose label also names the dataset.
        selected_by: the first dataset's description of the measure.
        metrics: the first dataset's metrics after :meth:`eval`.
        other_metrics: ``{dataset: metrics}`` of the other datasets after :meth:`eval`.
    """

    def __init__(self, evaluators):
        self.evaluators, self.metrics, self.other_metrics = evaluators, {}, {}
        name, evaluator = next(iter(evaluators.items()))
        self.measure = evaluator.measure._replace(label=f'{evaluator.measure.label} on {name}')
        self.selected_by = getattr(evaluator, 'selected_by', None)

    def eval(self, model):
        """Evaluate a model and return the first dataset's measure in percent."""
        for name, evaluator in self.evaluators.items():
            logger.info('evaluation on %s', name)
            evaluator.eval(model)
        metrics = {name: evaluator.metrics for name, evaluator in self.evaluators.items()}
        first = next(iter(metrics))
        self.metrics, self.other_metrics = metrics.pop(first), metrics
        return self.metrics[self.measure.key]

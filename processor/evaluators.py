"""What a run is evaluated with while it trains."""
import logging

from processor.evaluation import Evaluator
from processor.recognition import Recogniser

logger = logging.getLogger('Pedestal.eval')


def build_evaluator(evaluations):
    """The evaluator for ``{dataset: (images, captions)}``, loaders of a split; of several datasets it is :class:`EachDataset`."""
    each = {name: Recogniser(images) if images.dataset.evaluates_attributes else Evaluator(images, captions)
            for name, (images, captions) in evaluations.items()}
    return next(iter(each.values())) if len(each) == 1 else EachDataset(each)


class EachDataset:
    """Evaluates on several datasets, ``{name: evaluator}``. The first one's figure is what :meth:`eval` returns, and what chooses the best
    epoch.

    After :meth:`eval`, ``results`` holds the first one's, and ``others`` ``{name: summary}`` of each of the others.
    """

    def __init__(self, evaluators):
        self.evaluators, self.results, self.others = evaluators, {}, {}
        first, evaluator = next(iter(evaluators.items()))
        self.measure, self.metric = f'{evaluator.measure} on {first}', evaluator.metric

    def eval(self, model):
        figures = []
        for name, evaluator in self.evaluators.items():
            logger.info('on %s', name)
            figures.append(evaluator.eval(model))
        found = {name: evaluator.results for name, evaluator in self.evaluators.items()}
        first, *others = found
        self.results, self.others = found[first], {name: found[name]['t2i'] for name in others}
        return figures[0]

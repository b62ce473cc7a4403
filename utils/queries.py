"""The result of each query of an evaluation."""
from dataclasses import dataclass

import numpy as np
import torch

from utils.retrieval_metrics import average_precision, inverse_negative_penalty


@dataclass
class QueryResults:
    """The results of Q queries, in the order of the split."""
    pids: np.ndarray         # [Q] identities
    first_rank: np.ndarray   # [Q] from 1
    AP: np.ndarray           # [Q] percent
    INP: np.ndarray          # [Q] percent
    names: list              # Q captions or image files

    @classmethod
    def from_ranking(cls, ranking, pids, names, order=None):
        """Compute the results of a :class:`utils.ranking.Ranking`.

        Args:
            ranking: the ranking of Q queries.
            pids: [Q] identities of the queries.
            names: Q captions or image files, in the order of the split.
            order: [Q] number in the split of each query; None if the queries have the order of the split.
        """
        inverse = slice(None) if order is None else np.argsort(order)
        columns = (torch.as_tensor(pids), ranking.first + 1, average_precision(ranking) * 100,
                   inverse_negative_penalty(ranking) * 100)
        return cls(*(column.numpy()[inverse] for column in columns), list(names))

    def metric_values(self, metric):
        """Return values [Q] in percent whose mean is the metric: R<k>, mAP or mINP."""
        if metric in ('mAP', 'mINP'):
            return getattr(self, metric.removeprefix('m'))
        return 100.0 * (self.first_rank <= int(metric.removeprefix('R')))

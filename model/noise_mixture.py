"""Separation of clean and noisy training pairs: confident consensus division (RDE, CVPR 2024, section 3.3).

The losses of all training pairs are modeled as a mixture of two normal distributions. Clean pairs belong to the one
with the lower mean. If several similarities give losses, each of them votes.
"""
import math
from dataclasses import dataclass

import torch

# Names as in scikit-learn's GaussianMixture. RDE uses the fine fit for noise rates above 0.4 and for RSTPReid.
COARSE_FIT = {'max_iter': 10, 'tol': 1e-2, 'reg_covar': 5e-4}
FINE_FIT = {'max_iter': 100, 'tol': 1e-4, 'reg_covar': 1e-6}


@dataclass
class GaussianMixture:
    """Two one-dimensional normal distributions.

    Attributes:
        weights: [2].
        means: [2].
        variances: [2].
    """
    weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def from_responsibilities(cls, values, responsibilities, reg_covar):
        """Maximum-likelihood estimate (the M step).

        Args:
            values: [n].
            responsibilities: [n, 2], the probability that a value belongs to each distribution.
            reg_covar: number that is added to the variances.
        """
        counts = responsibilities.sum(dim=0) + 10 * torch.finfo(responsibilities.dtype).eps      # [2]
        means = responsibilities.t() @ values / counts
        squares = (values[:, None] - means).square()                                             # [n, 2]
        variances = (responsibilities * squares).sum(dim=0) / counts + reg_covar
        return cls(counts / len(values), means, variances)

    def log_joint(self, values):
        """Log of weight times density: [n] -> [n, 2]."""
        deviations = (values[:, None] - self.means).square() / self.variances
        return self.weights.log() - (deviations + self.variances.log() + math.log(2 * math.pi)) / 2


def fit_mixture(values, max_iter, tol, reg_covar):
    """Fit a mixture by expectation maximization, starting from the two clusters of :func:`lower_cluster`.

    Args:
        values: [n].
        max_iter: largest number of iterations.
        tol: the fit stops if the mean log likelihood changes by less.
        reg_covar: number that is added to the variances.
    """
    low = lower_cluster(values).to(values.dtype)
    mixture = GaussianMixture.from_responsibilities(values, torch.stack([low, 1 - low], dim=1), reg_covar)
    previous = -math.inf
    for _ in range(max_iter):
        joint = mixture.log_joint(values)
        likelihood = joint.logsumexp(dim=1).mean().item()
        mixture = GaussianMixture.from_responsibilities(values, joint.softmax(dim=1), reg_covar)
        if abs(likelihood - previous) < tol:
            break
        previous = likelihood
    return mixture


def lower_cluster(values):
    """Members of the lower cluster of the optimal 2-means: [n] -> bool [n].

    In one dimension, a cluster is a range of the sorted values, so all cuts are tried.
    """
    ordered, order = values.double().sort()
    sums, count = ordered.cumsum(0), torch.arange(1, len(values), device=values.device)
    below, above = sums[:-1], sums[-1] - sums[:-1]
    # The cut with the smallest variance within clusters has the largest variance between them.
    between = below.square() / count + above.square() / (len(values) - count)
    cut = int(between.argmax()) + 1 if len(values) > 1 else 1
    low = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    low[order[:cut]] = True
    return low


def clean_probabilities(losses, settings=None):
    """Probability that each loss belongs to the lower of two normal distributions: [n] -> [n].

    If all losses are equal, all probabilities are 1.
    """
    spread = losses.max() - losses.min()
    if spread == 0:
        return torch.ones_like(losses)
    values = ((losses - losses.min()) / spread).double()
    mixture = fit_mixture(values, **(settings or COARSE_FIT))
    return mixture.log_joint(values).softmax(dim=1)[:, mixture.means.argmin()].to(losses.dtype)


def select_likely_clean(probabilities):
    """Pairs with a clean probability above 0.5: [n] -> bool [n].

    If all are above 0.5, the threshold is the lowest percentile, so about one pair in a hundred counts as noisy.
    """
    threshold = 0.5
    if len(probabilities) and (probabilities > 0.5).all():
        threshold = probabilities.sort().values[len(probabilities) // 100]
    return probabilities > threshold


def select_by_consensus(losses, tie_breakers, settings=None):
    """Confident consensus division of n training pairs.

    Args:
        losses: one tensor [n] for each similarity.
        tie_breakers: [n] of 0 and 1, the result for pairs on which the similarities disagree.
        settings: ``COARSE_FIT`` or ``FINE_FIT``.

    Returns:
        float [n]: 1 if all similarities call a pair clean, 0 if none does, else the pair's tie breaker.
    """
    votes = torch.stack([select_likely_clean(clean_probabilities(each, settings)) for each in losses])  # [losses, n]
    return torch.where(votes.all(dim=0), 1.0, torch.where(votes.any(dim=0), tie_breakers.float(), 0.0))

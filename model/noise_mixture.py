"""Which training pairs are clean, by their losses: RDE's consensus division (Qin et al., CVPR 2024, section 3.3)."""
import math
from dataclasses import dataclass

import torch

GENTLE = {'iterations': 10, 'tolerance': 1e-2, 'floor': 5e-4}
THOROUGH = {'iterations': 100, 'tolerance': 1e-4, 'floor': 1e-6}   # released for much noise, and for RSTPReid


@dataclass
class Mixture:
    """Two normal distributions of numbers: [2] each, the low one first as it was started."""
    weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def of(cls, values, shares, floor):
        """The maximum-likelihood one for values [n] that belong to the two by ``shares`` [n, 2]; ``floor`` is added to the variances."""
        counts = shares.sum(dim=0) + 10 * torch.finfo(shares.dtype).eps                    # [2]
        means = shares.t() @ values / counts
        variances = (shares * (values[:, None] - means).square()).sum(dim=0) / counts + floor
        return cls(counts / len(values), means, variances)

    def log_joint(self, values):
        """[n, 2]: the logarithms of weight x density."""
        deviations = (values[:, None] - self.means).square() / self.variances
        return self.weights.log() - (deviations + self.variances.log() + math.log(2 * math.pi)) / 2


def fit_mixture(values, iterations, tolerance, floor):
    """Expectation maximisation of a :class:`Mixture` from the two groups of :func:`low_group`, at most ``iterations`` times, until the
    mean log likelihood moves by less than ``tolerance``."""
    low = low_group(values).to(values.dtype)
    mixture, before = Mixture.of(values, torch.stack([low, 1 - low], dim=1), floor), -math.inf
    for _ in range(iterations):
        joint = mixture.log_joint(values)
        likelihood = joint.logsumexp(dim=1).mean().item()
        mixture = Mixture.of(values, joint.softmax(dim=1), floor)
        if abs(likelihood - before) < tolerance:
            break
        before = likelihood
    return mixture


def low_group(values):
    """bool [n]: the lower of the two groups of the best 2-means. In one dimension it is a cut of the sorted values, and all are
    tried."""
    ordered, order = values.double().sort()
    sums, count = ordered.cumsum(0), torch.arange(1, len(values), device=values.device)
    below, above = sums[:-1], sums[-1] - sums[:-1]
    # the within-group squares are least where the squares between are largest
    between = below.square() / count + above.square() / (len(values) - count)
    cut = int(between.argmax()) + 1 if len(values) > 1 else 1
    low = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    low[order[:cut]] = True
    return low


def clean_chances(losses, settings=None):
    """Losses [n] -> [n]: how likely each belongs to the lower of two normal distributions. Losses that are all the same are clean."""
    spread = losses.max() - losses.min()
    if spread == 0:
        return torch.ones_like(losses)
    values = ((losses - losses.min()) / spread).double()
    mixture = fit_mixture(values, **(settings or GENTLE))
    return mixture.log_joint(values).softmax(dim=1)[:, mixture.means.argmin()].to(losses.dtype)


def are_clean(chances):
    """bool [n]: more likely clean than not; where all are, the least likely one in a hundred is not."""
    bound = 0.5
    if len(chances) and (chances > 0.5).all():
        bound = chances.sort().values[len(chances) // 100]
    return chances > bound


def divide(losses, coins, settings=None):
    """Consensus division: float [n], 1 where both losses call a pair clean, 0 where neither does, else its coin.

    Args:
        losses: one tensor [n] for each similarity.
        coins: [n] of 0 and 1.
        settings: ``GENTLE`` or ``THOROUGH``.
    """
    votes = torch.stack([are_clean(clean_chances(each, settings)) for each in losses])     # [similarities, n]
    return torch.where(votes.all(dim=0), 1.0, torch.where(votes.any(dim=0), coins.float(), 0.0))

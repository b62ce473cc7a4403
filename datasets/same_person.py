"""Give pairs another caption of the same person: the weak positive pairs of RaSa (Bai et al., IJCAI 2023)."""
import numpy as np


def own_caption(index, rng):
    """Return ``index``: each pair keeps its caption."""
    return index


class SamePersonCaptions:
    """Draws the pair whose caption a pair gets: ``captions(index, rng)`` is an index.

    With probability ``rate`` it is any pair of the same person, each with the same probability, so that it can also be
    the pair itself. Otherwise it is the pair itself.

    Args:
        pids: [S], the identity of each training pair.
        rate: the probability of a draw, 0 to 1.

    Example:
        >>> import random
        >>> captions, rng = SamePersonCaptions([7, 8, 7, 7], rate=1.0), random.Random(0)
        >>> sorted({captions(0, rng) for _ in range(50)}), captions(1, rng)
        ([0, 2, 3], 1)
    """

    def __init__(self, pids, rate):
        self.rate = rate
        _, self.groups, counts = np.unique(np.asarray(pids), return_inverse=True, return_counts=True)
        self.pairs = np.argsort(self.groups, kind='stable')     # the pairs of one person are neighbors
        self.ends = np.cumsum(counts)

    def __call__(self, index, rng):
        if rng.random() >= self.rate:
            return index
        group = self.groups[index]
        start = self.ends[group - 1] if group else 0
        return int(self.pairs[rng.randrange(int(start), int(self.ends[group]))])

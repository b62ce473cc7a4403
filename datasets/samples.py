"""Select training samples, ``(pid, image_id, image path, caption)``, and renumber their identities."""
import itertools
import logging

import numpy as np

logger = logging.getLogger('Pedestal.dataset')


def renumber_pids(pids, source):
    """Renumber ``pids`` [N] to 0..C-1 in their order, and log it if they have gaps.

    Returns:
        ``(int64 [N], C)``.
    """
    unique, numbers = np.unique(np.asarray(pids, dtype=np.int64), return_inverse=True)
    if (unique != np.arange(len(unique))).any():
        logger.info("%s: training labels its %d identities 0 to %d, in the order of their numbers, which have gaps",
                    source, len(unique), len(unique) - 1)
    return numbers, len(unique)


def renumber_samples(samples, source):
    """Renumber the pids of training samples (:func:`renumber_pids`): ``(samples, set of pids)``."""
    numbers, count = renumber_pids([pid for pid, *_ in samples], source)
    return [(number, *rest) for number, (_, *rest) in zip(numbers.tolist(), samples)], set(range(count))


def limit_training_samples(samples, count, source, sizes=None):
    """Select the first ``count`` training samples, and renumber their identities from 0.

    Args:
        samples: training samples, one per caption.
        count: the number of samples to select.
        source: the annotation, for the log.
        sizes: the number of samples of each dataset, if ``samples`` joins several. Each contributes its proportion.

    Returns:
        ``(samples, set of pids)``.
    """
    sizes = sizes or [len(samples)]
    counts = proportional_counts(min(count, sum(sizes)), sizes)
    selected = [samples[row] for row in limited_rows(count, sizes).tolist()]
    by_dataset = f' ({" + ".join(map(str, counts))} of the datasets)' if len(sizes) > 1 else ''
    logger.info('--limit_train: the first %d of %d training captions%s', len(selected), len(samples), by_dataset)
    return renumber_samples(selected, source)


def limited_rows(count, sizes):
    """The indices of the samples that :func:`limit_training_samples` selects, int64.

    >>> limited_rows(3, [4, 2]).tolist()
    [0, 1, 4]
    """
    counts = proportional_counts(min(count, sum(sizes)), sizes)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    return np.concatenate([np.arange(start, start + size) for start, size in zip(starts, counts)])


def proportional_counts(total, sizes):
    """Split ``total`` in proportion to ``sizes``, at least 1 for each if possible.

    >>> proportional_counts(10, [90, 30]), proportional_counts(3, [1000, 1])
    ([8, 2], [2, 1])
    """
    exact = [total * size / sum(sizes) for size in sizes]
    counts = [max(int(value), min(size, 1)) for value, size in zip(exact, sizes)]
    while sum(counts) < total:      # the largest remainder first
        counts[max(range(len(sizes)), key=lambda index: exact[index] - counts[index])] += 1
    while sum(counts) > total:
        counts[max(reversed(range(len(sizes))), key=counts.__getitem__)] -= 1
    return counts

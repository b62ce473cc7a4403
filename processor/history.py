"""The evaluations of a run while it trained: the best epoch, the last epoch, and the mean of the last five epochs.

The best epoch is the maximum of many noisy evaluations on the split that selects it. It is therefore higher than the
model's expected performance. No split selects the last epoch, and the mean of the last five epochs has less noise.
"""
import statistics

from utils.measures import find_measure

MEAN_EPOCHS = 5   # number of epochs before the end whose evaluations are averaged


def summarize_evaluations(evaluations):
    """Compute the best epoch, the last epoch, and the mean of the last five epochs.

    The best epoch is the first one with the highest measure (Rank-1, or mA for attributes), as in ``best.pth``.

    Args:
        evaluations: the result of :func:`processor.results.read_evaluations`.

    Returns:
        ``{'split', 'best': metrics, 'last': metrics, 'mean': metrics}``, where the metrics also name their ``epochs``;
        ``{}`` without evaluations.

    >>> from processor.results import Record
    >>> rank1 = (10.0, 40.0, 61.0, 59.0, 62.0, 58.0, 60.0)
    >>> evaluations = [Record('evaluation', epoch, 9 * epoch, {'split': 'test', 'R1': r1})
    ...                for epoch, r1 in enumerate(rank1, 1)]
    >>> summary = summarize_evaluations(evaluations)
    >>> summary['best'], summary['last'], summary['mean']
    ({'R1': 62.0, 'epochs': [5]}, {'R1': 60.0, 'epochs': [7]}, {'R1': 60.0, 'epochs': [3, 4, 5, 6, 7]})
    """
    if not evaluations:
        return {}
    measure, last = find_measure(evaluations[0].metrics), evaluations[-1]
    best = max(evaluations, key=lambda evaluation: evaluation.metrics[measure.key])
    latest = [evaluation for evaluation in evaluations if evaluation.epoch > last.epoch - MEAN_EPOCHS]
    return {'split': last.values.get('split'), 'best': average_metrics([best]), 'last': average_metrics([last]),
            'mean': average_metrics(latest)}


def average_metrics(evaluations):
    """Average each metric that all the evaluations have, and add their ``epochs``."""
    names = [name for name in evaluations[0].metrics if all(name in evaluation.metrics for evaluation in evaluations)]
    means = {name: statistics.fmean(evaluation.metrics[name] for evaluation in evaluations) for name in names}
    return {**means, 'epochs': [evaluation.epoch for evaluation in evaluations]}


def format_summary(summary, dataset=''):
    """Format the result of :func:`summarize_evaluations` as one line, with the dataset's name if it is given."""
    if not summary:
        return ''
    best, last, mean = summary['best'], summary['last'], summary['mean']
    measure, split = find_measure(best), summary['split']
    line = f'during training, on the {split} split' + (f' of {dataset}' if dataset else '')
    line += f": best {measure.label} {best[measure.key]:.3f} at epoch {best['epochs'][0]}"
    line += f", last {last[measure.key]:.3f} at epoch {last['epochs'][0]}"
    if len(mean['epochs']) > 1:
        line += f", mean of epochs {mean['epochs'][0]} to {mean['epochs'][-1]} {mean[measure.key]:.3f}"
    return line

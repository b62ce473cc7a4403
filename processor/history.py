"""The evaluations of a run while it trained: the best epoch, the last epoch, and the mean of the last five epochs.

The best epoch is the maximum of many noisy evaluations on the split that selects it. It is therefore higher than the
model's expected performance. No split selects the last epoch, and the mean of the last five epochs has less noise.
"""
import os
import statistics

from utils.iotools import parse_json

MEAN_EPOCHS = 5   # number of epochs before the end whose evaluations are averaged
METRIC_LABELS = {'R1': 'Rank-1', 'mA': 'mA'}   # metrics that select the best epoch: of retrieval, of attributes


def read_evaluations(folder, dataset=''):
    """Read the evaluations in a run's ``metrics.jsonl``.

    Args:
        folder: the run's folder.
        dataset: one of :func:`further_datasets`; by default the dataset that selects the best epoch.

    Returns:
        ``[{'epoch', 'split', 'R1', ...}]``, sorted by epoch; empty if another program wrote the folder.
    """
    kind = f'evaluation/{dataset}' if dataset else 'evaluation'
    evaluations = {record['epoch']: record for record in read_metrics_log(folder) if record['kind'] == kind}
    return [{name: value for name, value in evaluations[epoch].items() if name not in ('kind', 'step')}
            for epoch in sorted(evaluations)]


def further_datasets(folder):
    """List the evaluated datasets of a run, without the one that selects the best epoch."""
    kinds = dict.fromkeys(record['kind'] for record in read_metrics_log(folder))
    return [kind.removeprefix('evaluation/') for kind in kinds if kind.startswith('evaluation/')]


def read_metrics_log(folder):
    """Read the records of a run's ``metrics.jsonl``, in order; an empty list if another program wrote the folder."""
    try:
        with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8') as file:
            return [record for record in map(parse_record, file) if record is not None]
    except (OSError, UnicodeDecodeError):
        return []


def parse_record(line):
    try:
        record = parse_json(line)
        return record if isinstance(record['kind'], str) and isinstance(record['epoch'], int) else None
    except (ValueError, KeyError, TypeError):   # such as a line that a kill cut off
        return None


def summarize_evaluations(evaluations):
    """Compute the best epoch, the last epoch, and the mean of the last five epochs.

    The best epoch is the first one with the highest Rank-1 (mA for attributes), as in ``best.pth``.

    Args:
        evaluations: the result of :func:`read_evaluations`.

    Returns:
        ``{'split', 'best': metrics, 'last': metrics, 'mean': metrics}``, where the metrics also name their ``epochs``;
        ``{}`` without evaluations.

    >>> rank1 = (10.0, 40.0, 61.0, 59.0, 62.0, 58.0, 60.0)
    >>> evaluations = [{'epoch': epoch, 'split': 'test', 'R1': r1} for epoch, r1 in enumerate(rank1, 1)]
    >>> summary = summarize_evaluations(evaluations)
    >>> summary['best'], summary['last'], summary['mean']
    ({'R1': 62.0, 'epochs': [5]}, {'R1': 60.0, 'epochs': [7]}, {'R1': 60.0, 'epochs': [3, 4, 5, 6, 7]})
    """
    if not evaluations:
        return {}
    metric, last = get_selection_metric(evaluations[0]), evaluations[-1]
    best = max(evaluations, key=lambda evaluation: evaluation[metric])
    latest = [evaluation for evaluation in evaluations if evaluation['epoch'] > last['epoch'] - MEAN_EPOCHS]
    return {'split': last.get('split'), 'best': average_metrics([best]), 'last': average_metrics([last]),
            'mean': average_metrics(latest)}


def get_selection_metric(metrics):
    """Return the key of the metric that selects the best epoch."""
    return next(name for name in METRIC_LABELS if name in metrics)


def average_metrics(evaluations):
    """Average each metric that all the evaluations have, and add their ``epochs``."""
    names = [name for name, value in evaluations[0].items() if name != 'epoch' and isinstance(value, (int, float))
             and all(name in evaluation for evaluation in evaluations)]
    means = {name: statistics.fmean(evaluation[name] for evaluation in evaluations) for name in names}
    return {**means, 'epochs': [evaluation['epoch'] for evaluation in evaluations]}


def format_summary(summary, dataset=''):
    """Format the result of :func:`summarize_evaluations` as one line, with the dataset's name if it is given."""
    if not summary:
        return ''
    best, last, mean = summary['best'], summary['last'], summary['mean']
    metric, split = get_selection_metric(best), summary['split']
    line = f'during training, on the {split} split' + (f' of {dataset}' if dataset else '')
    line += f": best {METRIC_LABELS[metric]} {best[metric]:.3f} at epoch {best['epochs'][0]}"
    line += f", last {last[metric]:.3f} at epoch {last['epochs'][0]}"
    if len(mean['epochs']) > 1:
        line += f", mean of epochs {mean['epochs'][0]} to {mean['epochs'][-1]} {mean[metric]:.3f}"
    return line

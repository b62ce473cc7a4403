"""A run's evaluations while it trained: the best epoch, the last one, and the mean of the last five.

The best of 60 epochs on the split that chose it is a maximum of 60 noisy figures: it lies above what the run reaches as a rule. The
last epoch was chosen by nothing, and the mean of the last five has less noise.
"""
import os
import statistics

from utils.iotools import parse_json

MEAN_OF = 5   # epochs at the end


def read_evaluations(folder, dataset=''):
    """The evaluations in a run's ``metrics.jsonl``, by epoch: ``[{'epoch', 'split', 'R1', ...}]``; none for a run of other code.
    ``dataset``: of a run that is evaluated on several, one of :func:`further_datasets`; by default the one that chooses the best epoch."""
    kind = f'evaluation/{dataset}' if dataset else 'evaluation'
    evaluations = {entry['epoch']: entry for entry in read_journal(folder) if entry['kind'] == kind}
    return [{name: value for name, value in evaluations[epoch].items() if name not in ('kind', 'step')} for epoch in sorted(evaluations)]


def further_datasets(folder):
    """The datasets that a run is evaluated on beside the one that chooses the best epoch."""
    kinds = dict.fromkeys(entry['kind'] for entry in read_journal(folder))
    return [kind.removeprefix('evaluation/') for kind in kinds if kind.startswith('evaluation/')]


def read_journal(folder):
    """The facts in a run's ``metrics.jsonl``, in order; none for a run of other code."""
    try:
        with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8') as file:
            return [entry for entry in map(fact_in, file) if entry is not None]
    except (OSError, UnicodeDecodeError):
        return []


def fact_in(line):
    try:
        entry = parse_json(line)
        return entry if isinstance(entry['kind'], str) and isinstance(entry['epoch'], int) else None
    except (ValueError, KeyError, TypeError):   # the line that a kill cut short
        return None


def best_last_mean(evaluations):
    """``{'split', 'best': metrics, 'last': metrics, 'mean': metrics}``, each with its ``epochs``; {} without evaluations.

    The best is the first of equals by Rank-1, as ``best.pth`` is. The mean is of the evaluations in the last five epochs.

    >>> runs = [{'epoch': epoch, 'split': 'test', 'R1': r1} for epoch, r1 in enumerate((10.0, 40.0, 61.0, 59.0, 62.0, 58.0, 60.0), 1)]
    >>> found = best_last_mean(runs)
    >>> found['best'], found['last'], found['mean']
    ({'R1': 62.0, 'epochs': [5]}, {'R1': 60.0, 'epochs': [7]}, {'R1': 60.0, 'epochs': [3, 4, 5, 6, 7]})
    """
    if not evaluations:
        return {}
    measure = measure_of(evaluations[0])
    best, last = max(evaluations, key=lambda one: one[measure]), evaluations[-1]
    ending = [one for one in evaluations if one['epoch'] > last['epoch'] - MEAN_OF]
    return {'split': last.get('split'), 'best': mean_of([best]), 'last': mean_of([last]), 'mean': mean_of(ending)}


MEASURES = {'R1': 'Rank-1', 'mA': 'mA'}   # what chooses the best epoch: of retrieval, of attributes


def measure_of(metrics):
    return next(name for name in MEASURES if name in metrics)


def mean_of(evaluations):
    """The mean of each metric that all the evaluations have, and their ``epochs``."""
    names = [name for name, value in evaluations[0].items() if name != 'epoch' and isinstance(value, (int, float))
             and all(name in one for one in evaluations)]
    means = {name: statistics.fmean(one[name] for one in evaluations) for name in names}
    return {**means, 'epochs': [one['epoch'] for one in evaluations]}


def in_words(found, dataset=''):
    """A line for the log and under the table, which names the ``dataset`` if it is given; '' without evaluations."""
    if not found:
        return ''
    best, last, mean = found['best'], found['last'], found['mean']
    measure = measure_of(best)
    line = f"while training, on the {found['split']} split{dataset and f' of {dataset}'}: "
    line += f"best {MEASURES[measure]} {best[measure]:.3f} at epoch {best['epochs'][0]}"
    line += f", last {last[measure]:.3f} at epoch {last['epochs'][0]}"
    if len(mean['epochs']) > 1:
        line += f", mean of epochs {mean['epochs'][0]} to {mean['epochs'][-1]} {mean[measure]:.3f}"
    return line

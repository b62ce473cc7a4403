"""Best epoch, last epoch and the mean of the last five epochs, from metrics.jsonl."""
import doctest
import json

import pytest

import processor.history
from processor.history import format_summary, summarize_evaluations
from processor.results import Record, read_evaluations


def write(folder, evaluations, more=''):
    lines = [{'kind': 'evaluation', 'epoch': epoch, 'step': epoch, 'R1': r1, 'mAP': r1 / 2, 'split': 'test'}
             for epoch, r1 in evaluations]
    lines.insert(1, {'kind': 'epoch', 'epoch': 1, 'step': 10, 'loss': 3.0})
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n' + more)
    return str(folder)


def test_the_example_of_the_docstring():
    assert doctest.testmod(processor.history).failed == 0


def test_best_last_and_mean(tmp_path):
    evaluations = [(1, 10.0), (2, 50.0), (3, 61.5), (4, 61.5), (5, 58.0), (6, 60.0), (7, 59.0)]
    folder = write(tmp_path, evaluations, '{"kind": "evalua')
    summary = summarize_evaluations(read_evaluations(folder))
    assert summary['split'] == 'test'
    assert summary['best'] == {'R1': 61.5, 'mAP': 30.75, 'epochs': [3]}                 # the first of equals
    assert summary['last'] == {'R1': 59.0, 'mAP': 29.5, 'epochs': [7]}
    assert summary['mean'] == {'R1': pytest.approx(60.0), 'mAP': pytest.approx(30.0), 'epochs': [3, 4, 5, 6, 7]}
    assert format_summary(summary) == ('during training, on the test split: best Rank-1 61.500 at epoch 3, '
                                     'last 59.000 at epoch 7, mean of epochs 3 to 7 60.000')


def test_epochs_without_an_evaluation_are_not_in_the_mean(tmp_path):
    summary = summarize_evaluations(read_evaluations(write(tmp_path, [(3, 20.0), (6, 30.0), (9, 40.0)])))
    assert summary['mean']['epochs'] == [6, 9] and summary['mean']['R1'] == 35
    one = Record('evaluation', 7, 7, {'split': 'val', 'R1': 3.0})
    assert 'mean' not in format_summary(summarize_evaluations([one]))


def test_an_epoch_that_was_evaluated_again_after_resuming_counts_once(tmp_path):
    folder = write(tmp_path, [(1, 10.0), (2, 99.0), (2, 20.0)])
    rank1 = [(evaluation.epoch, evaluation.values['R1']) for evaluation in read_evaluations(folder)]
    assert rank1 == [(1, 10.0), (2, 20.0)]


def test_a_run_of_another_program_has_none(tmp_path):
    assert read_evaluations(str(tmp_path)) == [] and summarize_evaluations([]) == {} and format_summary({}) == ''

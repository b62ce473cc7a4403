"""Metrics of PA-100K against a plain computation."""
import pytest
import torch

from utils.attribute_metrics import attribute_metrics


def plainly(predicted, labels):
    predicted, labels = predicted.tolist(), labels.tolist()
    rates = []
    for a in range(len(labels[0])):
        positive = [p[a] for p, y in zip(predicted, labels) if y[a] == 1]
        negative = [not p[a] for p, y in zip(predicted, labels) if y[a] == 0]
        rates.append((sum(positive) / len(positive) + sum(negative) / len(negative)) / 2)
    accuracy, precision, recall = [], [], []
    for p, y in zip(predicted, labels):
        says, has = {a for a, value in enumerate(p) if value}, {a for a, value in enumerate(y) if value == 1}
        accuracy.append(len(says & has) / max(len(says | has), 1))
        precision.append(len(says & has) / max(len(says), 1))
        recall.append(len(says & has) / max(len(has), 1))
    means = [sum(values) / len(values) for values in (accuracy, precision, recall)]
    return [sum(rates) / len(rates), *means, 2 * means[1] * means[2] / (means[1] + means[2])]


def test_measures():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (40, 5), generator=generator)
    predicted = torch.rand(40, 5, generator=generator) < 0.6
    predicted[0], labels[1] = False, 0                                       # no prediction, no attribute
    measured = attribute_metrics(predicted, labels)
    assert list(measured) == ['mA', 'accuracy', 'precision', 'recall', 'F1']
    assert list(measured.values()) == pytest.approx([100 * value for value in plainly(predicted, labels)])


def test_unknown_labels_count_nowhere():
    labels = torch.tensor([[1, -1], [0, -1]])
    for value in (True, False):
        assert attribute_metrics(torch.tensor([[True, value], [False, value]]), labels) == dict.fromkeys(
            ('mA', 'accuracy', 'precision', 'recall', 'F1'), pytest.approx(100, abs=60)) | {'mA': 100.0}


def test_nothing_recognised_is_zero_and_no_error():
    measured = attribute_metrics(torch.zeros(2, 1, dtype=torch.bool), torch.ones(2, 1))
    assert measured['F1'] == measured['recall'] == 0

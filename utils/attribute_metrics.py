"""Metrics of attribute recognition, as for PA-100K (Liu et al., ICCV 2017)."""
import torch

from utils.tables import ATTRIBUTE_METRICS


def attribute_metrics(predicted, labels):
    """Compute the metrics of attribute recognition in percent.

    mA is the mean over attributes of (TPR + TNR) / 2. If all images have an attribute, or none has, only the rate that
    exists counts. An attribute without labels does not count.

    The other metrics are means over images, with predicted attributes P and true ones Y. A ratio 0 / 0 is 0.

    - accuracy: |P and Y| / |P or Y|
    - precision: |P and Y| / |P|
    - recall: |P and Y| / |Y|
    - F1: from the mean precision and the mean recall

    Args:
        predicted: [N, A] bool.
        labels: [N, A] 0 or 1; -1 is not counted.

    Returns:
        ``{'mA', 'accuracy', 'precision', 'recall', 'F1'}``

    Example:
        >>> import torch
        >>> attribute_metrics(torch.tensor([[True, False]]), torch.tensor([[1, 0]]))['mA']
        100.0
    """
    known, truth = labels >= 0, labels == 1
    predicted = predicted.bool() & known
    rates = torch.stack([column_ratio(predicted & truth, truth & known),
                         column_ratio(~predicted & ~truth & known, ~truth & known)])                       # [2, A]
    exists = torch.stack([(truth & known).any(dim=0), (~truth & known).any(dim=0)])
    per_attribute = (rates * exists).sum(dim=0) / exists.sum(dim=0).clamp(min=1)
    is_counted = exists.any(dim=0)
    mean_accuracy = per_attribute[is_counted].mean() if bool(is_counted.any()) else torch.zeros(())
    both, either = (predicted & truth).sum(dim=1), (predicted | truth).sum(dim=1)
    accuracy, precision, recall = ((both / total.clamp(min=1)).double().mean()
                                   for total in (either, predicted.sum(dim=1), truth.sum(dim=1)))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else torch.zeros(())
    values = mean_accuracy.double(), accuracy, precision, recall, f1
    return {name: 100 * value.item() for name, value in zip(ATTRIBUTE_METRICS, values)}


def column_ratio(selected, total):
    """Divide the number of True in each column of ``selected`` by that in ``total``; 0 / 0 is 0."""
    return selected.sum(dim=0).double() / total.sum(dim=0).clamp(min=1)

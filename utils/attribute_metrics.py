"""How well attributes are recognised: PA-100K's measures (Liu et al., ICCV 2017)."""
import torch


def attribute_measures(predicted, labels):
    """``{'mA', 'accuracy', 'precision', 'recall', 'F1'}`` in percent, of bool [N, A] predictions and labels of 0 and 1 (-1: not counted).

    mA is the mean over attributes of (TPR + TNR) / 2; an attribute that no image has, or every image, counts by the rate that exists, and
    one without labels not at all. The others are means over images of |P and Y| over |P or Y|, |P| and |Y|, where nothing over nothing is
    0, and F1 is that of these two means.

    >>> import torch
    >>> attribute_measures(torch.tensor([[True, False]]), torch.tensor([[1, 0]]))['mA']
    100.0
    """
    known, truth = labels >= 0, labels == 1
    predicted = predicted.bool() & known
    rates = torch.stack([share(predicted & truth, truth & known), share(~predicted & ~truth & known, ~truth & known)])     # [2, A]
    there = torch.stack([(truth & known).any(dim=0), (~truth & known).any(dim=0)])
    per_attribute = (rates * there).sum(dim=0) / there.sum(dim=0).clamp(min=1)
    counted = there.any(dim=0)
    mean_accuracy = per_attribute[counted].mean() if bool(counted.any()) else torch.zeros(())
    both, either = (predicted & truth).sum(dim=1), (predicted | truth).sum(dim=1)
    accuracy, precision, recall = (
        (both / whole.clamp(min=1)).double().mean() for whole in (either, predicted.sum(dim=1), truth.sum(dim=1)))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else torch.zeros(())
    return {name: 100 * value.item() for name, value in zip(
        ('mA', 'accuracy', 'precision', 'recall', 'F1'), (mean_accuracy.double(), accuracy, precision, recall, f1))}


def share(part, whole):
    """Column by column, the number of True in ``part`` over that in ``whole``; 0 without any."""
    return part.sum(dim=0).double() / whole.sum(dim=0).clamp(min=1)

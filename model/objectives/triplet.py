"""Losses that compare positives with negatives by a margin."""
import math

import torch
import torch.nn.functional as F

from model.objectives.common import cosine_similarity, full_precision, reduce, same_identity_mask

LARGEST_LOG = math.log(1e36)   # the reference implementation of RDE clamps its sum of exponentials to 1e36


@full_precision
def tri(image_embedding, text_embedding, pids, *, margin=0.05):
    """Triplet loss with the hardest negative of the batch (SEN, 2024): mean hinge, the sum of both directions.

    A batch of one identity has no negatives and gives 0.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.
        margin: margin of the hinge.

    Example:
        >>> tri(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
        tensor(0.)
        >>> tri(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([0, 1, 2]))    # the margin, in both directions
        tensor(0.1000)
    """
    cosine = cosine_similarity(text_embedding, image_embedding)            # [B texts, B images]
    same = same_identity_mask(pids).bool()
    negatives = cosine.masked_fill(same, float('-inf'))
    positive = cosine.diagonal()
    # A batch of one identity has the maximum -inf: the hinge is 0 and has no gradient.
    return sum(F.relu(negatives.max(dim=dim).values - positive + margin).mean() for dim in (1, 0))


@full_precision
def detail(image_details, text_details, pids, *, tau=100.0, margin=0.1):
    """Hinge between each pair's identity and its hardest negative (A2TE, 2025, DAL), both directions, batch sum.

    The positive of a row is the mean of its same-identity cosines, weighted by their softmax at temperature ``tau``.
    The negative is the row's largest cosine, with same-identity cosines set to 0.

    Args:
        image_details: [B, D].
        text_details: [B, D].
        pids: [B] identities.
        tau: softmax temperature of the positives.
        margin: margin of the hinge.

    Example:
        >>> detail(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
        tensor(0.)
        >>> detail(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([0, 1, 2]))    # all embeddings equal: 6 margins
        tensor(0.6000)
    """
    scores, same = cosine_similarity(text_details, image_details), same_identity_mask(pids).bool()
    return sum(hardest_negative_hinge(rows, same, tau, margin).sum() for rows in (scores, scores.t()))


@full_precision
def tal(image_embedding, text_embedding, pids, *, tau=0.015, margin=0.1, reduction='sum'):
    """Triplet alignment loss (RDE, CVPR 2024, eq. 4), the sum of both directions.

    The hinge compares the pair's identity with the log-sum-exp of all negatives at temperature ``tau``. A row without
    a negative gives 0.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.
        tau: temperature of positives and negatives.
        margin: margin of the hinge.
        reduction: 'sum', 'mean' or 'none' ([B], one loss per pair).

    Example:
        >>> tal(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
        tensor(0.)
        >>> tal(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([5, 5, 5]), reduction='none')    # no negatives
        tensor([0., 0., 0.])
    """
    same = same_identity_mask(pids).bool()
    has_no_negative = same.all(dim=1)                                      # [B]

    def row_losses(scores):
        logits = (scores / tau).masked_fill(same & ~has_no_negative[:, None], float('-inf'))
        negative = tau * torch.logsumexp(logits, dim=1).clamp(max=LARGEST_LOG)
        return F.relu(margin - soft_positive(scores, same, tau) + negative).masked_fill(has_no_negative, 0)
    return reduce(sum_directions(row_losses, image_embedding, text_embedding), reduction)


@full_precision
def trl(image_embedding, text_embedding, pids, *, tau=0.015, margin=0.1, reduction='sum'):
    """:func:`tal` with the hardest negative only (RDE, CVPR 2024, TRL).

    Among the negatives, positives count as a similarity of 0.

    >>> trl(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
    tensor(0.)
    """
    same = same_identity_mask(pids).bool()

    def row_losses(scores):
        return hardest_negative_hinge(scores, same, tau, margin)
    return reduce(sum_directions(row_losses, image_embedding, text_embedding), reduction)


def sum_directions(row_losses, image_embedding, text_embedding):
    """Add the losses of both directions of each pair.

    Args:
        row_losses: function of similarities [B, B] that returns one loss per row, [B].
        image_embedding: [B, D].
        text_embedding: [B, D].

    Returns:
        [B]: the loss of each caption against all images, plus the loss of its image against all captions.
    """
    scores = cosine_similarity(text_embedding, image_embedding)            # [B texts, B images]
    return row_losses(scores) + row_losses(scores.t())


def soft_positive(scores, same, tau):
    """Mean of each row's same-identity scores, weighted by their softmax: [B, B], bool [B, B] -> [B].

    No gradient flows through the weights.
    """
    weights = (scores / tau).masked_fill(~same, float('-inf')).softmax(dim=1).detach()
    return (weights * scores).sum(dim=1)


def hardest_negative_hinge(scores, same, tau, margin):
    """Hinge between :func:`soft_positive` and each row's largest score: [B, B], bool [B, B] -> [B].

    Same-identity scores count as 0 in the maximum.
    """
    return F.relu(margin + scores.masked_fill(same, 0).max(dim=1).values - soft_positive(scores, same, tau))


def reduce_clean_pairs(losses, clean, reduction):
    """Sum or mean of the clean pairs' losses; 0 if no pair is clean.

    Args:
        losses: [B].
        clean: [B], 1 for clean pairs and 0 for noisy ones. None: all pairs are clean.
        reduction: 'mean' or 'sum'.

    Example:
        >>> losses, clean = torch.tensor([1., 2., 6.]), torch.tensor([1., 1., 0.])
        >>> reduce_clean_pairs(losses, clean, 'sum'), reduce_clean_pairs(losses, clean, 'mean')
        (tensor(3.), tensor(1.5000))
    """
    clean = torch.ones_like(losses) if clean is None else clean
    total = (losses * clean).sum()
    return total / clean.sum().clamp(min=1) if reduction == 'mean' else total

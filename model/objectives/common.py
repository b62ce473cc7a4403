"""Functions that several losses use."""
import functools

import torch
import torch.nn.functional as F


def full_precision(loss):
    """Run a loss in float32. Half precision resolves cosines to 1e-3, which is 5% of a logit at temperature 0.02."""
    @functools.wraps(loss)
    def in_float32(*tensors, **settings):
        floats = [x.float() if x.is_floating_point() else x for x in tensors]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*floats, **settings)
    return in_float32


def reduce(losses, reduction):
    """Reduce losses as PyTorch does: 'none' returns them, 'mean' and 'sum' return a scalar."""
    return losses if reduction == 'none' else getattr(losses, reduction)()


def cosine_similarity(a, b):
    """Cosines of all pairs of rows: [A, D], [B, D] -> [A, B].

    >>> cosine_similarity(torch.tensor([[3., 4.]]), torch.tensor([[1., 0.], [0., 2.]]))
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()


def bidirectional_logits(image_embedding, text_embedding, scale, reduction):
    """Compute ``scale`` times the cosines of images with captions, and of captions with images: [B, B] each.

    The two branches differ in rounding only. IRRA's losses of a batch and RDE's losses of a pair depend on these bits.
    """
    if reduction == 'none':
        cosine = cosine_similarity(text_embedding, image_embedding)
        return scale * cosine.t(), scale * cosine
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    return logits, logits.t()


def same_identity_mask(pids):
    """[B] -> float [B, B]: 1 if two samples have the same pid, else 0.

    >>> same_identity_mask(torch.tensor([7, 7, 9]))
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 1.]])
    """
    return (pids[:, None] == pids[None, :]).float()


def identity_targets(pids):
    """[B] -> [B, B]: soft targets that give all samples of a row's identity equal probability.

    >>> identity_targets(torch.tensor([7, 7, 9]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    labels = same_identity_mask(pids)
    return labels / labels.sum(dim=1, keepdim=True)


def matching_divergence(logits, target, eps=1e-8, reduction='mean'):
    """KL(softmax(logits) || target) of each row: [B, B], [B, B] -> scalar, or [B] with the reduction 'none'.

    ``eps`` is added to the target.
    """
    log_p = F.log_softmax(logits, dim=1)
    return reduce((log_p.exp() * (log_p - torch.log(target + eps))).sum(dim=1), reduction)

"""Losses with soft targets of a momentum model (ALBEF: Li et al., NeurIPS 2021)."""
import torch
import torch.nn.functional as F

from model.objectives.common import full_precision


@full_precision
def distilled_contrast(embedding, momentum_embedding, keys, is_positive, *, temperature, alpha):
    """InfoNCE with several positives per row and soft targets (ALBEF, eq. 6; RaSa, IJCAI 2023).

    The targets are ``alpha`` times the momentum model's softmax, plus 1 - ``alpha`` for the positives together. They
    have no gradient.

    Args:
        embedding: [B, D], of length 1, and so are all embeddings.
        momentum_embedding: [B, D] of the same samples by the momentum model.
        keys: [K, D] by the momentum model: the batch's and those of a queue.
        is_positive: bool [B, K], at least one in each row.
        temperature: softmax temperature, a number or a learned tensor.
        alpha: weight of the soft targets.

    Example:
        >>> rows = torch.eye(2)
        >>> round(distilled_contrast(rows, rows, rows, rows.bool(), temperature=1.0, alpha=0.0).item(), 4)
        0.3133
    """
    with torch.no_grad():
        positives = is_positive.float()
        soft = (momentum_embedding @ keys.t() / temperature).softmax(dim=1)
        targets = alpha * soft + (1 - alpha) * positives / positives.sum(dim=1, keepdim=True)     # [B, K]
    return F.cross_entropy(embedding @ keys.t() / temperature, targets)


@full_precision
def distilled_mlm(logits, momentum_logits, labels, *, alpha, count=None):
    """Masked language modeling with soft targets (ALBEF, eq. 7), as in its reference implementation.

    The logarithm of the softmax in the soft part runs over the L positions, not over the words. So all positions of
    the padded length count, padding included.

    Args:
        logits: [B, L, V].
        momentum_logits: [B, L, V] by the momentum model, without gradient.
        labels: [B, L], the words, or -100 at positions that are not masked.
        alpha: weight of the soft targets.
        count: how many positions of the global batch are masked, if these B captions are only a part of it.

    Returns:
        A scalar, the mean over masked positions. It is 0 if there are none.
    """
    is_masked = labels != -100
    count = is_masked.sum() if count is None else count
    hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction='sum')
    soft = -(momentum_logits.softmax(dim=-1) * F.log_softmax(logits, dim=1)).sum(dim=-1)           # [B, L]
    return ((1 - alpha) * hard + alpha * (soft * is_masked).sum()) / count.clamp(min=1)

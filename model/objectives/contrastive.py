"""Losses that compare each sample with all others of the batch by a softmax or a distribution."""
import torch
import torch.nn.functional as F

from model.objectives.common import (
    bidirectional_logits, cosine_similarity, full_precision, identity_targets, matching_divergence, same_identity_mask,
)


@full_precision
def sdm(image_embedding, text_embedding, pids, *, scale, reduction='mean'):
    """Similarity distribution matching (IRRA, CVPR 2023, eq. 6-8), the sum of both directions.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.
        scale: 1 / temperature.
        reduction: 'mean', 'sum' or 'none' ([B], one loss per pair).

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)     # three pairs; each caption equals its image
        >>> round(sdm(image, text, torch.tensor([0, 1, 2]), scale=1).item(), 4)
        13.6658
        >>> round(sdm(image, text, torch.tensor([0, 1, 2]), scale=5).item(), 4)
        0.3301
        >>> round(sdm(image, text, torch.tensor([0, 1, 1]), scale=50).item(), 4)    # two different images of one person
        0.9242
    """
    target = identity_targets(pids)
    return sum(matching_divergence(logits, target, reduction=reduction)
               for logits in bidirectional_logits(image_embedding, text_embedding, scale, reduction))


@full_precision
def a_sdm(image_embedding, text_embedding, pids, *, scale):
    """Adaptive :func:`sdm` (FMFA, ACM TOMM 2026): rows whose best match is not their first match weigh more.

    The first match is the item of the row's identity with the lowest index, as in the reference implementation. It can
    be another item than the row's own. If the best match is another one, the weight of the row is
    1 + 0.1 (cosine of the best match - cosine of the first match). The weight has a gradient.
    """
    target = identity_targets(pids)
    first = target.argmax(dim=1, keepdim=True)                             # [B, 1]

    def direction_loss(cosine):
        losses = matching_divergence(scale * cosine, target, reduction='none')     # [B]
        best, best_index = cosine.max(dim=1, keepdim=True)                 # [B, 1]
        weights = torch.where(best_index == first, 1, 1 + 0.1 * (best - cosine.gather(1, first)))
        return (weights.squeeze(1) * losses).mean()
    cosine = cosine_similarity(image_embedding, text_embedding)
    return direction_loss(cosine) + direction_loss(cosine.t())


@full_precision
def cmpm(image_embedding, text_embedding, pids):
    """Cross-modal projection matching (Zhang and Lu, ECCV 2018, eq. 1-5), the sum of both directions.

    It has no temperature: the lengths of the embeddings scale the logits.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.

    Example:
        >>> round(cmpm(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])).item(), 4)
        13.6658
        >>> round(cmpm(10 * torch.eye(3), 10 * torch.eye(3), torch.tensor([0, 1, 2])).item(), 4)
        0.0013
    """
    target = F.normalize(same_identity_mask(pids), dim=1)
    image_on_text = image_embedding @ F.normalize(text_embedding, dim=-1).t()
    text_on_image = text_embedding @ F.normalize(image_embedding, dim=-1).t()
    return matching_divergence(image_on_text, target) + matching_divergence(text_on_image, target)


@full_precision
def itc(image_embedding, text_embedding, *, scale, reduction='mean'):
    """InfoNCE of CLIP (Radford et al., ICML 2021): each pair against the batch, mean of both directions.

    Other images of the same identity count as negatives.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        scale: 1 / temperature.
        reduction: 'mean', 'sum' or 'none' ([B], one loss per pair).

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> round(itc(image, text, scale=1).item(), 4), round(itc(image, text, scale=50).item(), 4)
        (0.5514, 0.0)
    """
    target = torch.arange(len(image_embedding), device=image_embedding.device)
    return sum(F.cross_entropy(logits, target, reduction=reduction)
               for logits in bidirectional_logits(image_embedding, text_embedding, scale, reduction)) / 2


def cmt(image_embedding, text_embedding, *, scale, temperature=0.2):
    """AGM's contrastive loss (2025): :func:`itc` with logits divided by a second ``temperature``.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        scale: 1 / temperature of the other losses.
        temperature: second softmax temperature.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> cmt(image, text, scale=1) == itc(image, text, scale=5)
        tensor(True)
    """
    return itc(image_embedding, text_embedding, scale=scale / temperature)


@full_precision
def itc_by_identity(image_embedding, text_embedding, pids, *, temperature):
    """InfoNCE with soft targets by identity (APTM, ACM MM 2023), mean of both directions.

    All samples of an identity have equal target probabilities. ``temperature`` may be a learned tensor.
    """
    target = identity_targets(pids)                                                         # [B, B]
    logits = cosine_similarity(image_embedding, text_embedding) / temperature               # [B, B]
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@full_precision
def complementary_contrast(image_embedding, text_embedding, *, temperature=0.1):
    """Contrast by negatives only (CONQUER, ICASSP 2026): the probability of each negative falls, also in noisy pairs.

    With p the softmax of a row, the row's loss is the sum of -log(1 - p) over all other items of the batch. The loss
    is the mean over rows, the sum of both directions. Other images of the same identity count as negatives.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        temperature: softmax temperature of the cosines.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> round(complementary_contrast(image, text).item(), 4)
        0.0002
        >>> round(complementary_contrast(image, text.roll(1, dims=0)).item(), 4)    # wrong captions
        18.613
    """
    cosine = cosine_similarity(image_embedding, text_embedding)
    is_negative = 1 - torch.eye(len(cosine), device=cosine.device)                          # [B, B]

    def direction_loss(logits):
        # As in the reference implementation, 1e-10 bounds the loss if 1 - p is 0 in float32.
        return -(torch.log(1 - logits.softmax(dim=1) + 1e-10) * is_negative).sum(dim=1).mean()
    return direction_loss(cosine / temperature) + direction_loss(cosine.t() / temperature)


@full_precision
def momentum_contrast(embedding, keys, queue, *, scale):
    """InfoNCE of one side's embeddings against those of a momentum encoder (MoCo: He et al., CVPR 2020, eq. 1).

    Other keys of the batch are negatives also, as in ALBEF (Li et al., NeurIPS 2021, eq. 1).

    Args:
        embedding: [B, D].
        keys: [B, D] of the other side by the momentum encoder; row i is the positive of sample i.
        queue: [Q, D] of earlier batches, the negatives.
        scale: 1 / temperature.

    Example:
        >>> round(momentum_contrast(torch.eye(3), torch.eye(3), -torch.eye(3), scale=5).item(), 4)
        0.0266
    """
    logits = scale * cosine_similarity(embedding, torch.cat([keys, queue]))                 # [B, B + Q]
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


@full_precision
def nitc(image_embedding, text_embedding, soft_image, soft_text, pids, *, scale, alpha):
    """Normalized image-text contrast with soft targets (TBPS-CLIP, AAAI 2024, eq. 3-6), mean of both directions.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        soft_image: [B, D] of a second forward pass, which gives soft targets without gradient.
        soft_text: [B, D] of the second forward pass.
        pids: [B] identities.
        scale: 1 / temperature.
        alpha: weight of the soft targets; the targets by identity have the weight 1 - ``alpha``.
    """
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    with torch.no_grad():
        soft = scale * cosine_similarity(soft_image, soft_text)
        to_text, to_image = (alpha * x.softmax(dim=1) + (1 - alpha) * identity_targets(pids) for x in (soft, soft.t()))
    return (F.cross_entropy(logits, to_text) + F.cross_entropy(logits.t(), to_image)) / 2


@full_precision
def ritc(image_embedding, text_embedding, pids, *, scale, eps=1e-2):
    """Reverse image-text contrast (TBPS-CLIP, AAAI 2024, eq. 7): KL(softmax || targets), mean of both directions.

    ``eps`` is added to the targets inside the logarithm, so the minimum of the loss is below 0.
    """
    logits, target = scale * cosine_similarity(image_embedding, text_embedding), identity_targets(pids)
    return (matching_divergence(logits, target, eps) + matching_divergence(logits.t(), target, eps)) / 2


@full_precision
def citc(image_embedding, text_embedding):
    """Cyclic image-text contrast (TBPS-CLIP, AAAI 2024, eq. 8-10): [B, D], [B, D] -> scalar.

    Similarities between images should equal those between their captions, and the matrix of image-text similarities
    should be symmetric.
    """
    image, text = F.normalize(image_embedding, dim=-1), F.normalize(text_embedding, dim=-1)
    within, across = image @ image.t() - text @ text.t(), image @ text.t()
    return within.square().mean() / 4 + (across - across.t()).square().mean() / 4


@full_precision
def simclr(first, second, *, temperature=0.1):
    """NT-Xent between two views of the same images (Chen et al., ICML 2020): [B, D], [B, D] -> mean over all 2B."""
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    target = torch.arange(len(first), device=first.device)
    across = first @ second.t() / temperature                              # [B, B]

    def view_loss(across, views):
        within = (views @ views.t() / temperature).fill_diagonal_(float('-inf'))
        return F.cross_entropy(torch.cat([across, within], dim=1), target)
    return (view_loss(across, first) + view_loss(across.t(), second)) / 2


def clamped_scale(log_scale, maximum=100.0):
    """exp(``log_scale``), at most ``maximum``. The gradient is that of the exponential, also above the maximum."""
    scale = log_scale.exp()
    return scale + (scale.clamp(max=maximum) - scale).detach()

"""Attributes of captions and images."""
import torch
import torch.nn.functional as F

from model.objectives.common import cosine_similarity, full_precision


@full_precision
def attribute_matching(logits, matches, is_attribute, *, caption_count=None):
    """Whether an image has a caption's attributes (A2TE, 2025, A2M).

    The cross-entropy of each attribute is averaged over a caption, and then over the captions that have attributes.
    The loss is 0 if no caption has attributes.

    Args:
        logits: [B, K, 2] for up to K attributes per caption.
        matches: int64 [B], 1 if image and caption are a pair, else 0.
        is_attribute: bool [B, K], False for unused entries.
        caption_count: how many captions of the global batch have attributes, if these B are only a part of it.
            The sum over the captions is divided by it.

    Example:
        >>> logits = torch.tensor([[[0., 2.], [0., 0.]], [[3., 0.], [0., 0.]]])     # two captions, K = 2
        >>> is_attribute = torch.tensor([[True, False], [True, True]])
        >>> round(attribute_matching(logits, torch.tensor([1, 0]), is_attribute).item(), 4)
        0.2489
    """
    labels = matches.repeat_interleave(is_attribute.shape[1])
    losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction='none').view_as(is_attribute)
    counts = is_attribute.sum(dim=1)                                                # [B]
    caption_losses = (losses * is_attribute).sum(dim=1) / counts.clamp(min=1)       # [B], 0 without attributes
    caption_count = (counts > 0).sum() if caption_count is None else caption_count
    return caption_losses.sum() / caption_count.clamp(min=1)


@full_precision
def attribute_contrast(image_embedding, prompt_embedding, labels, *, temperature, smoothing=0.0, labeled_count=None):
    """Cross-entropy of an image between the two prompts of each attribute (APTM, ACM MM 2023).

    The loss is the mean over the images that have a label, and then over the A attributes.

    Args:
        image_embedding: [B, D].
        prompt_embedding: [2A, D]; row 2a says that label a is 0, and row 2a + 1 says that it is 1.
        labels: [B, A], 1, 0, or -1 for unknown.
        temperature: softmax temperature.
        smoothing: label smoothing.
        labeled_count: [A], how many images of the global batch have a label, if these B are only a part of it.
            The sums over the images are divided by it.
    """
    logits = cosine_similarity(image_embedding, prompt_embedding) / temperature       # [B, 2A]
    pairs = logits.unflatten(1, (-1, 2))                                              # [B, A, 2]
    is_labeled = labels >= 0
    log_p = F.log_softmax(pairs, dim=-1)
    target = F.one_hot(labels.long().clamp(min=0), 2) * (1 - smoothing) + smoothing / 2
    losses = -(log_p * target).sum(dim=-1) * is_labeled                               # [B, A]
    labeled_count = is_labeled.sum(dim=0) if labeled_count is None else labeled_count
    return (losses.sum(dim=0) / labeled_count.clamp(min=1)).mean()


def true_prompts(labels):
    """Whether each attribute prompt is true of an image: labels [B, A] of 1, 0 and -1 -> bool [B, 2A].

    >>> true_prompts(torch.tensor([[1, 0, -1]]))
    tensor([[False,  True,  True, False, False, False]])
    """
    return torch.stack([labels == 0, labels == 1], dim=-1).flatten(1)


@full_precision
def smoothed_cross_entropy(logits, labels, *, smoothing=0.0):
    """Mean cross-entropy of two classes with label smoothing: [M, 2], [M] -> scalar. It is 0 if M is 0."""
    if not len(labels):
        return logits.sum() * 0
    target = F.one_hot(labels, 2) * (1 - smoothing) + smoothing / 2
    return F.cross_entropy(logits, target)


def attribute_binary_cross_entropy(logits, labels):
    """Mean binary cross-entropy over all labeled attributes: [B, A], [B, A] of 1, 0 and -1 (unknown) -> scalar."""
    is_labeled = labels >= 0
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float().clamp(min=0), reduction='none')
    return (losses * is_labeled).sum() / is_labeled.sum().clamp(min=1)

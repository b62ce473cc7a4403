"""Classification of identities, masked words, and image-text pairs."""
import torch
import torch.nn.functional as F

from model.objectives.common import cosine_similarity, full_precision, same_identity_mask


@full_precision
def identity(image_logits, text_logits, pids):
    """Identity classification (IRRA, CVPR 2023): mean cross-entropy of images and captions.

    Args:
        image_logits: [B, C] over the C training identities.
        text_logits: [B, C].
        pids: [B] identities from 0 to C - 1.

    Example:
        >>> logits = torch.tensor([[4., 0.], [0., 4.]])
        >>> round(identity(logits, logits, torch.tensor([0, 1])).item(), 4)
        0.0181
    """
    return (F.cross_entropy(image_logits, pids) + F.cross_entropy(text_logits, pids)) / 2


def accuracy(logits, labels):
    """Fraction of rows whose largest logit is at the label: [M, C], [M] -> scalar. It is 0 if M is 0.

    >>> accuracy(torch.tensor([[2., 1.], [0., 3.], [5., 4.]]), torch.tensor([0, 1, 1]))
    tensor(0.6667)
    """
    return (logits.argmax(dim=1) == labels).float().sum() / max(len(labels), 1)


@full_precision
def masked_language_modeling(logits, labels):
    """Mean cross-entropy of M masked tokens: [M, V], [M] -> scalar. It is 0 if M is 0.

    >>> round(masked_language_modeling(torch.zeros(2, 8), torch.tensor([3, 5])).item(), 4)    # log 8
    2.0794
    >>> masked_language_modeling(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    tensor(0.)
    """
    return F.cross_entropy(logits, labels, reduction='sum') / max(len(labels), 1)


@full_precision
def image_text_matching(logits, matches):
    """Mean cross-entropy of P pairs: [P, 2], [P] -> scalar. ``matches`` is 1 if image and caption belong together."""
    return F.cross_entropy(logits, matches)


@torch.no_grad()
def sample_hard_negatives(image_embedding, text_embedding, pids, *, temperature, generator=None):
    """Draw a caption of another identity for each image, and an image of another identity for each caption.

    The probabilities are softmax(cosine / temperature) + 1e-5 over the other identities (ALBEF, NeurIPS 2021).

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.
        temperature: softmax temperature.
        generator: PyTorch's default generator if None.

    Returns:
        ``(texts, images)``, two int64 [B]: the row of the caption for image i, and of the image for caption i.
        ``(None, None)`` if the whole batch shows one identity.
    """
    cosine = cosine_similarity(image_embedding.float(), text_embedding.float()) / temperature
    same = same_identity_mask(pids).bool()
    if bool(same.all(dim=1).any()):
        return None, None
    probabilities = [(logits.softmax(dim=1) + 1e-5).masked_fill(same, 0) for logits in (cosine, cosine.t())]
    return tuple(torch.multinomial(rows, 1, generator=generator).squeeze(1) for rows in probabilities)


@torch.no_grad()
def negative_probabilities(logits, pids):
    """Probabilities to draw a row's negative: the softmax over the other identities (RaSa, IJCAI 2023).

    Args:
        logits: [B, B] similarities / temperature.
        pids: [B] identities of rows and columns.

    Returns:
        [B, B]. A row is nan if the whole batch shows its identity.

    Example:
        >>> negative_probabilities(torch.zeros(3, 3), torch.tensor([7, 7, 9]))
        tensor([[0.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 1.0000],
                [0.5000, 0.5000, 0.0000]])
    """
    return logits.float().masked_fill(same_identity_mask(pids).bool(), float('-inf')).softmax(dim=1)


@full_precision
def summed_cross_entropy(logits, labels, *, ignored=-100):
    """Sum of the cross-entropies of all tokens: [..., C], [...] -> scalar. Labels ``ignored`` do not count."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=ignored, reduction='sum')

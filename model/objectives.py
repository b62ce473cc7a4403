"""The losses, as functions of tensors alone.

Shapes: ``image_embedding`` and ``text_embedding`` are [B, D] with row i of both from the same pair, ``pids`` is [B].
``scale`` is 1 / temperature. Every function returns a scalar, computes in float32 whatever autocast is around it, and
normalises what it needs normalised.
"""
import functools

import torch
import torch.nn.functional as F


def full_precision(loss):
    """Run a loss in float32: half precision resolves cosines to 1e-3, which a temperature of 0.02 turns into 5% of a logit."""
    @functools.wraps(loss)
    def wrapped(*tensors, **settings):
        floats = [x.float() if x.is_floating_point() else x for x in tensors]
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*floats, **settings)
    return wrapped


def cosine_similarity(a, b):
    """[A, D], [B, D] -> [A, B]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()


def same_identity(pids):
    """[B] -> [B, B], 1. where two samples have the same pid."""
    return (pids[:, None] == pids[None, :]).float()


def matching_divergence(logits, target, eps=1e-8):
    """KL(softmax(logits) || target) with ``eps`` inside the target's logarithm, mean over rows. [B, B], [B, B] -> scalar."""
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - torch.log(target + eps))).sum(dim=1).mean()


@full_precision
def sdm(image_embedding, text_embedding, pids, *, scale):
    """Similarity distribution matching (IRRA, CVPR 2023, eq. 6-8): both directions added."""
    labels = same_identity(pids)
    target = labels / labels.sum(dim=1, keepdim=True)
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    return matching_divergence(logits, target) + matching_divergence(logits.t(), target)


@full_precision
def itc(image_embedding, text_embedding, *, scale):
    """InfoNCE of CLIP (Radford et al., ICML 2021): each pair against the batch, mean of both directions. Other images of the
    same identity count as negatives."""
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@full_precision
def cmpm(image_embedding, text_embedding, pids):
    """Cross-modal projection matching (Zhang and Lu, ECCV 2018, eq. 1-5): no temperature, both directions added."""
    target = F.normalize(same_identity(pids), dim=1)
    image_on_text = image_embedding @ F.normalize(text_embedding, dim=-1).t()
    text_on_image = text_embedding @ F.normalize(image_embedding, dim=-1).t()
    return matching_divergence(image_on_text, target) + matching_divergence(text_on_image, target)


def cmt(image_embedding, text_embedding, *, scale, temperature=0.2):
    """AGM's contrastive loss: :func:`itc` with its logits divided by a further ``temperature``."""
    return itc(image_embedding, text_embedding, scale=scale / temperature)


@full_precision
def identity(image_logits, text_logits, pids):
    """Mean of both modalities' cross-entropy over the training identities. [B, C], [B, C], [B] -> scalar."""
    return (F.cross_entropy(image_logits, pids) + F.cross_entropy(text_logits, pids)) / 2


@full_precision
def masked_language_modelling(logits, labels):
    """Mean cross-entropy of the chosen tokens, [M, V], [M] -> scalar; 0 where a batch has none."""
    return F.cross_entropy(logits, labels, reduction='sum') / max(len(labels), 1)


@full_precision
def attribute_matching(logits, matches, there):
    """Whether an image has a caption's attributes (A2TE, 2025, A2M): the cross-entropy of each attribute, its mean over a caption,
    and the mean over the captions that have any (0 if none does).

    ``logits`` [B, K, 2], ``matches`` int64 [B]: 1 where image and caption are a pair, ``there`` bool [B, K]: which attributes exist.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), matches.repeat_interleave(there.shape[1]), reduction='none').view_as(there)
    counts = there.sum(dim=1)                                          # [B]
    captions = (losses * there).sum(dim=1) / counts.clamp(min=1)       # [B], 0 without attributes
    return captions.sum() / (counts > 0).sum().clamp(min=1)


@full_precision
def detail(image_details, text_details, pids, *, tau=100.0, margin=0.1):
    """Hinge between a pair's identity and the hardest other one (A2TE, 2025, DAL), both directions, summed over the batch.

    A row's positive is the mean of its same-identity cosines weighted by their softmax at temperature ``tau``, its negative the
    largest cosine, where those of the same identity count as 0.
    """
    scores, same = cosine_similarity(text_details, image_details), same_identity(pids)

    def one_way(scores):
        share = (scores / tau).masked_fill(same == 0, float('-inf')).softmax(dim=1).detach()
        positive, negative = (share * scores).sum(dim=1), (scores * (1 - same)).max(dim=1).values
        return F.relu(margin + negative - positive).sum()
    return one_way(scores) + one_way(scores.t())


def accuracy(logits, labels):
    """Share of rows whose largest logit is at the label, [M, C], [M] -> scalar; 0 where there is none."""
    return (logits.argmax(dim=1) == labels).float().sum() / max(len(labels), 1)


@full_precision
def tri(image_embedding, text_embedding, pids, *, margin=0.05):
    """Triplets of each pair with the most similar image, and text, of another identity (SEN, 2024): the mean hinge, both
    directions added. A batch of one identity has no negatives and gives 0."""
    cosine = cosine_similarity(text_embedding, image_embedding)            # [B texts, B images]
    same = same_identity(pids).bool()
    other = cosine.masked_fill(same, float('-inf'))
    positive = cosine.diagonal()
    # With one identity the largest is -inf, and so is the hinge's argument: 0, and no gradient.
    return sum(F.relu(other.max(dim=dim).values - positive + margin).mean() for dim in (1, 0))


@full_precision
def restoration(restored, target, scored):
    """Mean squared error of the scored patches (SEN, 2024). [B, P, C], [B, P, C], [B, P] of 0 and 1 -> scalar."""
    return ((restored - target).square().mean(dim=-1) * scored).sum() / scored.sum()


@full_precision
def load_balance(gate_logits, chosen):
    """How unevenly tokens and experts find each other (PHP, 2025-26; Shazeer et al., ICLR 2017): sum over experts of the mean
    probability that the gate gives one times the share of tokens that choose it. [..., E], [..., E] of 0 and 1 -> scalar."""
    probability = gate_logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)    # [E]
    return (probability * chosen.flatten(0, -2).mean(dim=0)).sum()

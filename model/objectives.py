"""Losses as pure functions of tensors.

Shapes: ``image_embedding`` and ``text_embedding`` are [B, D], and row i of both is one pair. ``pids`` is [B].
``scale`` is 1 / temperature. Every function returns a scalar; the losses of RDE return one number per pair, [B].
All losses compute in float32 under any autocast, and normalize embeddings themselves if their equation does.
"""
import functools
import math

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


def cosine_similarity(a, b):
    """Cosines of all pairs of rows: [A, D], [B, D] -> [A, B].

    >>> cosine_similarity(torch.tensor([[3., 4.]]), torch.tensor([[1., 0.], [0., 2.]]))
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()


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


def matching_divergence(logits, target, eps=1e-8):
    """KL(softmax(logits) || target), mean over rows: [B, B], [B, B] -> scalar. ``eps`` is added to the target."""
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - torch.log(target + eps))).sum(dim=1).mean()


@full_precision
def sdm(image_embedding, text_embedding, pids, *, scale):
    """Similarity distribution matching (IRRA, CVPR 2023, eq. 6-8), the sum of both directions.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.
        scale: 1 / temperature.

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
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    return matching_divergence(logits, target) + matching_divergence(logits.t(), target)


@full_precision
def itc(image_embedding, text_embedding, *, scale):
    """InfoNCE of CLIP (Radford et al., ICML 2021): each pair against the batch, mean of both directions.

    Other images of the same identity count as negatives.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        scale: 1 / temperature.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> round(itc(image, text, scale=1).item(), 4), round(itc(image, text, scale=50).item(), 4)
        (0.5514, 0.0)
    """
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


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
    scores, same = cosine_similarity(text_details, image_details), same_identity_mask(pids)

    def hinge_sum(scores):
        weights = (scores / tau).masked_fill(same == 0, float('-inf')).softmax(dim=1).detach()
        positive, negative = (weights * scores).sum(dim=1), (scores * (1 - same)).max(dim=1).values
        return F.relu(margin + negative - positive).sum()
    return hinge_sum(scores) + hinge_sum(scores.t())


def accuracy(logits, labels):
    """Fraction of rows whose largest logit is at the label: [M, C], [M] -> scalar. It is 0 if M is 0.

    >>> accuracy(torch.tensor([[2., 1.], [0., 3.], [5., 4.]]), torch.tensor([0, 1, 1]))
    tensor(0.6667)
    """
    return (logits.argmax(dim=1) == labels).float().sum() / max(len(labels), 1)


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
def restoration(restored, target, mask):
    """Mean squared error over the patches that ``mask`` selects (SEN, 2024).

    Args:
        restored: [B, P, C] predicted pixels of P patches.
        target: [B, P, C].
        mask: [B, P], 1 for patches that count and 0 for others.

    Example:
        >>> restored, target = torch.zeros(1, 2, 3), torch.tensor([[[1., 1., 1.], [9., 9., 9.]]])
        >>> restoration(restored, target, torch.tensor([[1, 0]]))
        tensor(1.)
    """
    return ((restored - target).square().mean(dim=-1) * mask).sum() / mask.sum()


@full_precision
def load_balance(gate_logits, selection):
    """Load-balancing loss of a mixture of E experts (PHP, 2025-26; Shazeer et al., ICLR 2017).

    For each expert, the gate's mean probability is multiplied by the fraction of tokens that select the expert. The
    loss is the sum over experts.

    Args:
        gate_logits: [..., E].
        selection: [..., E], 1 for the experts that a token selects and 0 for others.

    Example:
        >>> selection = torch.tensor([[1., 0.], [0., 1.]])
        >>> load_balance(torch.zeros(2, 2), selection), load_balance(torch.zeros(2, 2), torch.ones(2, 2))
        (tensor(0.5000), tensor(1.))
    """
    probability = gate_logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)    # [E]
    return (probability * selection.flatten(0, -2).mean(dim=0)).sum()


# -- RDE (Qin et al., CVPR 2024): one loss per pair, [B], which is its caption's loss plus its image's loss

def sum_directions(row_losses, image_embedding, text_embedding, *settings):
    """Add the losses of both directions.

    Args:
        row_losses: function of (similarities [B, B], *settings) that returns one loss per row, [B].
        image_embedding: [B, D].
        text_embedding: [B, D].

    Returns:
        [B]: the loss of each caption against all images, plus the loss of its image against all captions.
    """
    scores = cosine_similarity(text_embedding, image_embedding)            # [B texts, B images]
    return row_losses(scores, *settings) + row_losses(scores.t(), *settings)


def soft_positive(scores, same, tau):
    """Mean of each row's same-identity scores, weighted by their softmax: [B, B], bool [B, B] -> [B].

    No gradient flows through the weights.
    """
    weights = (scores / tau).masked_fill(~same, float('-inf')).softmax(dim=1).detach()
    return (weights * scores).sum(dim=1)


LARGEST_LOG = math.log(1e36)   # the reference implementation clamps its sum of exponentials to 1e36


@full_precision
def tal(image_embedding, text_embedding, pids, *, tau=0.015, margin=0.1):
    """Triplet alignment loss (RDE, CVPR 2024, eq. 4), [B].

    The hinge compares the pair's identity with the log-sum-exp of all negatives at temperature ``tau``. A row without
    a negative gives 0.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        pids: [B] identities.
        tau: temperature of positives and negatives.
        margin: margin of the hinge.

    Example:
        >>> tal(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
        tensor([0., 0., 0.])
        >>> tal(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([5, 5, 5]))    # one identity: no negatives
        tensor([0., 0., 0.])
    """
    same = same_identity_mask(pids).bool()
    has_no_negative = same.all(dim=1)                                      # [B]

    def row_losses(scores):
        logits = (scores / tau).masked_fill(same & ~has_no_negative[:, None], float('-inf'))
        negative = tau * torch.logsumexp(logits, dim=1).clamp(max=LARGEST_LOG)
        return F.relu(margin - soft_positive(scores, same, tau) + negative).masked_fill(has_no_negative, 0)
    return sum_directions(row_losses, image_embedding, text_embedding)


@full_precision
def trl(image_embedding, text_embedding, pids, *, tau=0.015, margin=0.1):
    """:func:`tal` with the hardest negative only (RDE, CVPR 2024, TRL), [B].

    Among the negatives, positives count as a similarity of 0.

    >>> trl(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
    tensor([0., 0., 0.])
    """
    same = same_identity_mask(pids).bool()

    def row_losses(scores):
        return F.relu(margin + scores.masked_fill(same, 0).max(dim=1).values - soft_positive(scores, same, tau))
    return sum_directions(row_losses, image_embedding, text_embedding)


@full_precision
def infonce_per_pair(image_embedding, text_embedding, *, scale):
    """:func:`itc` of each pair, [B]. Its mean over the batch is :func:`itc`."""
    return sum_directions(lambda scores: -F.log_softmax(scale * scores, dim=1).diagonal() / 2,
                          image_embedding, text_embedding)


@full_precision
def sdm_per_pair(image_embedding, text_embedding, pids, *, scale):
    """:func:`sdm` of each pair, [B]. Its mean over the batch is :func:`sdm`."""
    target = identity_targets(pids)

    def row_losses(scores):
        log_p = F.log_softmax(scale * scores, dim=1)
        return (log_p.exp() * (log_p - torch.log(target + 1e-8))).sum(dim=1)
    return sum_directions(row_losses, image_embedding, text_embedding)


def reduce_clean_pairs(losses, clean, mean):
    """Sum or mean of the clean pairs' losses; 0 if no pair is clean.

    Args:
        losses: [B].
        clean: [B], 1 for clean pairs and 0 for noisy ones. None: all pairs are clean.
        mean: whether to return the mean instead of the sum.

    Example:
        >>> losses, clean = torch.tensor([1., 2., 6.]), torch.tensor([1., 1., 0.])
        >>> reduce_clean_pairs(losses, clean, mean=False), reduce_clean_pairs(losses, clean, mean=True)
        (tensor(3.), tensor(1.5000))
    """
    clean = torch.ones_like(losses) if clean is None else clean
    total = (losses * clean).sum()
    return total / clean.sum().clamp(min=1) if mean else total


# -- TBPS-CLIP (Cao et al., AAAI 2024)

def clamped_scale(log_scale, maximum=100.0):
    """exp(``log_scale``), at most ``maximum``. The gradient is that of the exponential, also above the maximum."""
    scale = log_scale.exp()
    return scale + (scale.clamp(max=maximum) - scale).detach()


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


# -- FMFA (ACM TOMM 2026)

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
        log_p = F.log_softmax(scale * cosine, dim=1)
        terms = (log_p.exp() * (log_p - torch.log(target + 1e-8))).sum(dim=1)
        best, best_index = cosine.max(dim=1, keepdim=True)                 # [B, 1]
        weights = torch.where(best_index == first, 1, 1 + 0.1 * (best - cosine.gather(1, first)))
        return (weights.squeeze(1) * terms).mean()
    cosine = cosine_similarity(image_embedding, text_embedding)
    return direction_loss(cosine) + direction_loss(cosine.t())


@full_precision
def explicit_alignment(patches, words, *, chunk_size=4, all_gather=lambda rows: rows):
    """Explicit fine-grained alignment (FMFA, ACM TOMM 2026, EFA).

    Words and patches are compared with the patches that each word selects. The margins of 0.1 and 0.9 are those of the
    reference implementation.

    Args:
        patches: [B, N, D] without the class token, not normalized.
        words: [B, L, D], including start, end and padding.
        chunk_size: how many samples are compared with all others at once. One step for all of them would take
            B x B x N x L numbers.
        all_gather: function from this rank's rows to the rows of the global batch.
    """
    grouped = all_gather(group_patches_by_word(patches, words))
    return (token_triplet_loss(words, grouped, margin=0.1, chunk_size=chunk_size, all_gather=all_gather)
            + token_triplet_loss(patches, grouped, margin=0.9, chunk_size=chunk_size, all_gather=all_gather))


def group_patches_by_word(patches, words):
    """Mean of the patches that each word selects: [B, N, D], [B, L, D] -> [B, L, D]."""
    return patch_weights(patches, words) @ patches


def patch_weights(patches, words):
    """Weights of the patches for each word: [B, N, D], [B, L, D] -> [B, L, N].

    A word's scores are scaled to 0..1 over the patches, scores of at most 1/N become 0, and the rest is divided by its
    sum. If all scores of a word are equal, its weights are equal.
    """
    scores = words @ patches.transpose(1, 2)                                # [B, L, N]
    low, high = scores.amin(dim=2, keepdim=True), scores.amax(dim=2, keepdim=True)
    is_constant = high <= low
    scaled = torch.where(is_constant, 1, (scores - low) / (high - low).masked_fill(is_constant, 1))
    scaled = torch.where(scaled > 1 / patches.shape[1], scaled, 0)
    return scaled / scaled.sum(dim=2, keepdim=True)


def token_triplet_loss(tokens, grouped, *, margin, chunk_size=4, all_gather=lambda rows: rows):
    """Soft triplet loss of samples compared token by token: [B, M, D], [B, L, D] -> scalar.

    Both sums run over the columns of the similarity matrix, as in the reference implementation.
    """
    scores = all_gather(token_similarity(tokens, grouped, chunk_size))      # [B tokens, B grouped]
    scores = F.normalize(scores, dim=1)
    positive, is_negative = scores.diagonal(), ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)

    def direction_loss(positive):
        exponents = (scores - positive + margin).masked_fill(~is_negative, float('-inf'))
        return F.softplus(torch.logsumexp(exponents, dim=0)).mean()         # log(1 + sum of exp)
    return direction_loss(positive[:, None]) + direction_loss(positive[None, :])


def token_similarity(tokens, grouped, chunk_size):
    """Similarity of samples compared token by token: [B, M, D], [C, L, D] -> [B, C].

    It is the log-sum-exp over a sample's M tokens of each token's largest cosine with the other sample's L tokens.
    The samples are processed in chunks of ``chunk_size``: the backward pass then needs B x C x M numbers.
    """
    tokens, grouped = F.normalize(tokens, dim=-1), F.normalize(grouped, dim=-1)
    flat = grouped.flatten(0, 1).t()                                        # [D, C L]
    best = [(chunk @ flat).unflatten(2, grouped.shape[:2]).amax(dim=3)      # [chunk_size, M, C]
            for chunk in tokens.split(chunk_size)]
    return torch.logsumexp(torch.cat(best), dim=1)


# -- APTM (ACM MM 2023), after ALBEF (NeurIPS 2021)

@full_precision
def itc_by_identity(image_embedding, text_embedding, pids, *, temperature):
    """InfoNCE with soft targets by identity (APTM, ACM MM 2023), mean of both directions.

    All samples of an identity have equal target probabilities. ``temperature`` may be a learned tensor.
    """
    target = identity_targets(pids)                                                         # [B, B]
    logits = cosine_similarity(image_embedding, text_embedding) / temperature               # [B, B]
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


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


@full_precision
def image_text_matching(logits, matches):
    """Mean cross-entropy of P pairs: [P, 2], [P] -> scalar. ``matches`` is 1 if image and caption belong together."""
    return F.cross_entropy(logits, matches)


@full_precision
def smoothed_cross_entropy(logits, labels, *, smoothing=0.0):
    """Mean cross-entropy of two classes with label smoothing: [M, 2], [M] -> scalar. It is 0 if M is 0."""
    if not len(labels):
        return logits.sum() * 0
    target = F.one_hot(labels, 2) * (1 - smoothing) + smoothing / 2
    return F.cross_entropy(logits, target)


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


def attribute_binary_cross_entropy(logits, labels):
    """Mean binary cross-entropy over all labeled attributes: [B, A], [B, A] of 1, 0 and -1 (unknown) -> scalar."""
    is_labeled = labels >= 0
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float().clamp(min=0), reduction='none')
    return (losses * is_labeled).sum() / is_labeled.sum().clamp(min=1)

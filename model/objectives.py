"""The losses, as functions of tensors alone.

Shapes: ``image_embedding`` and ``text_embedding`` are [B, D] with row i of both from the same pair, ``pids`` is [B].
``scale`` is 1 / temperature. Every function returns a scalar (those of RDE: one number a pair, [B]), computes in float32 whatever
autocast is around it, and normalises what it needs normalised.
"""
import functools
import math

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
    """[A, D], [B, D] -> [A, B].

    >>> cosine_similarity(torch.tensor([[3., 4.]]), torch.tensor([[1., 0.], [0., 2.]]))
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()


def same_identity_mask(pids):
    """[B] -> [B, B], 1. where two samples have the same pid.

    >>> same_identity_mask(torch.tensor([7, 7, 9]))
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 1.]])
    """
    return (pids[:, None] == pids[None, :]).float()


def matching_divergence(logits, target, eps=1e-8):
    """KL(softmax(logits) || target) with ``eps`` inside the target's logarithm, mean over rows. [B, B], [B, B] -> scalar."""
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - torch.log(target + eps))).sum(dim=1).mean()


@full_precision
def sdm(image_embedding, text_embedding, pids, *, scale):
    """Similarity distribution matching (IRRA, CVPR 2023, eq. 6-8): both directions added.

    >>> image, text = torch.eye(3), torch.eye(3)     # three pairs, each caption as its image
    >>> round(sdm(image, text, torch.tensor([0, 1, 2]), scale=1).item(), 4)
    13.6658
    >>> round(sdm(image, text, torch.tensor([0, 1, 2]), scale=5).item(), 4)
    0.3301
    >>> round(sdm(image, text, torch.tensor([0, 1, 1]), scale=50).item(), 4)    # the last two show one person and are told apart
    0.9242
    """
    labels = same_identity_mask(pids)
    target = labels / labels.sum(dim=1, keepdim=True)
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    return matching_divergence(logits, target) + matching_divergence(logits.t(), target)


@full_precision
def itc(image_embedding, text_embedding, *, scale):
    """InfoNCE of CLIP (Radford et al., ICML 2021): each pair against the batch, mean of both directions. Other images of the
    same identity count as negatives.

    >>> image, text = torch.eye(3), torch.eye(3)
    >>> round(itc(image, text, scale=1).item(), 4), round(itc(image, text, scale=50).item(), 4)
    (0.5514, 0.0)
    """
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@full_precision
def cmpm(image_embedding, text_embedding, pids):
    """Cross-modal projection matching (Zhang and Lu, ECCV 2018, eq. 1-5): no temperature, both directions added.

    >>> round(cmpm(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])).item(), 4)
    13.6658
    >>> round(cmpm(10 * torch.eye(3), 10 * torch.eye(3), torch.tensor([0, 1, 2])).item(), 4)    # lengths count
    0.0013
    """
    target = F.normalize(same_identity_mask(pids), dim=1)
    image_on_text = image_embedding @ F.normalize(text_embedding, dim=-1).t()
    text_on_image = text_embedding @ F.normalize(image_embedding, dim=-1).t()
    return matching_divergence(image_on_text, target) + matching_divergence(text_on_image, target)


def cmt(image_embedding, text_embedding, *, scale, temperature=0.2):
    """AGM's contrastive loss: :func:`itc` with its logits divided by a further ``temperature``.

    >>> image, text = torch.eye(3), torch.eye(3)
    >>> cmt(image, text, scale=1) == itc(image, text, scale=5)
    tensor(True)
    """
    return itc(image_embedding, text_embedding, scale=scale / temperature)


@full_precision
def identity(image_logits, text_logits, pids):
    """Mean of both modalities' cross-entropy over the training identities. [B, C], [B, C], [B] -> scalar.

    >>> logits = torch.tensor([[4., 0.], [0., 4.]])
    >>> round(identity(logits, logits, torch.tensor([0, 1])).item(), 4)
    0.0181
    """
    return (F.cross_entropy(image_logits, pids) + F.cross_entropy(text_logits, pids)) / 2


@full_precision
def masked_language_modeling(logits, labels):
    """Mean cross-entropy of the chosen tokens, [M, V], [M] -> scalar; 0 where a batch has none.

    >>> round(masked_language_modeling(torch.zeros(2, 8), torch.tensor([3, 5])).item(), 4)    # log 8
    2.0794
    >>> masked_language_modeling(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    tensor(0.)
    """
    return F.cross_entropy(logits, labels, reduction='sum') / max(len(labels), 1)


@full_precision
def attribute_matching(logits, matches, there, *, captions=None):
    """Whether an image has a caption's attributes (A2TE, 2025, A2M): the cross-entropy of each attribute, its mean over a caption,
    and the mean over the captions that have any (0 if none does).

    ``logits`` [B, K, 2], ``matches`` int64 [B]: 1 where image and caption are a pair, ``there`` bool [B, K]: which attributes exist.
    ``captions``: how many have any, where these are some of a batch; their sum is divided by it.

    >>> logits = torch.tensor([[[0., 2.], [0., 0.]], [[3., 0.], [0., 0.]]])     # two captions, of two attributes at most
    >>> there = torch.tensor([[True, False], [True, True]])
    >>> round(attribute_matching(logits, torch.tensor([1, 0]), there).item(), 4)
    0.2489
    """
    losses = F.cross_entropy(logits.flatten(0, 1), matches.repeat_interleave(there.shape[1]), reduction='none').view_as(there)
    counts = there.sum(dim=1)                                          # [B]
    of_captions = (losses * there).sum(dim=1) / counts.clamp(min=1)    # [B], 0 without attributes
    captions = (counts > 0).sum() if captions is None else captions
    return of_captions.sum() / captions.clamp(min=1)


@full_precision
def detail(image_details, text_details, pids, *, tau=100.0, margin=0.1):
    """Hinge between a pair's identity and the hardest other one (A2TE, 2025, DAL), both directions, summed over the batch.

    A row's positive is the mean of its same-identity cosines weighted by their softmax at temperature ``tau``, its negative the
    largest cosine, where those of the same identity count as 0.

    >>> detail(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
    tensor(0.)
    >>> detail(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([0, 1, 2]))    # nothing is told apart: the margin, six times
    tensor(0.6000)
    """
    scores, same = cosine_similarity(text_details, image_details), same_identity_mask(pids)

    def one_way(scores):
        share = (scores / tau).masked_fill(same == 0, float('-inf')).softmax(dim=1).detach()
        positive, negative = (share * scores).sum(dim=1), (scores * (1 - same)).max(dim=1).values
        return F.relu(margin + negative - positive).sum()
    return one_way(scores) + one_way(scores.t())


def accuracy(logits, labels):
    """Share of rows whose largest logit is at the label, [M, C], [M] -> scalar; 0 where there is none.

    >>> accuracy(torch.tensor([[2., 1.], [0., 3.], [5., 4.]]), torch.tensor([0, 1, 1]))
    tensor(0.6667)
    """
    return (logits.argmax(dim=1) == labels).float().sum() / max(len(labels), 1)


@full_precision
def tri(image_embedding, text_embedding, pids, *, margin=0.05):
    """Triplets of each pair with the most similar image, and text, of another identity (SEN, 2024): the mean hinge, both
    directions added. A batch of one identity has no negatives and gives 0.

    >>> tri(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
    tensor(0.)
    >>> tri(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([0, 1, 2]))    # the margin, in both directions
    tensor(0.1000)
    """
    cosine = cosine_similarity(text_embedding, image_embedding)            # [B texts, B images]
    same = same_identity_mask(pids).bool()
    other = cosine.masked_fill(same, float('-inf'))
    positive = cosine.diagonal()
    # With one identity the largest is -inf, and so is the hinge's argument: 0, and no gradient.
    return sum(F.relu(other.max(dim=dim).values - positive + margin).mean() for dim in (1, 0))


@full_precision
def restoration(restored, target, scored):
    """Mean squared error of the scored patches (SEN, 2024). [B, P, C], [B, P, C], [B, P] of 0 and 1 -> scalar.

    >>> restored, target = torch.zeros(1, 2, 3), torch.tensor([[[1., 1., 1.], [9., 9., 9.]]])
    >>> restoration(restored, target, torch.tensor([[1, 0]]))    # the second patch was seen
    tensor(1.)
    """
    return ((restored - target).square().mean(dim=-1) * scored).sum() / scored.sum()


@full_precision
def load_balance(gate_logits, chosen):
    """How unevenly tokens and experts find each other (PHP, 2025-26; Shazeer et al., ICLR 2017): sum over experts of the mean
    probability that the gate gives one times the share of tokens that choose it. [..., E], [..., E] of 0 and 1 -> scalar.

    >>> chosen = torch.tensor([[1., 0.], [0., 1.]])
    >>> load_balance(torch.zeros(2, 2), chosen), load_balance(torch.zeros(2, 2), torch.ones(2, 2))
    (tensor(0.5000), tensor(1.))
    """
    probability = gate_logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)    # [E]
    return (probability * chosen.flatten(0, -2).mean(dim=0)).sum()


# -- RDE (Qin et al., CVPR 2024): one number a pair, its caption's row of the similarities and its image's column added --------------

def both_ways(one_way, image_embedding, text_embedding, *others):
    """``one_way(scores [B, B], ...)`` -> [B] for the captions' rows, and again for the images', added."""
    scores = cosine_similarity(text_embedding, image_embedding)            # [B texts, B images]
    return one_way(scores, *others) + one_way(scores.t(), *others)


def soft_positive(scores, same, tau):
    """[B, B], bool [B, B] -> [B]: a row's same-identity scores, averaged by their own softmax, through which no gradient passes."""
    share = (scores / tau).masked_fill(~same, float('-inf')).softmax(dim=1).detach()
    return (share * scores).sum(dim=1)


LARGEST_LOG = math.log(1e36)   # the release clamps its sum of exponentials there


@full_precision
def tal(image_embedding, text_embedding, pids, *, tau=0.015, margin=0.1):
    """Triplet alignment (RDE, eq. 4): the hinge of a pair's identity against the log-sum-exp of all others at temperature ``tau``,
    [B]. A row without another identity gives 0.

    >>> tal(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
    tensor([0., 0., 0.])
    >>> tal(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([5, 5, 5]))    # one identity: no negatives
    tensor([0., 0., 0.])
    """
    same = same_identity_mask(pids).bool()
    alone = same.all(dim=1)                                                # [B] no negative

    def one_way(scores):
        logits = (scores / tau).masked_fill(same & ~alone[:, None], float('-inf'))
        negative = tau * torch.logsumexp(logits, dim=1).clamp(max=LARGEST_LOG)
        return F.relu(margin - soft_positive(scores, same, tau) + negative).masked_fill(alone, 0)
    return both_ways(one_way, image_embedding, text_embedding)



@full_precision
def trl(image_embedding, text_embedding, pids, *, tau=0.015, margin=0.1):
    """:func:`tal` with the hardest negative alone (RDE's TRL), [B]; positives count as a similarity of 0 among the negatives.

    >>> trl(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2]))
    tensor([0., 0., 0.])
    """
    same = same_identity_mask(pids).bool()

    def one_way(scores):
        return F.relu(margin + scores.masked_fill(same, 0).max(dim=1).values - soft_positive(scores, same, tau))
    return both_ways(one_way, image_embedding, text_embedding)


@full_precision
def infonce_per_pair(image_embedding, text_embedding, *, scale):
    """:func:`itc` a pair, [B]: its mean over the batch is the loss."""
    return both_ways(lambda scores: -F.log_softmax(scale * scores, dim=1).diagonal() / 2, image_embedding, text_embedding)


@full_precision
def sdm_per_pair(image_embedding, text_embedding, pids, *, scale):
    """:func:`sdm` a pair, [B]: its mean over the batch is the loss."""
    labels = same_identity_mask(pids)
    target = labels / labels.sum(dim=1, keepdim=True)

    def one_way(scores):
        log_p = F.log_softmax(scale * scores, dim=1)
        return (log_p.exp() * (log_p - torch.log(target + 1e-8))).sum(dim=1)
    return both_ways(one_way, image_embedding, text_embedding)


def reduce_clean_pairs(losses, clean, mean):
    """The losses [B] of the pairs that count, by ``clean`` [B] of 0 and 1 (None: all do): their sum or, with ``mean``, their mean; 0
    where none does.

    >>> losses, clean = torch.tensor([1., 2., 6.]), torch.tensor([1., 1., 0.])
    >>> reduce_clean_pairs(losses, clean, mean=False), reduce_clean_pairs(losses, clean, mean=True)
    (tensor(3.), tensor(1.5000))
    """
    clean = torch.ones_like(losses) if clean is None else clean
    total = (losses * clean).sum()
    return total / clean.sum().clamp(min=1) if mean else total


# -- TBPS-CLIP (Cao et al., AAAI 2024) ---------------------------------------------------------------------------------

def clamped_scale(log_scale, most=100.0):
    """exp(``log_scale``), at most ``most``; above it the gradient still is that of the exponential."""
    scale = log_scale.exp()
    return scale + (scale.clamp(max=most) - scale).detach()


def identity_targets(pids):
    """[B] -> [B, B]: each row's samples of its own identity, with equal shares that add up to 1.

    >>> identity_targets(torch.tensor([7, 7, 9]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    labels = same_identity_mask(pids)
    return labels / labels.sum(dim=1, keepdim=True)


@full_precision
def nitc(image_embedding, text_embedding, soft_image, soft_text, pids, *, scale, alpha):
    """Normalised image-text contrast with soft targets (TBPS-CLIP, eq. 3-6), mean of both directions.

    ``soft_image``, ``soft_text`` [B, D] are the embeddings of a second pass, which gives the targets without gradient: the share
    ``alpha`` of what it finds alike and 1 - ``alpha`` of the same identity.
    """
    logits = scale * cosine_similarity(image_embedding, text_embedding)
    with torch.no_grad():
        soft = scale * cosine_similarity(soft_image, soft_text)
        to_text, to_image = (alpha * x.softmax(dim=1) + (1 - alpha) * identity_targets(pids) for x in (soft, soft.t()))
    return (F.cross_entropy(logits, to_text) + F.cross_entropy(logits.t(), to_image)) / 2


@full_precision
def ritc(image_embedding, text_embedding, pids, *, scale, eps=1e-2):
    """Reverse image-text contrast (TBPS-CLIP, eq. 7): KL(softmax || identities) with ``eps`` inside the logarithm, mean of both
    directions. Its least value is below 0."""
    logits, target = scale * cosine_similarity(image_embedding, text_embedding), identity_targets(pids)
    return (matching_divergence(logits, target, eps) + matching_divergence(logits.t(), target, eps)) / 2


@full_precision
def citc(image_embedding, text_embedding):
    """Cyclic image-text contrast (TBPS-CLIP, eq. 8-10): similarities within a modality are those within the other, and a text is to an
    image as its image to its text."""
    image, text = F.normalize(image_embedding, dim=-1), F.normalize(text_embedding, dim=-1)
    within, across = image @ image.t() - text @ text.t(), image @ text.t()
    return within.square().mean() / 4 + (across - across.t()).square().mean() / 4


@full_precision
def simclr(one, other, *, temperature=0.1):
    """NT-Xent between two views of the same images (Chen et al., ICML 2020), [B, D] and [B, D]: mean over all 2B."""
    one, other = F.normalize(one, dim=-1), F.normalize(other, dim=-1)
    own = torch.arange(len(one), device=one.device)
    across = one @ other.t() / temperature                                 # [B, B]

    def one_way(across, views):
        within = (views @ views.t() / temperature).fill_diagonal_(float('-inf'))
        return F.cross_entropy(torch.cat([across, within], dim=1), own)
    return (one_way(across, one) + one_way(across.t(), other)) / 2


# -- FMFA (ACM TOMM 2026) --------------------------------------------------------------------------------------------------------

@full_precision
def a_sdm(image_embedding, text_embedding, pids, *, scale):
    """:func:`sdm` with each row's term weighted by how far its best match lies before its first one (FMFA, adaptive SDM).

    The first match is the item of the row's identity with the lowest index, as released, which need not be the row's own; a row whose
    best match is another has the weight 1 + 0.1 (cosine of the best - cosine of the first), with its gradient.
    """
    target = identity_targets(pids)
    first = target.argmax(dim=1, keepdim=True)                             # [B, 1]

    def one_way(cosine):
        log_p = F.log_softmax(scale * cosine, dim=1)
        terms = (log_p.exp() * (log_p - torch.log(target + 1e-8))).sum(dim=1)
        best, place = cosine.max(dim=1, keepdim=True)                      # [B, 1]
        weights = torch.where(place == first, 1, 1 + 0.1 * (best - cosine.gather(1, first)))
        return (weights.squeeze(1) * terms).mean()
    cosine = cosine_similarity(image_embedding, text_embedding)
    return one_way(cosine) + one_way(cosine.t())


@full_precision
def explicit_alignment(patches, words, *, piece=4, gather=lambda rows: rows):
    """Explicit fine-grained alignment (FMFA, EFA): words and patches against the patches that the words gather, with the released
    margins of 0.1 and 0.9.

    Args:
        patches: [B, N, D], without the class token; not normalised.
        words: [B, L, D], start, end and padding among them.
        piece: how many samples are compared with all others at once. All of them would take B x B x N x L numbers.
        gather: the whole batch's rows of those that are here, where ``patches`` and ``words`` are some of it.
    """
    gathered = gather(gathered_patches(patches, words))
    return (token_triplets(words, gathered, margin=0.1, piece=piece, gather=gather)
            + token_triplets(patches, gathered, margin=0.9, piece=piece, gather=gather))


def gathered_patches(patches, words):
    """The patches that each word selects: [B, N, D], [B, L, D] -> [B, L, D]."""
    return patch_shares(patches, words) @ patches


def patch_shares(patches, words):
    """[B, L, N]: a word's scores, scaled to 0..1 over the patches, those of 1/N and less left out, and made to add up to 1. Where all
    are equal, so are the shares."""
    scores = words @ patches.transpose(1, 2)                                # [B, L, N]
    low, high = scores.amin(dim=2, keepdim=True), scores.amax(dim=2, keepdim=True)
    level = high <= low
    scaled = torch.where(level, 1, (scores - low) / (high - low).masked_fill(level, 1))
    scaled = torch.where(scaled > 1 / patches.shape[1], scaled, 0)
    return scaled / scaled.sum(dim=2, keepdim=True)


def token_triplets(tokens, gathered, *, margin, piece=4, gather=lambda rows: rows):
    """Soft triplets of samples compared token by token, [B, M, D] with [B, L, D]. Both sums run down the columns, as released."""
    scores = gather(token_similarity(tokens, gathered, piece))              # [B tokens, B gathered]
    scores = F.normalize(scores, dim=1)
    own, others = scores.diagonal(), ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)

    def one_way(own):
        exponents = (scores - own + margin).masked_fill(~others, float('-inf'))
        return F.softplus(torch.logsumexp(exponents, dim=0)).mean()         # log(1 + sum of exp)
    return one_way(own[:, None]) + one_way(own[None, :])


def token_similarity(tokens, gathered, piece):
    """[B, C]: the log-sum-exp over a sample's tokens of each one's largest cosine with the other's, [B, M, D], [C, L, D]. Taken
    ``piece`` samples at a time: what is kept for the gradient is B x C x M numbers."""
    tokens, gathered = F.normalize(tokens, dim=-1), F.normalize(gathered, dim=-1)
    flat = gathered.flatten(0, 1).t()                                       # [D, C L]
    best = [(some @ flat).unflatten(2, gathered.shape[:2]).amax(dim=3) for some in tokens.split(piece)]   # [piece, M, C]
    return torch.logsumexp(torch.cat(best), dim=1)


# -- APTM (ACM MM 2023), after ALBEF (NeurIPS 2021) -----------------------------------------------------------------------

@full_precision
def itc_by_identity(image_embedding, text_embedding, pids, *, temperature):
    """InfoNCE with soft targets: every sample of the same identity is as much of a match, each by its share of the row. The mean of both
    directions. ``temperature`` may be a tensor that is learned."""
    target, logits = identity_targets(pids), cosine_similarity(image_embedding, text_embedding) / temperature      # [B, B] both
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@torch.no_grad()
def hard_negatives(image_embedding, text_embedding, pids, *, temperature, generator=None):
    """For each image another identity's caption, and for each caption another identity's image, the likelier the more similar.

    Returns ``(texts, images)``, two int64 [B]: the row of the caption drawn for image i, and of the image drawn for caption i. The
    chances are softmax(cosine / temperature) + 1e-5 without the own identity's. Where one identity is all
    of the batch there are none: ``(None, None)``.
    """
    cosine = cosine_similarity(image_embedding.float(), text_embedding.float()) / temperature
    same = same_identity_mask(pids).bool()
    if bool(same.all(dim=1).any()):
        return None, None
    of_images, of_texts = ((logits.softmax(dim=1) + 1e-5).masked_fill(same, 0) for logits in (cosine, cosine.t()))
    return tuple(torch.multinomial(chances, 1, generator=generator).squeeze(1) for chances in (of_images, of_texts))


@full_precision
def image_text_matching(logits, matches):
    """Mean cross-entropy of pairs' scores [P, 2] against ``matches`` [P]: 1 where image and caption belong together."""
    return F.cross_entropy(logits, matches)


@full_precision
def smoothed_binary(logits, labels, *, smoothing=0.0):
    """Mean cross-entropy of [M, 2] logits against the labels [M], each softened to (1 - e) onehot + e / 2; 0 where there are none."""
    if not len(labels):
        return logits.sum() * 0
    target = F.one_hot(labels, 2) * (1 - smoothing) + smoothing / 2
    return F.cross_entropy(logits, target)


@full_precision
def attribute_contrast(image_embedding, prompt_embedding, labels, *, temperature, smoothing=0.0, labelled=None):
    """How well an image tells the two prompts of each attribute apart: per attribute the cross-entropy of the pair's similarities over the
    images that are labelled, and the mean over attributes.

    ``prompt_embedding`` [2A, D]: row 2a says that label a is 0 and row 2a + 1 that it is 1; ``labels`` [B, A]: 1, 0, or -1 for unknown.
    ``labelled`` [A]: how many images are, where these are some of a batch; their sums are divided by it.
    """
    logits = cosine_similarity(image_embedding, prompt_embedding) / temperature       # [B, 2A]
    pairs = logits.unflatten(1, (-1, 2))                                              # [B, A, 2]
    known = labels >= 0
    log_p = F.log_softmax(pairs, dim=-1)
    target = F.one_hot(labels.long().clamp(min=0), 2) * (1 - smoothing) + smoothing / 2
    losses = -(log_p * target).sum(dim=-1) * known                                    # [B, A]
    labelled = known.sum(dim=0) if labelled is None else labelled
    return (losses.sum(dim=0) / labelled.clamp(min=1)).mean()


def prompt_holds(labels):
    """Labels [B, A] of 1, 0 and -1 -> bool [B, 2A]: whether each of the attributes' prompts is true of an image.

    >>> prompt_holds(torch.tensor([[1, 0, -1]]))
    tensor([[False,  True,  True, False, False, False]])
    """
    return torch.stack([labels == 0, labels == 1], dim=-1).flatten(1)


def binary_attributes(logits, labels):
    """Mean binary cross-entropy of every attribute, [B, A], [B, A] of 0, 1, and -1 for what does not count (PA-100K by the image alone)."""
    known = labels >= 0
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float().clamp(min=0), reduction='none')
    return (losses * known).sum() / known.sum().clamp(min=1)

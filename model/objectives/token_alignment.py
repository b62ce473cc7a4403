"""Alignment of words with patches (FMFA, ACM TOMM 2026)."""
import torch
import torch.nn.functional as F

from model.objectives.common import full_precision


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

"""How heads refine the embedding that all heads share, and add embeddings of their own for ranking."""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.encoded_batch import SHARED_EMBEDDING
from model.heads import describe_head, head_error_context
from utils.errors import UserError


class EmbeddingPart(NamedTuple):
    """One of several embeddings that are concatenated for ranking."""
    name: str
    columns: slice   # its columns in the concatenation
    weight: float    # of its cosine similarity


def list_embedding_parts(heads, embed_dim):
    """Return a tuple of :class:`EmbeddingPart`; empty if no head adds an embedding.

    Args:
        heads: the :class:`~model.heads.AddsEmbedding` heads.
        embed_dim: the width of the embedding that all heads share.
    """
    if not heads:
        return ()
    widths = [(SHARED_EMBEDDING, embed_dim, 1.0)]
    for head in heads:
        if not isinstance(head.embedding_width, int):
            raise UserError(f"{describe_head(head)} adds the embedding '{head.embedding}' without its width: set "
                            'embedding_width')
        widths.append((head.embedding, head.embedding_width, head.embedding_weight))
    ends = torch.tensor([width for _, width, _ in widths]).cumsum(0).tolist()
    return tuple(EmbeddingPart(name, slice(end - width, end), weight)
                 for (name, width, weight), end in zip(widths, ends))


def refine_embedding(heads, embedding, tokens, extras):
    """Let the :class:`~model.heads.RefinesEmbedding` heads refine embeddings [B, D] one after another."""
    for head in heads:
        refined = head.refine(embedding, tokens, {} if extras is None else extras)
        if refined.shape != embedding.shape:
            raise UserError(f'{describe_head(head)}: refine turns embeddings {list(embedding.shape)} into '
                            f'{list(refined.shape)}, which other heads cannot read: keep the shape, or add an '
                            'embedding of your own with embed()')
        embedding = refined
    return embedding


def compute_extra_embeddings(heads, side, tokens, caption_ids, attention):
    """Compute the embeddings that :class:`~model.heads.AddsEmbedding` heads add: {name: [B, E] float32}.

    The arguments after ``heads`` are those of :meth:`AddsEmbedding.embed <model.heads.AddsEmbedding.embed>`.
    """
    embeddings = {}
    for head in heads:
        with head_error_context(head):
            attention_of_head = attention if head.embedding_needs_attention else None
            embedding = head.embed(side, tokens, caption_ids, attention_of_head).float()
        if embedding.shape != (tokens.shape[0], head.embedding_width):
            raise UserError(f'{describe_head(head)}: embed returns {list(embedding.shape)} for a batch of '
                            f'{len(tokens)} {side}s, and its embedding_width is {head.embedding_width}')
        embeddings[head.embedding] = embedding
    return embeddings


def concatenate_embeddings(parts, embeddings):
    """Concatenate all embeddings of samples: [B, D + E + ...]. If there is only the shared one, it does not change.

    The cosine similarity of two results is the weighted mean of the cosine similarities of the parts.

    Args:
        parts: of :func:`list_embedding_parts`.
        embeddings: {name: [B, E]}, the shared embedding first.
    """
    if len(embeddings) == 1:
        return embeddings[SHARED_EMBEDDING]
    return torch.cat([part.weight ** 0.5 * F.normalize(value, dim=1)
                      for part, value in zip(parts, embeddings.values())], dim=1)

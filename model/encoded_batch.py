"""All that the encoders compute of a batch, for the heads."""
from dataclasses import dataclass, field
from typing import Optional
from collections.abc import Callable

import torch
from torch import nn

from utils.batch_shard import WHOLE_BATCH, WholeBatch

SHARED_EMBEDDING = 'BGE'    # RDE's name of the embedding that all heads share, if a head adds another one


@dataclass
class EncodedBatch:
    """Embeddings and tokens of a batch, for the heads.

    Embeddings are float32; tokens have the precision of the forward pass. Tokens and attention are None unless a head's
    ``needs`` name them.

    Attributes:
        image: [B, D] embeddings of the images.
        text: [B, D] embeddings of the captions.
        image_tokens: [B, N, D], class token first.
        text_tokens: [B, L, D].
        masked_text_tokens: [B, L, D] of the captions with masked words.
        image_attention: [B, N, N] of the last block, averaged over its heads.
        text_attention: [B, L, L] of the last block, averaged over its heads.
        encoder: the encoders, for a head with a forward pass of its own.
        embed_image: images -> [B, D], embeds further images in the same way as those of the batch.
        embed_text: token ids -> [B, D], the same for captions.
        embed_text_all: token ids -> {name: [B, E]}, embeds further captions in all embeddings: the shared one, which is
            named :data:`SHARED_EMBEDDING`, and those that heads add.
        extra_embeddings: {name: (images [B, E], captions [B, E])} of embeddings that heads add.
        image_extras: what :meth:`RefinesEmbedding.refine` stored when it refined the images' embeddings.
        text_extras: the same for the captions.
        image_routing: [B, blocks, ...] of the images in the blocks of ``--tuning``; None if it has none.
        text_routing: the same for the captions.
        shard: where the rows are in the global batch (utils/batch_shard.py); WHOLE_BATCH for a micro batch.
        shared_results: what :meth:`compute_once` has computed.
    """
    image: torch.Tensor
    text: torch.Tensor
    image_tokens: Optional[torch.Tensor] = None
    text_tokens: Optional[torch.Tensor] = None
    masked_text_tokens: Optional[torch.Tensor] = None
    image_attention: Optional[torch.Tensor] = None
    text_attention: Optional[torch.Tensor] = None
    encoder: Optional[nn.Module] = None
    embed_image: Optional[Callable] = None
    embed_text: Optional[Callable] = None
    embed_text_all: Optional[Callable] = None
    extra_embeddings: dict = field(default_factory=dict)
    image_extras: dict = field(default_factory=dict)
    text_extras: dict = field(default_factory=dict)
    image_routing: Optional[torch.Tensor] = None
    text_routing: Optional[torch.Tensor] = None
    shard: WholeBatch = WHOLE_BATCH
    shared_results: dict = field(default_factory=dict)

    def embedding_fields(self):
        """Return the fields of heads that read embeddings only, with one row per sample: {attribute: [B, ...]}."""
        fields = {name: getattr(self, name) for name in ('image', 'text', 'image_routing', 'text_routing')}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def image_embeddings(self):
        """All embeddings of the images, with the names of ``embed_text_all``: {name: [B, E]}."""
        return {SHARED_EMBEDDING: self.image, **{name: images for name, (images, _) in self.extra_embeddings.items()}}

    def compute_once(self, compute, *inputs):
        """Return ``compute(self, *inputs)``, computed by the first of the heads that share the result.

        The function alone identifies the result, so the heads must pass equal inputs.
        """
        if compute not in self.shared_results:
            self.shared_results[compute] = compute(self, *inputs)
        return self.shared_results[compute]

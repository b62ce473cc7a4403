"""Heads with an embedding of their own."""


class AddsEmbedding:
    """A head that adds an embedding to the shared one, such as RDE's TSE.

    The similarity of two samples is the weighted sum of the cosines of all embeddings. A table of results has a row for
    each embedding and one for the sum.

    Attributes:
        embedding: name of the embedding in tables.
        embedding_width: number of dimensions, set here or in ``__init__``.
        embedding_weight: weight of the cosine in the sum; the shared embedding has the weight 1.
        embedding_needs_attention: whether :meth:`embed` gets the attention of the last block.
        embedding_reads_padding: whether :meth:`embed` reads tokens after a caption's end.
    """

    embedding = ''
    embedding_width = None
    embedding_weight = 1.0
    embedding_needs_attention = False
    embedding_reads_padding = True

    def embed(self, side, tokens, caption_ids, attention):
        """Compute the embedding, in training and in evaluation.

        In training, ``encoded.extra_embeddings[name]`` holds it as (images [B, E], captions [B, E]).

        Args:
            side: 'image' or 'text'.
            tokens: [B, N, D] of images with the class token first, or [B, L, D] of captions.
            caption_ids: [B, L] of captions; None for images.
            attention: [B, N, N] or [B, L, L] of the last block, averaged over its heads; None without
                ``embedding_needs_attention``.

        Returns:
            [B, embedding_width].
        """
        raise NotImplementedError

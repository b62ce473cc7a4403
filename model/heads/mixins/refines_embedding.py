"""Heads that change the retrieval embedding."""


class RefinesEmbedding:
    """A head that changes the embedding that all heads share, such as PHP.

    Its losses may read the extras of :meth:`refine`. If the sum over micro batches is still the loss of the batch, the
    head is also a :class:`~model.heads.TrainsInMicroBatches`.
    """

    def refine(self, embedding, tokens, extras):
        """Change the embedding, in training and in evaluation.

        Args:
            embedding: [B, D] float32.
            tokens: [B, N, D], patches of images without the class token, or all tokens of captions.
            extras: dict for what ``forward`` needs from this pass; ``forward`` reads it as ``encoded.image_extras``
                or ``encoded.text_extras``.

        Returns:
            The new embedding, [B, D].
        """
        raise NotImplementedError

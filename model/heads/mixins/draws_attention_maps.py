"""Heads that show which patches and words they read."""


class DrawsAttentionMaps:
    """A head with weights of patches and words, which run_scripts/attention.py draws."""

    def attention_maps(self, side, tokens, caption_ids, attention):
        """Compute the weights of patches or words.

        The arguments are those of :meth:`AddsEmbedding.embed <model.heads.AddsEmbedding.embed>`. Maps of both sides
        with the same title are drawn as one.

        Returns:
            {title: weights}, [B, N] for the patches of images or [B, L] for the tokens of captions.
        """
        raise NotImplementedError

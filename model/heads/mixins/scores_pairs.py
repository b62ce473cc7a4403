"""Heads that score a caption and an image together."""


class ScoresPairs:
    """A head that reads a caption and an image together.

    ``test.py --rerank`` sorts each caption's best images by its scores.
    """

    def score_pairs(self, encoder, caption_ids, text_tokens, image_tokens):
        """Score pairs, higher for captions and images that belong together.

        Args:
            encoder: the encoders of the backbone.
            caption_ids: [P, L].
            text_tokens: [P, L, D].
            image_tokens: [P, N, K].

        Returns:
            float32 [P].
        """
        raise NotImplementedError

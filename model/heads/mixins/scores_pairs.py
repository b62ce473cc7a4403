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


class ClassifiesPairs(ScoresPairs):
    """A head that tells pairs from negatives, which its loss draws by their cosine similarity / a learned temperature.

    ``--rerank_score sum`` adds the cosine similarity / temperature to its log-odds.

    Attributes:
        temperature: a module; its parameter ``temp`` is the softmax temperature.
    """

    def pair_logits(self, encoder, caption_ids, text_tokens, image_tokens):
        """Compute two logits of each pair: it is a negative, it belongs together.

        Args:
            encoder, caption_ids, text_tokens, image_tokens: see :meth:`score_pairs`.

        Returns:
            [P, 2].
        """
        raise NotImplementedError

    def score_pairs(self, encoder, caption_ids, text_tokens, image_tokens):
        return self.pair_logits(encoder, caption_ids, text_tokens, image_tokens)[:, 1].float()

    def log_odds(self, encoder, caption_ids, text_tokens, image_tokens):
        """Compute log(p / (1 - p)) of the probability p that a pair belongs together: float32 [P]."""
        logits = self.pair_logits(encoder, caption_ids, text_tokens, image_tokens).float()
        return logits[:, 1] - logits[:, 0]

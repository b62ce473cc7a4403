"""Heads that recognize attributes of images."""


class PredictsAttributes:
    """A head that recognizes attributes. Without such a head, test.py recognizes them by prompts."""

    def predict_attributes(self, image_tokens):
        """Compute logits of attributes: [B, N, K] -> [B, A], positive if the image has the attribute."""
        raise NotImplementedError

"""The common part of the backbones with BERT as text and fusion encoder."""
from model.backbones import Backbone
from model.bert_vocabulary import VOCABULARY


class BertFusionBackbone(Backbone):
    """Base class of backbones whose BERT reads captions alone, and captions together with images.

    A subclass sets the parts ``text_encoder`` (:class:`~model.bert.TextEncoder`), ``vision_proj`` and ``text_proj``,
    and ``pad``, the id of padding.
    """

    provides = frozenset({'image_tokens', 'text_tokens', 'masked_text_tokens', 'fusion'})
    run_files = (VOCABULARY,)

    @staticmethod
    def validate_options(args):
        """Refuse masking and filtering of captions by CLIP's ids: the loss mlm of these backbones masks its own copy.

        Raises:
            UserError: an option asks for it.
        """
        Backbone.refuse_clip_masking(args)

    def encode_text(self, ids, need_map=False):
        return self.text_encoder.encode(ids, self.text_mask(ids)), None

    def text_mask(self, ids):
        """1 at words and 0 at padding: [B, L] -> [B, L]."""
        return (ids != self.pad).long()

    def image_embedding(self, tokens):
        return self.vision_proj(tokens[:, 0]).float()

    def text_embedding(self, tokens, ids):
        return self.text_proj(tokens[:, 0]).float()

    def lengths(self, ids):
        return (ids != self.pad).sum(dim=1)

    def fuse(self, text_tokens, mask, image_tokens, first_only=False):
        """Run the fusion layers.

        Args:
            text_tokens: [B, L, text_width].
            mask: [B, L].
            image_tokens: [B, N, image_width].
            first_only: whether to return the first token only.

        Returns:
            [B, L, text_width], or [B, 1, text_width] with ``first_only``.
        """
        return self.text_encoder.fuse(text_tokens, mask, image_tokens, first_only)

    def read(self, ids, mask, image_tokens, first_only=False):
        """Run all layers on token ids.

        Args:
            ids: [B, L].
            mask: [B, L].
            image_tokens: [B, N, image_width].
            first_only: whether to return the first token only.

        Returns:
            [B, L, text_width], or [B, 1, text_width] with ``first_only``.
        """
        return self.text_encoder.read(ids, mask, image_tokens, first_only)

    def predict(self, tokens):
        """Score all words: [..., text_width] -> [..., vocab_size]."""
        return self.text_encoder.predict(tokens)

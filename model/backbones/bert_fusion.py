"""The common part of the backbones with BERT as text and fusion encoder."""
import logging
import os

from torch import nn

from model.backbones import Backbone
from model.bert import TextEncoder
from model.bert_vocabulary import refuse_larger_vocabulary
from utils.errors import UserError
from utils.paths import VOCABULARY

logger = logging.getLogger('Pedestal.model')


class BertFusionBackbone(Backbone):
    """Base class of backbones whose BERT reads captions alone, and captions together with images.

    A subclass builds its image encoder and then calls :meth:`build_text_encoder`. It defines :meth:`load_pretrained`
    and :meth:`from_state_dict`.

    Attributes:
        image_encoder: name of the image encoder, for the log.
        accepted_files: what ``--pretrain_choice`` takes as files, for error messages.
        shape: the sizes of the encoders, from ``configs/<name>``.
        pad: the id of padding.
    """

    image_encoder = ''
    accepted_files = ''

    provides = frozenset({'image_tokens', 'text_tokens', 'masked_text_tokens', 'fusion'})
    run_files = (VOCABULARY,)

    @staticmethod
    def validate_options(args):
        """Refuse masking and filtering of captions by CLIP's ids: the loss mlm of these backbones masks its own copy.

        Raises:
            UserError: an option asks for it.
        """
        Backbone.refuse_clip_masking(args)

    @classmethod
    def build(cls, args, state_dict=None):
        # The checkpoint of a whole model may hold heads that the weights to load next lack.
        has_file = args.training and os.path.isfile(os.path.expanduser(args.pretrain_choice))
        is_pretrained = state_dict is None or has_file
        backbone = cls.load_pretrained(args) if is_pretrained else cls.from_state_dict(state_dict, args)
        refuse_larger_vocabulary(backbone, args)
        logger.info('activation of the encoders: gelu (%s and BERT have no other)', cls.image_encoder)
        return backbone

    @classmethod
    def load_pretrained(cls, args):
        """Build the backbone with the weights of ``args.pretrain_choice``, or for a test with its shape."""
        raise NotImplementedError

    @classmethod
    def from_state_dict(cls, state_dict, args):
        """Build the backbone in the shape of a state dict, with random weights."""
        raise NotImplementedError

    @classmethod
    def existing_file(cls, choice):
        """Return the path of a file of ``--pretrain_choice``, or raise UserError if there is none."""
        path = os.path.expanduser(choice)
        if not os.path.isfile(path):
            raise UserError(f'--pretrain_choice: there is no file {choice}; the backbone {cls.name} takes '
                            f'{cls.accepted_files}, {cls.name}-base, or scratch:<shape> of configs/{cls.name}')
        return path

    def build_text_encoder(self, shape, bert_shape, image_width):
        """Build BERT and the projections to the embeddings, with random weights, and set the sizes.

        Args:
            shape: the sizes of the encoders.
            bert_shape: those of BERT, a :class:`~model.bert.BertShape`.
            image_width: the width of an image token.
        """
        self.shape, self.pad, self.mask_id = shape, 0, None
        self.text_encoder = TextEncoder(bert_shape)
        self.vision_proj = nn.Linear(image_width, shape.embed_dim)
        self.text_proj = nn.Linear(shape.text_width, shape.embed_dim)
        self.image_width, self.text_width, self.embed_dim = image_width, shape.text_width, shape.embed_dim
        self.vocab_size = shape.vocab_size
        self.head_weights = {}      # parameters of heads in the checkpoint that training starts from

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

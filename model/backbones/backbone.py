"""The base class of all backbones."""
from torch import nn

from utils.errors import UserError


class Backbone(nn.Module):
    """An image encoder and a text encoder.

    The model registers the backbone's parts (``named_children``) under their own names, as checkpoints have them.
    Embeddings are float32; tokens have the precision of the forward pass.

    A subclass sets in ``__init__``: ``image_width`` and ``text_width`` (of tokens), ``embed_dim`` (of embeddings),
    ``vocab_size``, ``mask_id``, and ``provides`` if it depends on the weights.

    Attributes:
        name: the value of ``--backbone``.
        provides: what heads may need: 'image_tokens', 'text_tokens', 'masked_text_tokens', 'image_attention', ...
        missing_reasons: {need: why the backbone does not provide it}, for error messages.
        alternative: what to use instead, for error messages.
        joint_tokens: whether tokens lie in the space of the embeddings, and so have their width.
        trims_to_longest: whether a batch's captions always end with the longest one, because losses read padding. Else
            they have all their padding if a loss reads tokens of padding.
        head_weights: parameters of heads in the checkpoint of a whole model that training starts from.
        run_files: names of files and folders next to a run's configs.yaml that the backbone reads.
        resolved_options: {option: value} of options that the weights decide. A run records these values.
        shared_options: options that the family reads and another one adds.
    """

    name = ''
    provides = frozenset()
    missing_reasons = {}
    alternative = 'another --backbone'
    joint_tokens = False
    trims_to_longest = False
    head_weights = {}
    run_files = ()
    resolved_options = {}
    shared_options = ()

    # -- before a model exists ---------------------------------------------------------------------------------------

    @staticmethod
    def add_options(parser):
        """Add the backbone's own options to ``parser`` (an argparse parser or group)."""

    @staticmethod
    def validate_options(args):
        """Check the backbone's options together and fill in those that depend on others.

        Raises:
            UserError: options that exclude each other.
        """

    @staticmethod
    def refuse_clip_masking(args):
        """Raise UserError if options mask or filter captions by CLIP's ids, for families with other ids."""
        for name, default in (('caption_masking', 'clean'), ('mlm_masking', 'random'), ('caption_filter', 0.0)):
            if getattr(args, name) != default:
                raise UserError(f"--{name} {getattr(args, name)} is for captions in CLIP's ids, and --backbone is "
                                f'{args.backbone}, whose mlm masks words of its own: leave it out')

    @classmethod
    def build(cls, args, state_dict=None):
        """Build the backbone on the CPU.

        Args:
            args: the options. For training, the weights of ``--pretrain_choice`` are loaded. For testing
                (``args.training`` false) the weights are arbitrary.
            state_dict: a trained model's. The shape follows from it. The caller loads its weights afterwards: for
                testing, or (``args.training`` true) for ``--init_from`` and ``--resume``.
        """
        raise NotImplementedError

    @classmethod
    def weights_file(cls, args):
        """Return the path of the file that the encoders start from, downloaded if needed; None: random weights.

        Raises:
            UserError: the file is missing.
        """

    @staticmethod
    def choice_of_file(args, path):
        """Return the ``--pretrain_choice`` that reads the same encoders from the file ``path``."""
        return path

    @staticmethod
    def tokenizer(args, captions=None):
        """Return the tokenizer.

        Args:
            args: the options.
            captions: a function that returns the training captions, for a vocabulary that is built from them.

        Returns:
            An object with ``encode(text)``, ``encode_all(texts)``, ``add_special_tokens(ids, length)``,
            ``lengths(ids)`` and the ids ``start_id``, ``mask_id`` and ``pad_id``.
        """
        raise NotImplementedError

    @staticmethod
    def image_stats(args, dataset=None):
        """Return the :class:`~utils.image_stats.ImageStats` of a dataset's images.

        Args:
            args: the options.
            dataset: name of the dataset; None for photos that belong to no dataset.
        """
        raise NotImplementedError

    @staticmethod
    def test_caption(dataset, caption):
        """Return a caption of the val or test split as the family's evaluation reads it."""
        return caption

    @staticmethod
    def matches_state_dict(state_dict):
        """Whether the names in a trained model's state dict belong to this family."""
        return False

    @staticmethod
    def published_options(state_dict):
        """Return {option: value} of a published checkpoint; None if the family publishes a configs.yaml with it."""

    def learning_rate(self, name, args):
        """Return (learning rate, weight decay) of the parameter ``name``, before its head changes them."""
        return args.lr, args.weight_decay

    def tunable_blocks(self):
        """Return {'image': blocks, 'text': blocks} of encoders with the extension points of ``--tuning``.

        The blocks are :class:`~model.clip_model.ResidualAttentionBlock`, the first one first. An encoder of another
        kind is missing.
        """
        return {}

    # -- encoding ----------------------------------------------------------------------------------------------------

    @property
    def encoder(self):
        """The module that heads with a forward pass of their own get as ``encoded.encoder``."""
        return self

    def encode_image(self, images, need_map=False):
        """Encode images.

        Args:
            images: [B, 3, H, W], normalized.
            need_map: whether to return the attention map of the last block.

        Returns:
            Tokens [B, N, image_width], class token first, and the map [B, N, N] or None.
        """
        raise NotImplementedError

    def encode_text(self, ids, need_map=False):
        """Encode token ids [B, L] to tokens [B, L, text_width] and the attention map [B, L, L] or None."""
        raise NotImplementedError

    def image_embedding(self, tokens):
        """Pool tokens [B, N, image_width] to embeddings [B, embed_dim], float32."""
        raise NotImplementedError

    def text_embedding(self, tokens, ids):
        """Pool tokens [B, L, text_width] of the ids [B, L] to embeddings [B, embed_dim], float32."""
        raise NotImplementedError

    def lengths(self, ids):
        """Count the tokens of each caption, start and end included: [B, L] -> [B]."""
        raise NotImplementedError

    # -- speed and memory --------------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, enabled):
        """Keep only the input of each block for the backward pass and recompute the rest."""

    def blocks(self):
        """Return the blocks to compile, as ``(module, whether the length of its inputs varies)``."""
        return []

    def freeze_patches(self):
        """Freeze the patch projection (``--freeze_conv1``)."""
        raise UserError(f'--freeze_conv1 is for CLIP, and --backbone is {self.name}: leave it out')

    def micro_batch_unsupported(self):
        """Return what ``--micro_batch`` cannot split a batch for, and why; None if it can."""

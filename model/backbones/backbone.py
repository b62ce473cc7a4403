"""The base class of all backbones."""
from torch import nn

from utils.errors import UserError


class Backbone(nn.Module):
    """An image and a text encoder. Its parts (``named_children``) become the model's under their own names, as checkpoints have them.

    What a subclass sets in ``__init__``: ``image_width``, ``text_width`` (of tokens), ``embed_dim`` (of embeddings), ``vocab_size``,
    ``mask_id``, and ``gives`` if that depends on the weights. Embeddings are float32; tokens have the precision of the forward pass.
    """

    name = ''                # for --backbone
    leftover = {}            # of a whole model's file that training starts from: the heads' parameters
    gives = frozenset()      # what heads may need: 'image_tokens', 'text_tokens', 'masked_text_tokens', 'image_attention', ...
    joint_tokens = False     # whether tokens are in the embeddings' space, and so as wide
    lacks = {}               # {a need: why it isn't given}, for the sentence that a head gets,
    instead = 'another --backbone'     # and what to use instead

    # -- before there is a model ------------------------------------------------------------------------------------------------

    @staticmethod
    def add_options(parser):
        """Add the backbone's own options to ``parser`` (an argparse parser or group)."""

    @staticmethod
    def validate_options(args):
        """Check the backbone's options together and fill in what depends on others. Raises :class:`~utils.errors.UserError`."""

    @classmethod
    def build(cls, args, state_dict=None):
        """The backbone that ``args`` describe, on the CPU: for training with the weights of ``--pretrain_choice``, for testing
        (``args.training`` false) with any. ``state_dict``: a trained model's, to read the shape off; its weights are
        loaded later, for testing or (``args.training`` true) by ``--init_from`` and ``--resume``."""
        raise NotImplementedError

    @staticmethod
    def tokenizer(args, captions=None):
        """What turns captions into ids: ``encode(text)``, ``framed(ids, length)``, ``lengths(ids)`` and the ids ``start``, ``mask`` and
        ``pad``. ``captions()``: the training captions, for a vocabulary that has to be made of them."""
        raise NotImplementedError

    @staticmethod
    def pixels(args, dataset=None):
        """The :class:`utils.pixels.Pixels` of the images of the dataset with the name ``dataset``; without a name, of photos
        that belong to no dataset."""
        raise NotImplementedError

    @staticmethod
    def test_caption(dataset, caption):
        """A caption of a dataset's val or test split as the family's evaluation reads it."""
        return caption

    @staticmethod
    def is_of(state_dict):
        """Whether a trained model's parameters are of this family, by their names."""
        return False

    @staticmethod
    def released_options(state_dict):
        """{option: value} that a released checkpoint was trained with, for a family whose release keeps no configs.yaml; else None."""

    def learning_rate(self, name, args):
        """(lr, weight decay) of the parameter ``name``, before the head that it belongs to changes them."""
        return args.lr, args.weight_decay

    # -- encoding ---------------------------------------------------------------------------------------------------------------

    @property
    def encoder(self):
        """What heads with a pass of their own get as ``encoded.encoder``."""
        return self

    def encode_image(self, images, need_map=False):
        """Images [B, 3, H, W] -> (tokens [B, N, image_width], the one for the whole first; map [B, N, N] or None)."""
        raise NotImplementedError

    def encode_text(self, ids, need_map=False):
        """Token ids [B, L] -> (tokens [B, L, text_width], map [B, L, L] or None)."""
        raise NotImplementedError

    def image_embedding(self, tokens):
        """[B, N, image_width] -> [B, embed_dim] float32"""
        raise NotImplementedError

    def text_embedding(self, tokens, ids):
        """[B, L, text_width], [B, L] -> [B, embed_dim] float32"""
        raise NotImplementedError

    def lengths(self, ids):
        """How many tokens each caption has, start and end included: [B, L] -> [B]."""
        raise NotImplementedError

    # -- the switches for speed and memory ----------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, wanted):
        """Whether blocks keep their input alone for the gradient, and compute the rest again."""

    def blocks(self):
        """Blocks to compile, as ``(module, whether its inputs change their length)``."""
        return []

    def freeze_patches(self):
        """``--freeze_conv1``: keep what makes patches of an image as pretrained."""
        raise UserError(f'--freeze_conv1 is for CLIP, and --backbone is {self.name}: leave it out')

    def micro_batch_unsupported(self):
        """What ``--micro_batch`` cannot split a batch for, and why; None where it can."""

"""The base class of all tunings."""
from utils.errors import UserError


class Tuning:
    """Parameters that ``--tuning`` adds to frozen encoders.

    ``__init__(args, backbone)`` adds parameters and sets their initial values. They are attributes of modules of the
    backbone, so a checkpoint has them under the names of these attributes:

    - of a block: ``block.scale = nn.Parameter(...)`` is ``base_model.transformer.resblocks.0.scale``;
    - of the backbone: ``backbone.LORA_learner = module`` is ``LORA_learner.*``.

    For blocks with extension points, ``block.tuning`` is set to a :class:`~model.clip_model.BlockTuning`, which
    computes with these parameters. :meth:`numbered_blocks` lists the blocks.

    :func:`apply_tuning` then freezes all other parameters of the encoders, except those that :meth:`is_trainable`
    selects. Parameters of heads train as always.

    Attributes:
        name: the value of ``--tuning``.
        backbones: names of the backbones that the tuning fits; empty: any.
        shared_options: options that the tuning reads and another file adds.
        losses: {loss name: Head class} of losses that belong to the tuning. With this tuning, they replace other losses
            of the same name. These heads read ``encoded.image_routing`` and ``encoded.text_routing``.
        has_routing: whether :meth:`BlockTuning.mlp_branch <model.clip_model.BlockTuning.mlp_branch>` of each block
            returns a routing. Losses get that of all blocks and of the global batch, as
            ``encoded.image_routing`` [B, blocks, ...] and ``encoded.text_routing`` [B, blocks, ...].
        merge_unsupported: why :meth:`merge` cannot replace the added parameters, for the error message.
        parameter_names: the names of the parameters that the tuning has added, in the order of the backbone.
            :func:`apply_tuning` sets it.
    """

    name = ''
    backbones = ('clip',)
    shared_options = ()
    losses = {}
    has_routing = False
    merge_unsupported = 'its parameters do more than to change weights'
    parameter_names = ()

    def __init__(self, args, backbone):
        """Add the parameters to the backbone."""

    @staticmethod
    def add_options(parser):
        """Add the tuning's own options to ``parser`` (an argparse parser or group)."""

    @staticmethod
    def validate_options(args):
        """Check the options together, if ``--tuning`` names this tuning.

        Raises:
            UserError: options that exclude each other.
        """

    @staticmethod
    def is_trainable(name):
        """Whether the pretrained parameter ``name`` of the encoders trains, such as ``name.endswith('bias')``."""
        return False

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        """Learning rate and weight decay of a trainable parameter, given those of the backbone and the heads.

        ``name`` is any trainable parameter, also of a head.
        """
        return lr, weight_decay

    def merge(self, backbone):
        """Compute weights of the encoders that need no added parameters any more, for ``export --merge``.

        Returns:
            {name of a pretrained parameter: its new value}.

        Raises:
            UserError: there are none.
        """
        if self.parameter_names:
            raise UserError(f'--merge: --tuning {self.name} cannot be merged, because {self.merge_unsupported}; leave '
                            '--merge out')
        return {}

    @classmethod
    def numbered_blocks(cls, backbone):
        """List the blocks of both encoders: ``[('image' or 'text', number from 0, block), ...]``.

        Raises:
            UserError: an encoder has no blocks with extension points.
        """
        blocks = backbone.tunable_blocks()
        if set(blocks) != {'image', 'text'}:
            raise UserError(f'--tuning {cls.name} changes transformer blocks of both encoders, and the image encoder '
                            'is a ResNet: give a ViT as --pretrain_choice')
        return [(side, number, block) for side in ('image', 'text') for number, block in enumerate(blocks[side])]


def apply_tuning(tuning_class, args, backbone):
    """Add a tuning to a backbone and freeze what does not train.

    Args:
        tuning_class: a subclass of :class:`Tuning`.
        args: the options.
        backbone: the :class:`~model.backbones.Backbone`, with or without pretrained values.

    Returns:
        The :class:`Tuning`.
    """
    pretrained = dict(backbone.named_parameters())
    tuning = tuning_class(args, backbone)
    for name, parameter in pretrained.items():
        if not tuning.is_trainable(name):
            parameter.requires_grad_(False)
    tuning.parameter_names = tuple(name for name, _ in backbone.named_parameters() if name not in pretrained)
    return tuning

"""The base class of all heads. :mod:`model.heads.mixins` has a class for each further ability of a head."""
import contextlib
import re

from torch import nn

from model.heads.mixins import MIXINS, AddsEmbedding, RefinesEmbedding, TrainsInMicroBatches, UsesAllGather
from utils.errors import UserError


class Head(nn.Module):
    """A training objective on top of the encoders.

    ``__init__(args, model)`` builds the head's parts. The model registers them under their attribute names:
    ``self.classifier = nn.Linear(...)`` is ``classifier.weight`` in the checkpoint. ``model.shared(cls, ...)`` returns
    a part that several heads share.

    ``forward(encoded, batch)`` takes an :class:`~model.encoded_batch.EncodedBatch` and the batch's dict of tensors. It
    returns a dict of scalars: entries whose names end in ``_loss`` are summed, so they include their weight. The other
    entries are logged.

    Attributes:
        names: loss names that select the head in ``--loss_names``.
        backbone: the only backbone that the head supports; '' for any. On this backbone, the head replaces another
            head of the same name.
        needs: fields of EncodedBatch that the head reads, besides the embeddings: 'image_tokens', 'text_tokens',
            'masked_text_tokens', 'image_attention', ...
        fields: batch fields that the head reads, besides pids, image_ids, images and caption_ids.
        shared_options: options that the head reads and another file adds.
        accepts_any_width: whether tokens may have another width than embeddings.
        reads_extra_embeddings: whether the head reads embeddings that other heads add (``encoded.extra_embeddings``),
            or embeds further captions in all embeddings (``encoded.embed_text_all``). It gets this rank's rows.
        reads_padding: whether training keeps the padding of captions. Heads that need text tokens always get it.
    """

    names = ()
    backbone = ''
    needs = ()
    fields = ()
    shared_options = ()
    accepts_any_width = False
    reads_extra_embeddings = False
    reads_padding = False

    def __init_subclass__(cls):
        super().__init_subclass__()
        check_mixins(cls)

    def __init__(self, args=None, model=None):
        super().__init__()

    def __call__(self, *inputs, **settings):
        with head_error_context(self):
            return super().__call__(*inputs, **settings)

    @staticmethod
    def add_options(parser):
        """Add the head's own options to ``parser`` (an argparse parser or group)."""

    @staticmethod
    def validate_options(args, active):
        """Check the head's options against each other, and fill in those that depend on others.

        ``active`` is whether the options select the head (:func:`~model.loss_names.active_heads`). Raises UserError.
        """

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        """Learning rate and weight decay of the parameter ``name``, given those of the rules for all parameters.

        If several heads share the parameter, the highest learning rate is used.
        """
        return lr, weight_decay

    @classmethod
    def get_fields(cls, args):
        """The batch fields that the head reads, if they depend on options."""
        return cls.fields

    @property
    def uses_tokens(self):
        """Whether the head reads tokens or added embeddings, or changes embeddings. It then gets local rows only.

        The other heads read the shared embeddings only, and get those of the global batch.
        """
        return (bool(self.needs) or self.reads_extra_embeddings
                or isinstance(self, (AddsEmbedding, RefinesEmbedding)))

    def micro_batch_unsupported(self):
        """Why ``--micro_batch`` cannot split a batch for this head; None if it can."""
        if not self.uses_tokens or isinstance(self, TrainsInMicroBatches):
            return None
        reason = ('it refines embeddings' if isinstance(self, RefinesEmbedding) else
                  'it adds an embedding' if isinstance(self, AddsEmbedding) else
                  'it reads tokens' if self.needs else 'it reads embeddings that other heads add')
        return f'{reason} and is not a TrainsInMicroBatches head (docs/adding_a_method.md)'

    def distributed_unsupported(self):
        """Why several processes cannot train the head together; None if they can."""
        return None if isinstance(self, UsesAllGather) else self.micro_batch_unsupported()


def check_mixins(head):
    """Raise UserError if a Head class defines something of a mixin that is not one of its base classes."""
    for name in vars(head):
        owners = tuple(mixin for mixin in MIXINS if name in vars(mixin) and not name.startswith('_'))
        if owners and not issubclass(head, owners):
            classes = ' or '.join(owner.__name__ for owner in owners)
            raise UserError(f'{head.__name__} defines {name}, which nothing calls: add {classes} to its base classes, '
                            'before Head')


def describe_head(head):
    """Name a head's file and class, for error messages."""
    return f"{type(head).__module__.replace('.', '/')}.py: {type(head).__name__}"


@contextlib.contextmanager
def head_error_context(head):
    """Report an error about tensor shapes in one line with the head's file. Other errors keep their traceback."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        if not lines or not re.search('shape|size of tensor|sizes of tensors|normalized_shape', lines[0]):
            raise
        raise UserError(f'{describe_head(head)}: {lines[0]}') from error

"""The base class of all heads."""
import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from utils.errors import UserError


class HeadReport(NamedTuple):
    """What :meth:`Head.report` makes of a trained model."""
    text: str             # is printed
    content: dict         # becomes <report_flag>.json
    draw: Callable        # draw() is the matplotlib figure that becomes <report_flag>.png


class Head(nn.Module):
    """A training objective on top of the encoders.

    Subclasses say what they are in class attributes and build their parts in ``__init__(args, model)``. The model
    registers those parts under their attribute names, so that ``self.classifier = nn.Linear(...)`` is ``classifier.weight``
    in the checkpoint, as in the published ones. A part that heads share is made by ``model.shared(cls, ...)``.

    ``forward(encoded, batch)`` gets the model's :class:`~model.build.Encoded` and the batch's dict of tensors and returns a
    dict: entries ending in ``_loss`` are added up for training, already weighted; others are read-outs for the log.
    """

    names = ()     # the loss names it answers to
    backbone = ''  # the one backbone that it is made for, where it goes before another head of its names; '' for any
    needs = ()     # of Encoded, beside the embeddings: 'image_tokens', 'text_tokens', 'masked_text_tokens', 'image_attention', ...
    fields = ()    # what it reads from the batch beside pids, image_ids, images and caption_ids
    shared_options = ()     # options it reads that another file adds
    accepts_any_width = False   # whether tokens may be of another width than embeddings, and images' of another than captions'
    reads_padding = False   # whether captions must keep their padding in training; true of heads that need text tokens anyway
    reference_names = {}    # {prefix of a name: its prefix in the released code}, if that has other names than ours
    reference_copies = {}   # {beginning of a name: of another}: entries that checkpoints hold twice, for the released code to read

    report_flag = None   # the flag of test.py, without dashes, that asks for report()
    report_help = ''     # the flag's line in test.py --help
    report_needs = ''    # what a run lacks that cannot have the report: '<flag>: this run has no <report_needs>'

    # An embedding of its own, beside the one that all heads share. Two samples are as similar as the weighted sum of the cosines of all
    # embeddings says; a table has a row for each of them and one for the sum.
    embedding = ''                   # its name in tables; a head that has one defines embed()
    embedding_width = None           # how long its vectors are; set here or in __init__
    embedding_weight = 1.0           # of its cosine in the sum; the shared embedding's is 1
    embedding_needs_attention = False      # whether embed() is given the attention of the last block
    embedding_reads_padding = True   # whether embed() reads what stands behind a caption's end

    training_only_parts = ()   # names of parts that training alone needs (queues, momentum encoders): last.pth has them, best.pth does not

    def __init__(self, args=None, model=None):
        super().__init__()

    @staticmethod
    def add_options(parser):
        """Add the head's own options to ``parser`` (an argparse parser or group)."""

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        """(lr, weight decay) of the parameter ``name`` after the published rules have given it ``lr`` and ``weight_decay``. Of heads that
        share a part, the one with the highest rate decides."""
        return lr, weight_decay

    @staticmethod
    def is_enabled(args):
        """Whether the options ask for the head although no name in ``--loss_names`` does."""
        return False

    @staticmethod
    def validate_options(args, active):
        """Check the head's options together and fill in what depends on others, at start; ``active``: is it one of the
        :func:`active_heads`? Raises :class:`~utils.errors.UserError`."""

    def __call__(self, *inputs, **settings):
        with head_error_context(self):
            return super().__call__(*inputs, **settings)

    def prepare_on_host(self, batch):
        """Tensors to add to a batch, found while it is still on the CPU: what ``forward`` could find itself, but on a GPU only by
        waiting for it. Loops other than ours may leave this out."""
        return {}

    def transform_batch(self, batch, model, peers):
        """Change a batch on its device, before encoders and heads read it, and return it: ``batch`` is the whole one, however the
        step splits it, or this process's rows of it (``peers``, :class:`~utils.peers.Peers`). AGM masks captions here."""
        return batch

    @classmethod
    def get_fields(cls, args):
        """The ``fields``, where they depend on options."""
        return cls.fields

    def embed(self, side, tokens, caption_ids, attention):
        """The head's own embedding, [B, embedding_width], in training (``encoded.added[name]`` is the images' and the captions') and in
        evaluation alike.

        Args:
            side: 'image' or 'text'.
            tokens: [B, N, D] of images, class token first, or [B, L, D] of captions.
            caption_ids: [B, L] of captions; None of images.
            attention: [B, N, N] or [B, L, L], of the last block, the mean over its heads; None without ``embedding_needs_attention``.
        """
        raise NotImplementedError

    def pair_losses(self, encoded, batch):
        """{name: [B]}: a loss for each pair of the batch, for heads that :meth:`divide` the training pairs. With several processes there
        are no tokens here."""
        return {}

    # divide(losses, coins) is called before each epoch, of the one head that defines it. ``losses`` is {name: [n]}: what pair_losses of
    # all heads gave each of the n training pairs in one pass in evaluation mode (0 where the pass had none). ``coins`` is [n] of 0 and
    # 1, drawn from the seed and the epoch. It returns float [n], on the CPU, and batches of the epoch carry it as ``batch['clean']``.
    select_clean_pairs = None

    def before_step(self, epoch, step, steps):
        """Called before step ``step`` of ``steps`` (from 1) of epoch ``epoch`` (from 1)."""

    def after_weights_loaded(self, model):
        """Called once a new run's weights are there, pretrained or of ``--init_from``: now is the time to copy them. A resumed run gets the
        head's parts from its checkpoint."""

    def after_step(self, model):
        """Called after each optimizer step: for momentum encoders and queues."""

    # share(piece, batch) is for --micro_batch and heads with ``needs``. ``piece`` holds some of the batch's samples. The head's results
    # on the piece are multiplied by the share, a number or a scalar tensor, so that those of all pieces add up to the batch's. A head
    # whose results do not add up like that leaves it None, and trains on whole batches only.
    micro_batch_weight = None

    # Of several processes each has some rows of the batch. A head that gathers what it needs of the others' rows (encoded.peers) trains on
    # them together although --micro_batch cannot split it. Its results are those of the process's own rows, multiplied by ``micro_batch_weight``, or,
    # without one, of the whole batch, the same on all processes. What it draws, all draw alike, but within encoded.peers.apart().
    uses_all_gather = False

    def compute_micro_batch_weight(self, piece, batch):
        """What its results on a piece are multiplied by."""
        return len(piece['pids']) / len(batch['pids']) if self.micro_batch_weight is None else self.micro_batch_weight(piece, batch)

    @property
    def uses_tokens(self):
        """Whether it reads more of a pass through the encoders than embeddings, or changes them. Others always get the whole batch's
        embeddings, in however many pieces it was encoded."""
        return bool(self.needs or self.embedding) or type(self).refine is not Head.refine

    def micro_batch_unsupported(self):
        """Why ``--micro_batch`` cannot split a batch for this head, in words; None where it can: the head reads embeddings alone, and
        gets those of the whole batch at once, or it has a ``micro_batch_weight``."""
        if type(self).refine is not Head.refine:
            return 'it refines embeddings and does not say (micro_batch_unsupported) that its losses do without what that leaves behind'
        if self.embedding and self.micro_batch_weight is None:
            return 'it adds an embedding and defines no micro_batch_weight(piece, batch)'
        return 'it reads tokens and defines no micro_batch_weight(piece, batch)' if self.needs and self.micro_batch_weight is None else None

    def attention_maps(self, side, tokens, caption_ids, attention):
        """What the head reads of samples, for run_scripts/attention.py: ``{title: weights}``, [B, N] of an image's patches or [B, L] of a
        caption's tokens. The arguments are those of :meth:`embed`; maps of both sides under one title are drawn as one."""
        return {}

    def distributed_unsupported(self):
        """Why several processes cannot train it together, in words; None where they can."""
        return None if self.uses_all_gather else self.micro_batch_unsupported()

    def has_report(self):
        """Whether this head, as it was built, can make its report."""
        return self.report_flag is not None

    def report(self, split):
        """An analysis of the trained model for test.py, which prints it and writes it beside the checkpoint: a :class:`HeadReport`.

        ``split`` is a test split: ``split.embed_images()`` and ``split.embed_captions()`` pass one side through the model,
        ``split.entries`` are its annotated images, which ``split.load_images(entries)`` and ``split.tokens(captions)`` make inputs of.
        """
        raise NotImplementedError

    # match(encoder, caption_ids [P, L], text_tokens [P, L, D], image_tokens [P, N, K]), of a head that scores pairs: float32 [P], larger
    # where a caption and an image belong together. test.py --rerank orders each caption's best images by it. None: it scores none.
    score_pairs = None

    # recognise(image_tokens [B, N, K]), of a head that tells images' attributes by itself: [B, A], above 0 where the image has one.
    # Without it they are told by prompts.
    predict_attributes = None

    def refine(self, embedding, tokens, extras):
        """Change the retrieval embedding, in training and in evaluation alike.

        ``embedding`` is [B, D] float32, ``tokens`` [B, N, D] are the image's patches (without the class token) or all of the
        caption's; returns the new [B, D]. What ``forward`` needs from this pass goes into the dict ``extras``, which it
        finds as ``encoded.image_extras`` or ``encoded.text_extras``.
        """
        return embedding


def describe_head(head):
    """A head and its file, for messages."""
    return f"{type(head).__module__.replace('.', '/')}.py: {type(head).__name__}"


@contextlib.contextmanager
def head_error_context(head):
    """A layer of a width that doesn't fit is told in one line with the head's file; other errors keep their traceback."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        if not lines or not re.search('shape|size of tensor|sizes of tensors|normalized_shape', lines[0]):
            raise
        raise UserError(f'{describe_head(head)}: {lines[0]}') from error

"""The base class of all heads."""
import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from utils.errors import UserError


class HeadReport(NamedTuple):
    """The result of :meth:`Head.report`.

    Attributes:
        text: what test.py prints.
        content: the content of ``<report_flag>.json``.
        draw: function without arguments that returns the matplotlib figure.
    """
    text: str
    content: dict
    draw: Callable


class Head(nn.Module):
    """A training objective on top of the encoders.

    Subclasses declare what they need in class attributes and build their parts in ``__init__(args, model)``. The model
    registers these parts under their attribute names: ``self.classifier = nn.Linear(...)`` is ``classifier.weight`` in
    the checkpoint. ``model.shared(cls, ...)`` returns a part that several heads share.

    ``forward(encoded, batch)`` takes the model's :class:`~model.build.EncodedBatch` and the batch's dict of tensors. It
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
        reads_padding: whether training keeps the padding of captions. Heads that need text tokens get it anyway.
        reference_names: {prefix of a parameter's name: prefix in the method's reference implementation}.
        reference_copies: {prefix: prefix of the original} of entries that checkpoints hold twice, because the
            reference implementation reads both.
        report_flag: flag of test.py, without dashes, that asks for :meth:`report`; None if the head has no report.
        report_help: help text of that flag.
        report_needs: what a run lacks if it has no report, for the error '<flag>: this run has no <report_needs>'.
        embedding: name of the head's own embedding in tables, if it has one (:meth:`embed`). The similarity of two
            samples is then the weighted sum of the cosines of all embeddings. A table has a row for each and one for
            the sum.
        embedding_width: number of dimensions of the own embedding, set here or in ``__init__``.
        embedding_weight: weight of its cosine in the sum; the shared embedding has the weight 1.
        embedding_needs_attention: whether :meth:`embed` gets the attention of the last block.
        embedding_reads_padding: whether :meth:`embed` reads tokens after a caption's end.
        training_only_parts: names of parts that only training needs, such as queues and momentum encoders. ``last.pth``
            has them and ``best.pth`` does not.
        uses_all_gather: whether the head gathers the rows that it needs from other ranks with ``encoded.shard``. It
            then supports distributed training without :attr:`micro_batch_weight`. Its results are those of the global
            batch, equal on all ranks; with a ``micro_batch_weight``, they are those of the local rows, times that
            weight. All ranks draw the same random numbers, except in ``with encoded.shard.per_rank_rng():``.
    """

    names = ()
    backbone = ''
    needs = ()
    fields = ()
    shared_options = ()
    accepts_any_width = False
    reads_padding = False
    reference_names = {}
    reference_copies = {}

    report_flag = None
    report_help = ''
    report_needs = ''

    embedding = ''
    embedding_width = None
    embedding_weight = 1.0
    embedding_needs_attention = False
    embedding_reads_padding = True

    training_only_parts = ()
    uses_all_gather = False

    def __init__(self, args=None, model=None):
        super().__init__()

    def __call__(self, *inputs, **settings):
        with head_error_context(self):
            return super().__call__(*inputs, **settings)

    # -- Options

    @staticmethod
    def add_options(parser):
        """Add the head's own options to ``parser`` (an argparse parser or group)."""

    @staticmethod
    def is_enabled(args):
        """Whether options enable the head even if ``--loss_names`` does not name it."""
        return False

    @staticmethod
    def validate_options(args, active):
        """Check the head's options against each other, and fill in those that depend on others.

        Args:
            args: all options.
            active: whether the head is one of :func:`~model.heads.active_heads`.

        Raises:
            UserError: the options contradict each other.
        """

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        """Learning rate and weight decay of a parameter.

        If several heads share the parameter, the highest learning rate is used.

        Args:
            name: the parameter's name.
            lr: learning rate by the rules that apply to all parameters.
            weight_decay: weight decay by these rules.
            args: all options.

        Returns:
            ``(lr, weight_decay)``.
        """
        return lr, weight_decay

    @classmethod
    def get_fields(cls, args):
        """The batch fields that the head reads, if they depend on options."""
        return cls.fields

    # -- A training step, in the order of the calls

    def before_step(self, epoch, step, steps):
        """Called before step ``step`` of ``steps`` in epoch ``epoch``. Both count from 1."""

    def prepare_on_host(self, batch):
        """Tensors to add to a batch while it is on the CPU.

        Computing them in ``forward`` would make the host wait for the GPU. ``forward`` must compute them if they are
        missing, because other training loops may not call this hook.

        Returns:
            {field: tensor}.
        """
        return {}

    def transform_batch(self, batch, model, shard):
        """Change a batch on its device before the encoders read it.

        Args:
            batch: {field: tensor} of all local rows, also with ``--micro_batch``.
            model: the :class:`~model.build.RetrievalModel`.
            shard: the ranks that hold the other rows (:mod:`utils.batch_shard`).

        Returns:
            The new batch.
        """
        return batch

    def refine(self, embedding, tokens, extras):
        """Change the retrieval embedding, in training and in evaluation.

        Args:
            embedding: [B, D] float32.
            tokens: [B, N, D], patches of images without the class token, or all tokens of captions.
            extras: dict for what ``forward`` needs from this pass; ``forward`` reads it as ``encoded.image_extras``
                or ``encoded.text_extras``.

        Returns:
            The new embedding, [B, D].
        """
        return embedding

    def embed(self, side, tokens, caption_ids, attention):
        """The head's own embedding, in training and in evaluation.

        In training, ``encoded.extra_embeddings[name]`` holds it as (images [B, E], captions [B, E]).

        Args:
            side: 'image' or 'text'.
            tokens: [B, N, D] of images with the class token first, or [B, L, D] of captions.
            caption_ids: [B, L] of captions; None for images.
            attention: [B, N, N] or [B, L, L] of the last block, averaged over its heads; None without
                ``embedding_needs_attention``.

        Returns:
            [B, embedding_width].
        """
        raise NotImplementedError

    def after_step(self, model):
        """Called after each optimizer step, for example to update momentum encoders and queues."""

    def after_weights_loaded(self, model):
        """Called after a new run loads its weights (pretrained or ``--init_from``), for example to copy them.

        A resumed run does not call it: it restores the head's parts from the checkpoint.
        """

    # -- Gradient accumulation and distributed training

    # micro_batch_weight(micro_batch, batch) returns the factor of the head's results on a micro batch, a number or a
    # scalar tensor. With these factors, the results of all micro batches must add up to those of the batch. Heads with
    # ``needs`` that leave it None train on whole batches only.
    micro_batch_weight = None

    def compute_micro_batch_weight(self, micro_batch, batch):
        """:attr:`micro_batch_weight`, or the fraction of the batch's samples if it is None."""
        if self.micro_batch_weight is None:
            return len(micro_batch['pids']) / len(batch['pids'])
        return self.micro_batch_weight(micro_batch, batch)

    @property
    def uses_tokens(self):
        """Whether the head reads more than embeddings, or changes them.

        Other heads always get the embeddings of the global batch, also with ``--micro_batch``.
        """
        return bool(self.needs or self.embedding) or type(self).refine is not Head.refine

    def micro_batch_unsupported(self):
        """Why ``--micro_batch`` cannot split a batch for this head; None if it can.

        It can if the head reads embeddings only, or has a :attr:`micro_batch_weight`.
        """
        if type(self).refine is not Head.refine:
            return ('it refines embeddings, and its losses may read the extras of refine: if they do not, override '
                    'micro_batch_unsupported')
        if self.embedding and self.micro_batch_weight is None:
            return 'it adds an embedding and defines no micro_batch_weight(micro_batch, batch)'
        if self.needs and self.micro_batch_weight is None:
            return 'it reads tokens and defines no micro_batch_weight(micro_batch, batch)'
        return None

    def distributed_unsupported(self):
        """Why several processes cannot train the head together; None if they can."""
        return None if self.uses_all_gather else self.micro_batch_unsupported()

    # -- Selection of clean training pairs before each epoch

    def pair_losses(self, encoded, batch):
        """Losses of single pairs, for :attr:`select_clean_pairs`: {name: [B]}.

        With several processes, ``encoded`` has no tokens here.
        """
        return {}

    # select_clean_pairs(losses, tie_breakers) is called before each epoch, on the one head that defines it.
    # ``losses`` is {name: [n]}: the pair_losses of all heads for the n training pairs, from one pass in evaluation
    # mode; 0 for pairs that the pass skipped. ``tie_breakers`` is [n] of 0 and 1, drawn from the seed and the epoch.
    # It returns float [n] on the CPU. Batches of the epoch hold it as ``batch['clean']``.
    select_clean_pairs = None

    # -- Evaluation and analysis

    # score_pairs(encoder, caption_ids [P, L], text_tokens [P, L, D], image_tokens [P, N, K]) returns float32 [P],
    # higher for captions and images that belong together. test.py --rerank sorts each caption's best images by it.
    score_pairs = None

    # predict_attributes(image_tokens [B, N, K]) returns [B, A], positive if the image has the attribute. Without it,
    # test.py recognizes attributes by prompts.
    predict_attributes = None

    def attention_maps(self, side, tokens, caption_ids, attention):
        """Weights of patches and words, which run_scripts/attention.py draws.

        The arguments are those of :meth:`embed`. Maps of both sides with the same title are drawn as one.

        Returns:
            {title: weights}, [B, N] for the patches of images or [B, L] for the tokens of captions.
        """
        return {}

    @staticmethod
    def add_report_options(parser):
        """Add options of :meth:`report` to test.py; ``report`` reads them from ``split.args``."""

    def has_report(self):
        """Whether the head, as it was built, supports :meth:`report`."""
        return self.report_flag is not None

    def report(self, split):
        """Analyze the trained model. test.py prints the result and writes it next to the checkpoint.

        Args:
            split: a test split. ``split.embed_images()`` and ``split.embed_captions()`` pass one side through the
                model. ``split.entries`` are its annotated images; ``split.load_images(entries)`` and
                ``split.tokenize(captions)`` turn them into inputs.

        Returns:
            A :class:`HeadReport`.
        """
        raise NotImplementedError


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

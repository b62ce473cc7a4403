"""The retrieval model: encoders, embeddings, and the heads that ``--loss_names`` names."""
import logging
from dataclasses import dataclass, field
from typing import NamedTuple, Optional
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from model.backbones import backbone_class, refuse_other_family
from model.clip_model import MLP, ResidualAttentionBlock, Transformer
from model.heads import (
    AddsEmbedding, HasReferenceNames, HasTrainingOnlyParts, Head, PreparesOnHost, RefinesEmbedding, TransformsBatch,
    UsesAllGather, describe_head, head_error_context,
)
from model.loss_names import active_heads, parse_loss_names
from utils import precision
from utils.checkpoint import add_run_prefix
from utils.comm import get_world_size, pick_device
from utils.errors import UserError, abbreviate
from utils.batch_shard import WHOLE_BATCH, GlobalBatch, WholeBatch

logger = logging.getLogger('Pedestal.model')

# The most variants of a block that torch.compile may keep: images, captions, cross encoder; training or not; with
# attention maps; the last, smaller batch of an epoch.
COMPILED_VARIANTS = 64
SHARED_EMBEDDING = 'BGE'    # RDE's name of the embedding that all heads share, if a head adds another one


@dataclass
class EncodedBatch:
    """Embeddings and tokens of a batch, for the heads.

    Embeddings are float32; tokens have the precision of the forward pass. Tokens and attention are None unless a head's
    ``needs`` name them.

    Attributes:
        image: [B, D] embeddings of the images.
        text: [B, D] embeddings of the captions.
        image_tokens: [B, N, D], class token first.
        text_tokens: [B, L, D].
        masked_text_tokens: [B, L, D] of the captions with masked words.
        image_attention: [B, N, N] of the last block, averaged over its heads.
        text_attention: [B, L, L] of the last block, averaged over its heads.
        encoder: the encoders, for a head with a forward pass of its own.
        embed_image: images -> [B, D], embeds further images in the same way as those of the batch.
        embed_text: token ids -> [B, D], the same for captions.
        extra_embeddings: {name: (images [B, E], captions [B, E])} of embeddings that heads add.
        image_extras: what :meth:`RefinesEmbedding.refine` stored when it refined the images' embeddings.
        text_extras: the same for the captions.
        shard: the ranks that hold the other rows of the batch (utils/batch_shard.py).
    """
    image: torch.Tensor
    text: torch.Tensor
    image_tokens: Optional[torch.Tensor] = None
    text_tokens: Optional[torch.Tensor] = None
    masked_text_tokens: Optional[torch.Tensor] = None
    image_attention: Optional[torch.Tensor] = None
    text_attention: Optional[torch.Tensor] = None
    encoder: Optional[nn.Module] = None
    embed_image: Optional[Callable] = None
    embed_text: Optional[Callable] = None
    extra_embeddings: dict = field(default_factory=dict)
    image_extras: dict = field(default_factory=dict)
    text_extras: dict = field(default_factory=dict)
    shard: WholeBatch = WHOLE_BATCH


class EmbeddingPart(NamedTuple):
    """One of several embeddings that are concatenated for ranking."""
    name: str
    columns: slice   # its columns in the concatenation
    weight: float    # of its cosine similarity


class RetrievalModel(nn.Module):
    """Image and text encoders with the heads of ``--loss_names``.

    Parameters have the official names: the encoders' are those of the backbone (``base_model.*`` for CLIP), a head's
    are the attribute names in its file.

    Args:
        args: the options.
        num_classes: number of training identities.
        backbone: a :class:`~model.backbones.Backbone`.
    """

    def __init__(self, args, num_classes, backbone):
        super().__init__()
        self._shared = {}
        self.__dict__['backbone'] = backbone     # not a submodule: its parts are registered under their own names
        self._register(backbone)
        if args.freeze_conv1:
            backbone.freeze_patches()
        self.embed_dim, self.image_stats = backbone.embed_dim, backbone.image_stats(args)
        self.image_width, self.text_width = backbone.image_width, backbone.text_width
        self.vocab_size, self.mask_id = backbone.vocab_size, backbone.mask_id
        self.num_classes = num_classes
        self.temperature = args.temperature
        self.amp = args.amp
        self.masked_token_rates = args.masked_token_rate, args.masked_token_unchanged_rate
        classes = active_heads(args)
        for head in classes:
            self._refuse_unmet_needs(head)
        named = parse_loss_names(args.loss_names, backbone.name)
        # A tuple, not a ModuleList: the parts of the heads are registered below, under their own names.
        self.heads = tuple(head(args, self) for head in classes)
        for head in self.heads:
            head.is_named = type(head) in named
            self._register(head)
        self.needs = {need for head in self.heads for need in head.needs}
        self.reference_copies, self.reference_names = {}, {}
        for head in self.heads_with(HasReferenceNames):
            self.reference_copies.update(head.reference_copies)
            self.reference_names.update(head.reference_names)
        self.embedding_heads = self.heads_with(AddsEmbedding)
        self.embedding_parts = self._embedding_parts()
        self.refines_embeddings = bool(self.heads_with(RefinesEmbedding)) or any(
            head.embedding_reads_padding for head in self.embedding_heads)
        self.needs_attention = any(head.embedding_needs_attention for head in self.embedding_heads)
        self.reads_padding = self.refines_embeddings or any(head.reads_padding for head in self.heads) or bool(
            self.needs & {'text_tokens', 'masked_text_tokens', 'text_attention'})
        if args.micro_batch and args.training:
            self._refuse_unsupported('--micro_batch', Head.micro_batch_unsupported,
                                     ' (--grad_checkpoint saves memory with every loss)')
        if get_world_size() > 1 and args.training:
            self._refuse_unsupported('training with several processes', Head.distributed_unsupported, '')
        backbone.set_grad_checkpoint(args.grad_checkpoint)
        for part in self.modules():
            if isinstance(part, Transformer):       # also the cross encoder of heads
                part.grad_checkpoint = args.grad_checkpoint
            if isinstance(part, MLP):
                part.lean = True

    def shared(self, cls, *settings):
        """Return the only ``cls(*settings)`` of this model, for heads that share a part."""
        if cls not in self._shared:
            part = cls(*settings)
            self._register(part)
            self._shared[cls] = settings, part
        first_settings, part = self._shared[cls]
        assert first_settings == settings, f'{cls.__name__} is shared with {first_settings}; asked for with {settings}'
        return part

    def _register(self, owner):
        """Register the parts of a head or of the backbone under their own names."""
        shared = {id(part) for _, module in self._shared.values() for part in (module, *module.children())}
        for name, part in [*owner.named_children(), *owner.named_parameters(recurse=False)]:
            if id(part) not in shared:
                if owner is not self.backbone and (part is self or contains_module(part, self.backbone.encoder)):
                    raise UserError(f'{describe_head(owner)}.{name} is the model itself or its encoder: give the head '
                                    'a copy (copy.deepcopy) or parts of its own; hooks get the model as an argument')
                if hasattr(self, name):
                    raise UserError(f'{describe_head(owner)}.{name}: the model has another part with this name')
                setattr(self, name, part)
        if any(True for _ in owner.buffers(recurse=False)):
            raise UserError(f'{describe_head(owner)} has a buffer of its own: put it into a module that the head owns, '
                            'so that it is saved under the name of that module')

    def _embedding_parts(self):
        """Return a tuple of :class:`EmbeddingPart`; empty if no head adds an embedding."""
        if not self.embedding_heads:
            return ()
        widths = [(SHARED_EMBEDDING, self.embed_dim, 1.0)]
        for head in self.embedding_heads:
            if not isinstance(head.embedding_width, int):
                raise UserError(f"{describe_head(head)} adds the embedding '{head.embedding}' without its width: set "
                                'embedding_width')
            widths.append((head.embedding, head.embedding_width, head.embedding_weight))
        ends = torch.tensor([width for _, width, _ in widths]).cumsum(0).tolist()
        return tuple(EmbeddingPart(name, slice(end - width, end), weight)
                     for (name, width, weight), end in zip(widths, ends))

    @property
    def training_only(self):
        """The names in the state dict that only training needs (:class:`~model.heads.HasTrainingOnlyParts`)."""
        parts = tuple(f'{part}.' for head in self.heads_with(HasTrainingOnlyParts) for part in head.training_only_parts)
        return {name for name in self.state_dict() if parts and f'{name}.'.startswith(parts)}

    def after_weights_loaded(self):
        """Call the heads' hooks after the weights of a new run are loaded."""
        for head in self.heads_with(HasTrainingOnlyParts):
            head.after_weights_loaded(self)

    def heads_with(self, mixin):
        """Return the heads of a mixin class, such as :class:`~model.heads.AddsEmbedding`."""
        return tuple(head for head in self.heads if isinstance(head, mixin))

    def heads_with_parameter(self, name):
        """Return the heads that own or share the parameter ``name``; none for parameters of the encoders."""
        module = getattr(self, name.split('.')[0])
        return [head for head in self.heads if any(module is part for part in parts_of(head))]

    def _refuse_unmet_needs(self, head):
        """Raise UserError if a head needs what the backbone does not provide."""
        loss, name = f"the loss '{head.names[0] if head.names else head.__name__}'", self.backbone.name
        missing = [need for need in head.needs if need not in self.backbone.provides]
        if missing:
            why = self.backbone.missing_reasons.get(missing[0], f'the backbone {name} has none')
            need = missing[0].replace('_', ' ')
            raise UserError(f'{loss} reads {need} and {why}: leave it out of --loss_names or use '
                            f'{self.backbone.alternative}')
        reads_tokens = bool(head.needs) or issubclass(head, RefinesEmbedding)
        if reads_tokens and not head.accepts_any_width and {self.image_width, self.text_width} != {self.embed_dim}:
            raise UserError(f"{loss} reads tokens in the embeddings' space and the backbone {name} has image tokens "
                            f'{self.image_width}, text tokens {self.text_width} and embeddings {self.embed_dim} wide: '
                            f'leave it out of --loss_names or use {self.backbone.alternative}')

    def _refuse_unsupported(self, feature, reason_hook, alternative):
        """Raise UserError if the backbone or a head cannot split a batch.

        Args:
            feature: the words for the error message.
            reason_hook: the method of :class:`Head` that returns a reason or None.
            alternative: an addition to the message.
        """
        reason = self.backbone.micro_batch_unsupported()
        if reason:
            raise UserError(f'{feature} cannot split a batch for {reason}')
        for head in self.heads:
            reason = getattr(head, reason_hook.__name__)()
            if reason:
                raise UserError(f"{feature} cannot split a batch for the loss '{head.names[0]}': {reason}; leave it "
                                f'out{alternative}')

    def train(self, mode=True):
        """Set the mode of the heads also, because they are not submodules."""
        for part in [*self.heads, *(part for _, part in self._shared.values())]:
            part.training = mode
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        """Move or cast parameters, and let the heads refer to the new ones."""
        super()._apply(fn, recurse)
        for head in self.heads:
            for name in head._parameters:
                head._parameters[name] = self._parameters[name]
        return self

    def blocks(self):
        """Return the blocks of encoders and cross encoder: ``[(module, whether the length of its inputs varies)]``."""
        blocks = self.backbone.blocks()
        known = {block for block, _ in blocks}
        return blocks + [(part, True) for part in self.modules()
                         if isinstance(part, ResidualAttentionBlock) and part not in known]

    def autocast(self):
        """Return the autocast context of the forward pass, for the device of the parameters."""
        device = next(self.parameters()).device
        dtype = precision.amp_dtype(self.amp, device)
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def image_embedding(self, tokens, extras=None):
        """Pool image tokens and let the heads refine the result: [B, N, D] -> [B, D] float32."""
        return self._refined(self.backbone.image_embedding(tokens), tokens[:, 1:], extras)

    def text_embedding(self, tokens, caption_ids, extras=None):
        """Pool text tokens and let the heads refine the result: [B, L, D], [B, L] -> [B, D] float32."""
        return self._refined(self.backbone.text_embedding(tokens, caption_ids), tokens, extras)

    def _refined(self, embedding, tokens, extras):
        for head in self.heads_with(RefinesEmbedding):
            refined = head.refine(embedding, tokens, {} if extras is None else extras)
            if refined.shape != embedding.shape:
                raise UserError(f'{describe_head(head)}: refine turns embeddings {list(embedding.shape)} into '
                                f'{list(refined.shape)}, which other heads cannot read: keep the shape, or add an '
                                'embedding of your own with embed()')
            embedding = refined
        return embedding

    def embed_image(self, images):
        """Compute the embedding that all heads share: normalized images [B, 3, H, W] -> [B, D] float32."""
        return self.image_embedding(self.backbone.encode_image(images)[0])

    def embed_text(self, caption_ids):
        """Compute the embedding that all heads share: token ids [B, L] -> [B, D] float32."""
        return self.text_embedding(self.backbone.encode_text(caption_ids)[0], caption_ids)

    def extra_embeddings(self, side, tokens, caption_ids=None, attention=None):
        """Compute the embeddings that heads add: {name: [B, E] float32}."""
        embeddings = {}
        for head in self.embedding_heads:
            with head_error_context(head):
                attention_of_head = attention if head.embedding_needs_attention else None
                embedding = head.embed(side, tokens, caption_ids, attention_of_head).float()
            if embedding.shape != (len(tokens), head.embedding_width):
                raise UserError(f'{describe_head(head)}: embed returns {list(embedding.shape)} for a batch of '
                                f'{len(tokens)} {side}s, and its embedding_width is {head.embedding_width}')
            embeddings[head.embedding] = embedding
        return embeddings

    def concatenate_embeddings(self, embedding, extra):
        """Concatenate all embeddings of a sample: [B, D + E + ...].

        The cosine similarity of two results is the weighted mean of the cosine similarities of the parts.
        """
        if not extra:
            return embedding
        embeddings = [embedding, *extra.values()]
        return torch.cat([part.weight ** 0.5 * F.normalize(value, dim=1)
                          for part, value in zip(self.embedding_parts, embeddings)], dim=1)

    def trim_padding(self, caption_ids):
        """Trim captions [B, L] on the CPU to the longest one, rounded up to a multiple of 8.

        Captions are not trimmed if a head reads padding in training, or if the computation of an embedding reads it in
        evaluation. Otherwise trimming changes no result, because no word attends to padding.
        """
        if self.reads_padding if self.training else self.refines_embeddings:
            return caption_ids
        longest = int(self.backbone.lengths(caption_ids).max())
        return caption_ids[:, :min(-(-longest // 8) * 8, caption_ids.shape[1])]

    def prepare_on_host(self, batch):
        """Collect the tensors of :class:`PreparesOnHost` heads, while the batch is on the CPU.

        Returns:
            {'host_...': tensor}. These fields describe this rank's rows and are not gathered.

        Raises:
            UserError: another name.
        """
        inputs = {}
        for head in self.heads_with(PreparesOnHost):
            for name, value in head.prepare_on_host(batch).items():
                if not name.startswith('host_'):
                    raise UserError(f"{describe_head(head)}: prepare_on_host returns '{name}': let the name begin with "
                                    f"host_, such as 'host_{name}'")
                inputs[name] = value
        return inputs

    def encode_image(self, images):
        """Embed normalized images [B, 3, H, W] for ranking: [B, D] float32, not of unit length."""
        with self.autocast():
            tokens, attention = self.backbone.encode_image(images, self.needs_attention)
            extra = self.extra_embeddings('image', tokens, None, attention)
            return self.concatenate_embeddings(self.image_embedding(tokens), extra)

    def encode_text(self, caption_ids):
        """Embed token ids [B, L] for ranking: [B, D] float32, not of unit length."""
        with self.autocast():
            tokens, attention = self.backbone.encode_text(caption_ids, self.needs_attention)
            extra = self.extra_embeddings('text', tokens, caption_ids, attention)
            return self.concatenate_embeddings(self.text_embedding(tokens, caption_ids), extra)

    def encode(self, batch):
        """Run each encoder once and return an :class:`EncodedBatch`.

        The text encoder runs a second time only if a head needs the masked captions ``mlm_ids`` next to the captions.
        """
        needs_image_map = self.needs_attention or 'image_attention' in self.needs
        needs_text_map = self.needs_attention or 'text_attention' in self.needs
        image_tokens, image_attention = self.backbone.encode_image(batch['images'], needs_image_map)
        text_tokens, text_attention = self.backbone.encode_text(batch['caption_ids'], needs_text_map)
        masked_text_tokens = None
        if 'masked_text_tokens' in self.needs:
            masked_text_tokens = text_tokens
            if 'mlm_ids' in batch:
                masked_text_tokens, _ = self.backbone.encode_text(batch['mlm_ids'])
        image_extras, text_extras = {}, {}
        image_extra = self.extra_embeddings('image', image_tokens, None, image_attention)
        text_extra = self.extra_embeddings('text', text_tokens, batch['caption_ids'], text_attention)
        return EncodedBatch(
            image=self.image_embedding(image_tokens, image_extras), image_extras=image_extras,
            text=self.text_embedding(text_tokens, batch['caption_ids'], text_extras), text_extras=text_extras,
            image_tokens=image_tokens if 'image_tokens' in self.needs else None,
            text_tokens=text_tokens if 'text_tokens' in self.needs else None, masked_text_tokens=masked_text_tokens,
            image_attention=image_attention, text_attention=text_attention, encoder=self.backbone.encoder,
            embed_image=self.embed_image, embed_text=self.embed_text,
            extra_embeddings={name: (image_extra[name], text_extra[name]) for name in image_extra})

    def transform_batch(self, batch, shard=WHOLE_BATCH):
        """Return the batch after the changes of :class:`TransformsBatch` heads."""
        for head in self.heads_with(TransformsBatch):
            batch = head.transform_batch(batch, self, shard)
        return batch

    def forward(self, batch, shard=WHOLE_BATCH):
        """Compute the losses and metrics of a batch.

        With several processes, heads that read only embeddings get those of the global batch. The other heads get this
        rank's rows; their results are weighted and summed over ranks.

        Args:
            batch: ``{name: tensor}`` on the model's device, with normalized images; this rank's rows.
            shard: where these rows are in the global batch (:mod:`utils.batch_shard`).

        Returns:
            ``{'temperature': ..., 'sdm_loss': ..., 'img_acc': ...}``, scalars of the global batch.
        """
        batch = self.transform_batch(batch, shard)
        with self.autocast():
            with shard.per_rank_rng(0):
                encoded = self.encode(batch)
            encoded.shard = shard
            global_batch = shard.global_batch(batch)
            results = self.compute_embedding_losses(self.gather_embeddings(encoded), global_batch)
            results.update(self.compute_token_losses(encoded, batch, global_batch, shard))
        return self.collect_results(results, shard)

    def gather_embeddings(self, encoded):
        """Return the embeddings of the global batch, given those of this rank. Tokens are not gathered."""
        if encoded.shard is WHOLE_BATCH:
            return encoded
        return self.encoded_embeddings(*map(encoded.shard.all_gather, (encoded.image, encoded.text)), encoded.shard)

    def encoded_embeddings(self, image, text, shard):
        """Return an :class:`EncodedBatch` of embeddings [B, D], without tokens."""
        return EncodedBatch(image, text, encoder=self.backbone.encoder, embed_image=self.embed_image,
                            embed_text=self.embed_text, shard=shard)

    def compute_embedding_losses(self, encoded, batch):
        """Run the heads that read only embeddings: ``{head: results}``.

        Args:
            encoded: the embeddings of the global batch.
            batch: the fields of the global batch.
        """
        results = {}
        for head in self.heads:
            if not head.uses_tokens:
                is_sharded = isinstance(batch, GlobalBatch)
                fields = batch.for_head(describe_head(head), isinstance(head, UsesAllGather)) if is_sharded else batch
                results[head] = head(encoded, fields)
        return results

    def compute_token_losses(self, encoded, batch, global_batch, shard):
        """Run the heads that read tokens, on a part of the global batch: ``{head: results}``.

        The results are weighted, so that those of all parts add up to the results of the global batch.

        Args:
            encoded: the encoded rows of the part.
            batch: the fields of the part.
            global_batch: the fields of the global batch.
            shard: the rows of this rank.
        """
        results, is_placeholder = {}, not shard.local_size(batch)
        for head in self.heads:
            if head.uses_tokens:
                results[head] = head(encoded, batch)
                if batch is not global_batch and results[head]:
                    # A rank with a placeholder row also computes the weight, because that may gather fields.
                    weight = head.micro_batch_weight(batch, global_batch) * (not is_placeholder)
                    results[head] = {name: weight * value for name, value in results[head].items()}
        return results

    def collect_results(self, results_by_head, shard=WHOLE_BATCH):
        """Collect the results of all heads in the order of ``--loss_names``, summed over ranks where they are parts."""
        heads = [head for head in self.heads if head.uses_tokens and results_by_head[head]]
        if shard is not WHOLE_BATCH and heads:
            parts = [value.float() for head in heads for value in results_by_head[head].values()]
            sums = iter(shard.all_reduce_sum(torch.stack(parts)).unbind())
            results_by_head = {**results_by_head, **{head: dict(zip(results_by_head[head], sums)) for head in heads}}
        results = {'temperature': torch.full((), self.temperature)}
        for head in self.heads:
            add_results(results, head, results_by_head[head])
        return results


def contains_module(part, module):
    """Whether a part (a module or a parameter) is or contains a module."""
    return isinstance(part, nn.Module) and any(inner is module for inner in part.modules())


def parts_of(head):
    """Return a head's modules and parameters, and those of the parts that it shares with other heads."""
    children = list(head.children())
    return [*children, *head.parameters(recurse=False), *(part for child in children for part in child.children())]


def add_results(results, head, new):
    """Add a head's results to those of the step.

    Raises:
        UserError: another result has the same name, or a head of ``--loss_names`` returns no loss.
    """
    repeated = sorted(results.keys() & new.keys())
    if repeated:
        raise UserError(f"{type(head).__module__}.{type(head).__name__} returns '{repeated[0]}', which another head "
                        'also returns: rename it in one of them')
    if head.is_named and not any(name.endswith('_loss') for name in new):
        raise UserError(f"the loss '{head.names[0]}' is named in --loss_names, and {type(head).__module__} returns "
                        f"nothing whose name ends in _loss, only {', '.join(new) or 'nothing'}")
    results.update(new)


def total_loss(results):
    """Sum the entries whose names end in ``_loss``."""
    return sum(value for name, value in results.items() if name.endswith('_loss'))


def compile_blocks(model, device):
    """Compile the transformer blocks in place.

    Blocks of the same shape share their code. Blocks that read captions are compiled once for all lengths.

    Raises:
        UserError: PyTorch finds no compiler.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # the compilers' errors have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'--compile: PyTorch cannot compile here ({reason}); leave it out, or install a C++ '
                        'compiler') from None
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, COMPILED_VARIANTS)
    for block, varying_length in model.blocks():
        block.compile(dynamic=True if varying_length else None)


def load_matching_head_weights(model, source):
    """Load the weights of heads from the checkpoint that training starts from, if name and shape match."""
    own, saved = model.state_dict(), model.backbone.head_weights
    matching = {name: value for name, value in saved.items() if name in own and value.shape == own[name].shape}
    if saved:
        with torch.no_grad():
            for name, value in matching.items():
                own[name].copy_(value)
        unused = [name for name in saved if name not in matching]
        skipped = f'; skipped: {abbreviate(unused)}' if unused else ''
        logger.info('weights of heads from %s: %s%s', source, abbreviate(matching) or 'none', skipped)


def build_without_pretrained(args, num_classes, backbone, weights):
    """Build the model for ``weights`` that the caller loads next, without the files of ``--pretrain_choice``.

    A learned temperature starts from the pretrained one if ``weights`` has none.

    Returns:
        The :class:`RetrievalModel`; None if it needs those files.
    """
    if args.pretrain_choice.startswith('scratch:') or not backbone.matches_state_dict(weights):
        return None
    random_state, activation = torch.get_rng_state(), args.activation
    model = RetrievalModel(args, num_classes, backbone.build(args, weights))
    scale, own = weights.get('logit_scale'), model.state_dict().get('logit_scale')
    if own is None or scale is not None and scale.shape == own.shape:
        return model
    torch.set_rng_state(random_state)      # the caller builds the model again, with the same random numbers
    args.activation = activation
    return None


def build_model(args, num_classes, state_dict=None, replaced_by=None):
    """Build the model that the options describe, on the CPU.

    Args:
        args: the options. For training, the encoders start from ``--pretrain_choice``. For testing
            (``args.training`` false) a checkpoint replaces them, so only their shape is looked up.
        num_classes: number of training identities.
        state_dict: the state dict of a trained model. It determines the shape, and its weights are loaded strictly.
        replaced_by: the weights of ``--init_from`` or ``--resume``, which the caller loads next. The files of
            ``--pretrain_choice`` are read only if the model needs something that these weights lack.
    """
    backbone, model = backbone_class(args), None
    if state_dict is not None:
        refuse_other_family(backbone, state_dict, args.config.model.weights)
    elif replaced_by is not None:
        replaced_by = add_run_prefix(replaced_by)
        refuse_other_family(backbone, replaced_by, args.resume_ckpt_file if args.resume else args.init_from)
        model = build_without_pretrained(args, num_classes, backbone, replaced_by)
    is_pretrained = model is None and state_dict is None
    model = model or RetrievalModel(args, num_classes, backbone.build(args, state_dict))
    load_matching_head_weights(model, args.pretrain_choice)
    if args.training and is_pretrained:
        model.after_weights_loaded()
    if args.compile and args.training:
        compile_blocks(model, pick_device(args.device))
    if state_dict is not None:
        from utils.checkpoint import load_weights
        load_weights(model, state_dict)
    return model

"""The retrieval model: encoders, embeddings, and the heads that ``--loss_names`` names."""
import logging

import torch

from model.backbones import backbone_class, refuse_other_family
from model.clip_model import MLP, ResidualAttentionBlock, Transformer
from model.compatibility import validate_distributed, validate_micro_batch, validate_needs
from model.compile import compile_blocks
from model.embeddings import compute_extra_embeddings, concatenate_embeddings, list_embedding_parts, refine_embedding
from model.encoded_batch import SHARED_EMBEDDING, EncodedBatch
from model.freezing import freeze_parameters
from model.heads import (
    AddsEmbedding, HasPairState, HasReferenceNames, PreparesOnHost, RefinesEmbedding, TransformsBatch, UsesAllGather,
    describe_head,
)
from model.loss_names import active_heads, parse_loss_names
from model.model_with_heads import ModelWithHeads
from model.tunings import apply_tuning, tuning_class
from utils import precision
from utils.batch_shard import WHOLE_BATCH, GlobalBatch
from utils.checkpoint import add_run_prefix
from utils.comm import get_world_size, pick_device
from utils.errors import UserError, abbreviate

logger = logging.getLogger('Pedestal.model')

ENCODER_SEED_KEY = 0    # of the random numbers of the encoders, for utils.batch_shard


class RetrievalModel(ModelWithHeads):
    """Image and text encoders with the heads of ``--loss_names``.

    A training step calls :meth:`prepare_on_host`, :meth:`trim_padding` and :meth:`forward`. Evaluation calls
    :meth:`encode_image` and :meth:`encode_text`.

    Args:
        args: the options.
        num_classes: number of training identities.
        backbone: a :class:`~model.backbones.Backbone`.

    Attributes:
        pair_values: {name: [b, width]}, the new values of the latest batch's pairs (:class:`HasPairState`).
    """

    def __init__(self, args, num_classes, backbone):
        tuning = apply_tuning(tuning_class(args), args, backbone)
        super().__init__(backbone)
        self.tuning = tuning
        self.pair_values = {}
        if args.freeze_conv1:
            backbone.freeze_patches()
        self.embed_dim, self.image_stats = backbone.embed_dim, backbone.image_stats(args)
        self.image_width, self.text_width = backbone.image_width, backbone.text_width
        self.vocab_size, self.mask_id = backbone.vocab_size, backbone.mask_id
        self.num_classes = num_classes
        self.temperature = args.temperature
        self.amp = args.amp
        self.masked_token_rates = args.masked_token_rate, args.masked_token_unchanged_rate
        self._build_heads(args)
        if args.freeze and args.training:
            self.frozen_names, self.frozen_norms = freeze_parameters(self, args.freeze)
        self._collect_needs()
        if args.micro_batch and args.training:
            validate_micro_batch(backbone, self.heads)
        if get_world_size() > 1 and args.training:
            validate_distributed(backbone, self.heads)
        backbone.set_grad_checkpoint(args.grad_checkpoint)
        for part in self.modules():
            if isinstance(part, Transformer):       # also the cross encoder of heads
                part.grad_checkpoint = args.grad_checkpoint
            if isinstance(part, MLP):
                part.lean = True

    def _build_heads(self, args):
        classes, named = active_heads(args), parse_loss_names(args.loss_names, self.backbone.name, args.tuning)
        for head in classes:
            validate_needs(head, self.backbone)
        # A tuple, not a ModuleList: the parts of the heads are registered under their own names.
        self.heads = tuple(head(args, self) for head in classes)
        for head in self.heads:
            head.is_named = type(head) in named
            self.register_parts(head)

    def _collect_needs(self):
        """Collect what the heads need of the encoders, and the embeddings and names that they add."""
        self.needs = {need for head in self.heads for need in head.needs}
        self.reference_copies, self.reference_names = {}, {}
        for head in self.heads_with(HasReferenceNames):
            self.reference_copies.update(head.reference_copies)
            self.reference_names.update(head.reference_names)
        self.heads_adding_embeddings = self.heads_with(AddsEmbedding)
        self.embedding_parts = list_embedding_parts(self.heads_adding_embeddings, self.embed_dim)
        self.refines_embeddings = bool(self.heads_with(RefinesEmbedding))
        self.embeddings_read_padding = self.refines_embeddings or any(
            head.embedding_reads_padding for head in self.heads_adding_embeddings)
        self.embeddings_need_attention = any(head.embedding_needs_attention for head in self.heads_adding_embeddings)
        self.reads_padding = self.embeddings_read_padding or any(head.reads_padding for head in self.heads) or bool(
            self.needs & {'text_tokens', 'masked_text_tokens', 'text_attention'})

    def trim_padding(self, caption_ids):
        """Trim captions [B, L] on the CPU to the longest one, rounded up to a multiple of 8.

        Captions are not trimmed if a head reads padding in training, or if the computation of an embedding reads it in
        evaluation. Otherwise trimming changes no result, because no word attends to padding. Captions of a backbone
        that ``trims_to_longest`` always get the length of the longest one.
        """
        if self.backbone.trims_to_longest:
            return caption_ids[:, :int(self.backbone.lengths(caption_ids).max())]
        keeps_padding = self.reads_padding if self.training else self.embeddings_read_padding
        if keeps_padding:
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

    def forward(self, batch, shard=WHOLE_BATCH):
        """Compute the losses and metrics of a batch.

        With several processes, heads that read only embeddings get those of the global batch. The other heads get this
        rank's rows; their results are weighted and summed over ranks.

        Args:
            batch: ``{name: tensor}`` on the model's device, with normalized images; this rank's rows.
            shard: where these rows are in the global batch (:mod:`utils.batch_shard`).

        Returns:
            ``{'temperature': ..., 'sdm_loss': ..., 'img_acc': ...}``, scalars of the global batch. ``pair_values`` then
            has the new values of the batch's pairs.
        """
        batch = self.transform_batch(batch, shard)
        with self.autocast():
            with shard.per_rank_rng(ENCODER_SEED_KEY):
                encoded = self.encode(batch)
            encoded.shard = shard
            self.pair_values = self.update_pair_values(encoded, batch)
            global_batch = shard.global_batch(batch)
            results = self.compute_embedding_losses(self.gather_embeddings(encoded), global_batch)
            results.update(self.compute_token_losses(encoded, batch, global_batch, shard))
        return self.collect_results(results, shard)

    def transform_batch(self, batch, shard=WHOLE_BATCH):
        """Return the batch after the changes of :class:`TransformsBatch` heads."""
        batch = self.add_start_values(batch)
        for head in self.heads_with(TransformsBatch):
            batch = head.transform_batch(batch, self, shard)
        return batch

    def add_start_values(self, batch):
        """Add the values of pairs (:class:`HasPairState`) before their first step, unless the batch has values."""
        pids = batch['pids']
        missing = {name: state for head in self.heads_with(HasPairState)
                   for name, state in head.pair_states.items() if name not in batch}
        return {**batch, **{name: torch.full((len(pids), state.width), state.start, device=pids.device)
                            for name, state in missing.items()}}

    @torch.no_grad()
    def update_pair_values(self, encoded, batch):
        """Compute the new values of a batch's pairs: {name: [b, width]} of all :class:`HasPairState` heads."""
        return {name: values for head in self.heads_with(HasPairState)
                for name, values in head.update_pair_state(encoded, batch).items()}

    def autocast(self):
        """Return the autocast context of the forward pass, for the device of the parameters."""
        device = next(self.parameters()).device
        dtype = precision.amp_dtype(self.amp, device)
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def encode(self, batch):
        """Run each encoder once and return an :class:`EncodedBatch`.

        The text encoder runs a second time only if a head needs the masked captions ``mlm_ids`` next to the captions.
        """
        needs_image_map = self.embeddings_need_attention or 'image_attention' in self.needs
        needs_text_map = self.embeddings_need_attention or 'text_attention' in self.needs
        images, caption_ids = batch['images'], batch['caption_ids']
        image_tokens, image_attention, image_routing = self.encode_tokens('image', images, needs_image_map)
        text_tokens, text_attention, text_routing = self.encode_tokens('text', caption_ids, needs_text_map)
        masked_text_tokens = None
        if 'masked_text_tokens' in self.needs:
            masked_text_tokens = text_tokens
            if 'mlm_ids' in batch:      # else the captions themselves are masked (--caption_masking inplace)
                masked_text_tokens, _ = self.backbone.encode_text(batch['mlm_ids'])
        image_extras, text_extras = {}, {}
        added_images = self.compute_extra_embeddings('image', image_tokens, None, image_attention)
        added_texts = self.compute_extra_embeddings('text', text_tokens, caption_ids, text_attention)
        return EncodedBatch(
            image=self.image_embedding(image_tokens, image_extras), image_extras=image_extras,
            text=self.text_embedding(text_tokens, caption_ids, text_extras), text_extras=text_extras,
            image_tokens=image_tokens if 'image_tokens' in self.needs else None,
            text_tokens=text_tokens if 'text_tokens' in self.needs else None, masked_text_tokens=masked_text_tokens,
            image_attention=image_attention, text_attention=text_attention, image_routing=image_routing,
            text_routing=text_routing, encoder=self.backbone.encoder, embed_image=self.embed_image,
            embed_text=self.embed_text, embed_text_all=self.embed_text_all,
            extra_embeddings={name: (added_images[name], added_texts[name]) for name in added_images})

    def encode_tokens(self, side, inputs, need_map=False):
        """Run the ``'image'`` or ``'text'`` encoder.

        Returns:
            Tokens [B, N, D], the attention map [B, N, N] or None, and the routing [B, blocks, ...] of ``--tuning`` or
            None.
        """
        encode = {'image': self.backbone.encode_image, 'text': self.backbone.encode_text}[side]
        if not self.tuning.has_routing:     # only backbones that such a tuning fits take the argument routing
            return (*encode(inputs, need_map), None)
        routing = []
        tokens, attention = encode(inputs, need_map, routing)
        return tokens, attention, torch.stack(routing, dim=1)

    def encode_without_tokens(self, batch):
        """Run each encoder once and return an :class:`EncodedBatch` for the heads that read embeddings only."""
        image_tokens, _, image_routing = self.encode_tokens('image', batch['images'])
        image = self.image_embedding(image_tokens)
        text_tokens, _, text_routing = self.encode_tokens('text', batch['caption_ids'])
        text = self.text_embedding(text_tokens, batch['caption_ids'])
        return EncodedBatch(image, text, image_routing=image_routing, text_routing=text_routing)

    def image_embedding(self, tokens, extras=None):
        """Pool image tokens and let the heads refine the result: [B, N, D] -> [B, D] float32."""
        embedding = self.backbone.image_embedding(tokens)
        return refine_embedding(self.heads_with(RefinesEmbedding), embedding, tokens[:, 1:], extras)

    def text_embedding(self, tokens, caption_ids, extras=None):
        """Pool text tokens and let the heads refine the result: [B, L, D], [B, L] -> [B, D] float32."""
        embedding = self.backbone.text_embedding(tokens, caption_ids)
        return refine_embedding(self.heads_with(RefinesEmbedding), embedding, tokens, extras)

    def compute_extra_embeddings(self, side, tokens, caption_ids, attention):
        """Compute the embeddings that heads add to the shared one: {name: [B, E] float32}."""
        return compute_extra_embeddings(self.heads_adding_embeddings, side, tokens, caption_ids, attention)

    def embed_image(self, images):
        """Compute the embedding that all heads share: normalized images [B, 3, H, W] -> [B, D] float32."""
        return self.image_embedding(self.backbone.encode_image(images)[0])

    def embed_text(self, caption_ids):
        """Compute the embedding that all heads share: token ids [B, L] -> [B, D] float32."""
        return self.text_embedding(self.backbone.encode_text(caption_ids)[0], caption_ids)

    def embed_image_all(self, images):
        """Compute all embeddings of normalized images [B, 3, H, W]: {name: [B, E] float32}, the shared one first."""
        tokens, attention = self.backbone.encode_image(images, self.embeddings_need_attention)
        extra = self.compute_extra_embeddings('image', tokens, None, attention)
        return {SHARED_EMBEDDING: self.image_embedding(tokens), **extra}

    def embed_text_all(self, caption_ids):
        """Compute all embeddings of token ids [B, L]: {name: [B, E] float32}, the shared one first."""
        tokens, attention = self.backbone.encode_text(caption_ids, self.embeddings_need_attention)
        extra = self.compute_extra_embeddings('text', tokens, caption_ids, attention)
        return {SHARED_EMBEDDING: self.text_embedding(tokens, caption_ids), **extra}

    def gather_embeddings(self, encoded):
        """Return the embeddings of the global batch, given those of this rank. Tokens are not gathered."""
        if encoded.shard is WHOLE_BATCH:
            return encoded
        fields = {name: encoded.shard.all_gather(value) for name, value in encoded.embedding_fields().items()}
        return self.build_embedding_batch(fields, encoded.shard)

    def build_embedding_batch(self, fields, shard):
        """Return an :class:`EncodedBatch` without tokens, given its :meth:`~EncodedBatch.embedding_fields`."""
        return EncodedBatch(**fields, encoder=self.backbone.encoder, embed_image=self.embed_image,
                            embed_text=self.embed_text, embed_text_all=self.embed_text_all, shard=shard)

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
                is_part = batch is not global_batch     # on one process, without micro batches, both are the same
                if is_part and results[head]:
                    # A rank with a placeholder row also computes the weight, because that may gather fields.
                    weight = head.micro_batch_weight(batch, global_batch) * (not is_placeholder)
                    results[head] = {name: weight * value for name, value in results[head].items()}
        return results

    def collect_results(self, results_by_head, shard=WHOLE_BATCH):
        """Collect the results of all heads in the order of ``--loss_names``.

        With several processes, heads that read tokens return a part of the global batch's results. The parts are summed
        over ranks.
        """
        heads = [head for head in self.heads if head.uses_tokens and results_by_head[head]]
        if shard is not WHOLE_BATCH and heads:
            parts = [value.float() for head in heads for value in results_by_head[head].values()]
            sums = iter(shard.all_reduce_sum(torch.stack(parts)).unbind())
            results_by_head = {**results_by_head, **{head: dict(zip(results_by_head[head], sums)) for head in heads}}
        results = {'temperature': torch.full((), self.temperature)}
        for head in self.heads:
            add_results(results, head, results_by_head[head])
        return results

    def encode_image(self, images):
        """Embed normalized images [B, 3, H, W] for ranking: [B, D] float32, not of unit length."""
        with self.autocast():
            return concatenate_embeddings(self.embedding_parts, self.embed_image_all(images))

    def encode_text(self, caption_ids):
        """Embed token ids [B, L] for ranking: [B, D] float32, not of unit length."""
        with self.autocast():
            return concatenate_embeddings(self.embedding_parts, self.embed_text_all(caption_ids))

    def blocks(self):
        """Return the blocks of encoders and cross encoder: ``[(module, whether the length of its inputs varies)]``."""
        blocks = self.backbone.blocks()
        known = {block for block, _ in blocks}
        return blocks + [(part, True) for part in self.modules()
                         if isinstance(part, ResidualAttentionBlock) and part not in known]


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
    random_state = torch.get_rng_state()
    model = RetrievalModel(args, num_classes, backbone.build(args, weights))
    scale, own = weights.get('logit_scale'), model.state_dict().get('logit_scale')
    if own is None or scale is not None and scale.shape == own.shape:
        return model
    torch.set_rng_state(random_state)      # the caller builds the model again, with the same random numbers
    return None


def build_model(args, num_classes, state_dict=None, weights_to_load=None):
    """Build the model that the options describe, on the CPU.

    Args:
        args: the options. For training, the encoders start from ``--pretrain_choice``. For testing
            (``args.training`` false) a checkpoint replaces them, so only their shape is looked up.
        num_classes: number of training identities.
        state_dict: the state dict of a trained model. It determines the shape, and its weights are loaded strictly.
        weights_to_load: the weights of ``--init_from`` or ``--resume``, which the caller loads next. The files of
            ``--pretrain_choice`` are read only if the model needs something that these weights lack.
    """
    backbone, model = backbone_class(args), None
    if state_dict is not None:
        refuse_other_family(backbone, state_dict, args.config.model.weights)
    elif weights_to_load is not None:
        weights_to_load = add_run_prefix(weights_to_load)
        refuse_other_family(backbone, weights_to_load, args.resume_ckpt_file if args.resume else args.init_from)
        model = build_without_pretrained(args, num_classes, backbone, weights_to_load)
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

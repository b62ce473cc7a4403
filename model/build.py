"""The retrieval model: encoders, an embedding, and the heads that ``--loss_names`` asks for."""
import logging
from dataclasses import dataclass, field
from typing import NamedTuple, Optional
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from model.backbones import backbone_class, refuse_other_family
from model.clip_model import MLP, ResidualAttentionBlock, Transformer
from model.heads import Head, active_heads, parse_loss_names, describe_head, head_error_context
from utils import precision
from utils.checkpoint import as_a_runs, some
from utils.comm import get_world_size, pick_device
from utils.errors import UserError
from utils.batch_shard import WHOLE_BATCH, WholeBatch

logger = logging.getLogger('Pedestal.model')

VARIANTS = 64   # of a block that may be compiled: images, captions, cross encoder; learning or not; with maps; last, smaller batches


@dataclass
class Encoded:
    """What the encoders made of a batch, for the heads. Tokens and attention are there when a head's ``needs`` name them;
    embeddings are float32, tokens are in the precision of the forward pass."""
    image: torch.Tensor                                # [B, D] the image's embedding
    text: torch.Tensor                                 # [B, D] the caption's embedding
    image_tokens: Optional[torch.Tensor] = None        # [B, N, D] class token first
    text_tokens: Optional[torch.Tensor] = None         # [B, L, D]
    masked_text_tokens: Optional[torch.Tensor] = None  # [B, L, D] of the caption with masks for words
    image_attention: Optional[torch.Tensor] = None     # [B, N, N] last block, mean over heads
    text_attention: Optional[torch.Tensor] = None      # [B, L, L] last block, mean over heads
    encoder: Optional[nn.Module] = None                # the encoders themselves, for a head with a pass of its own
    embed_image: Optional[Callable] = None             # images -> [B, D], for further images that are embedded like the batch's
    embed_text: Optional[Callable] = None              # token ids -> [B, D]
    added: dict = field(default_factory=dict)          # {name: (images' [B, E], captions' [B, E])} of embeddings that heads add
    image_extras: dict = field(default_factory=dict)   # what Head.refine left there when the images were embedded
    text_extras: dict = field(default_factory=dict)    # and the captions
    shard: WholeBatch = WHOLE_BATCH                               # the processes that have the batch's other rows (utils/batch_shard.py)


class Part(NamedTuple):
    """One of several embeddings that make up the one that is ranked."""
    name: str
    columns: slice   # where it stands in it
    weight: float    # of its cosine


BASE = 'BGE'   # what RDE calls the embedding that all heads share, where another one stands beside it


class RetrievalModel(nn.Module):
    """Parameters carry the official names: the encoders' are their backbone's (CLIP's are ``base_model.*``), a head's part is named as in
    its file.

    ``num_classes`` counts the training identities, ``backbone`` is a :class:`~model.backbones.Backbone`.
    """

    def __init__(self, args, num_classes, backbone):
        super().__init__()
        self._shared = {}
        self.__dict__['backbone'] = backbone     # no part: its parts are the model's, under names without the backbone's
        self._register(backbone)
        if args.freeze_conv1:
            backbone.freeze_patches()
        self.embed_dim, self.image_width, self.text_width = backbone.embed_dim, backbone.image_width, backbone.text_width
        self.vocab_size, self.mask_id, self.pixels = backbone.vocab_size, backbone.mask_id, backbone.pixels(args)
        self.num_classes = num_classes
        self.temperature = args.temperature
        self.amp = args.amp
        self.masked_token_rates = args.masked_token_rate, args.masked_token_unchanged_rate
        classes = active_heads(args)
        for head in classes:
            self._refuse_misfit(head)
        named = parse_loss_names(args.loss_names, backbone.name)
        # A plain tuple: what the heads own is registered below, under names without the head's.
        self.heads = tuple(head(args, self) for head in classes)
        for head in self.heads:
            head.is_named = type(head) in named
            self._register(head)
        self.needs = {need for head in self.heads for need in head.needs}
        self.reference_copies = {copy: name for head in self.heads for copy, name in head.reference_copies.items()}
        self.reference_names = {ours: theirs for head in self.heads for ours, theirs in head.reference_names.items()}
        self.adding = tuple(head for head in self.heads if head.embedding)
        self.parts = self._parts()
        self.refines = any(type(head).refine is not Head.refine or head.embedding and head.embedding_reads_padding for head in self.heads)
        self.attends = any(head.embedding_needs_attention for head in self.adding)
        self.reads_padding = self.refines or any(head.reads_padding for head in self.heads) or bool(
            self.needs & {'text_tokens', 'masked_text_tokens', 'text_attention'})
        if args.micro_batch and args.training:
            self._refuse_pieces('--micro_batch', Head.micro_batch_unsupported, ' (--grad_checkpoint saves memory with every loss)')
        if get_world_size() > 1 and args.training:
            self._refuse_pieces('training with several processes', Head.distributed_unsupported, '')
        backbone.set_grad_checkpoint(args.grad_checkpoint)
        for part in self.modules():
            if isinstance(part, Transformer):       # the heads' cross encoder, too
                part.grad_checkpoint = args.grad_checkpoint
            if isinstance(part, MLP):
                part.lean = True

    def shared(self, cls, *settings):
        """The one ``cls(*settings)`` of this model, for heads that share a part."""
        if cls not in self._shared:
            part = cls(*settings)
            self._register(part)
            self._shared[cls] = settings, part
        made_with, part = self._shared[cls]
        assert made_with == settings, f'{cls.__name__} is shared, with {made_with}; asked for with {settings}'
        return part

    def _register(self, owner):
        shared = {id(part) for _, whole in self._shared.values() for part in (whole, *whole.children())}
        for name, part in [*owner.named_children(), *owner.named_parameters(recurse=False)]:
            if id(part) not in shared:
                if owner is not self.backbone and (part is self or holds(part, self.backbone.encoder)):
                    raise UserError(f'{describe_head(owner)}.{name} is the model itself or its encoder: a head keeps copies (copy.deepcopy) and '
                                    'parts of its own; hooks are given the model')
                if hasattr(self, name):
                    raise UserError(f'{describe_head(owner)}.{name}: the model has another part of that name')
                setattr(self, name, part)
        if any(True for _ in owner.buffers(recurse=False)):
            raise UserError(f'{describe_head(owner)} keeps a buffer of its own: put it into a module that the head owns, under whose name '
                            'it is saved')

    def _parts(self):
        """Where the embeddings stand in the one that is ranked: a tuple of :class:`Part`, none where there is one embedding only."""
        if not self.adding:
            return ()
        widths = [(BASE, self.embed_dim, 1.0)]
        for head in self.adding:
            if not isinstance(head.embedding_width, int):
                raise UserError(f"{describe_head(head)} adds the embedding '{head.embedding}' and does not say how wide it is (embedding_width)")
            widths.append((head.embedding, head.embedding_width, head.embedding_weight))
        ends = torch.tensor([width for _, width, _ in widths]).cumsum(0).tolist()
        return tuple(Part(name, slice(end - width, end), weight) for (name, width, weight), end in zip(widths, ends))

    @property
    def training_only(self):
        """The names in the state dict that training alone needs (:attr:`~model.heads.Head.training_only_parts`)."""
        parts = tuple(f'{part}.' for head in self.heads for part in head.training_only_parts)
        return {name for name in self.state_dict() if parts and f'{name}.'.startswith(parts)}

    def after_weights_loaded(self):
        """Tell the heads that a new run's weights are there."""
        for head in self.heads:
            head.after_weights_loaded(self)

    def owners_of(self, name):
        """The active heads whose own or shared part the parameter ``name`` is; none for the encoders'."""
        part = getattr(self, name.split('.')[0])
        return [head for head in self.heads if any(part is own for own in owned_by(head))]

    def _refuse_misfit(self, head):
        """Raise UserError where a head needs what the backbone doesn't give."""
        loss, name = f"the loss '{head.names[0] if head.names else head.__name__}'", self.backbone.name
        missing = [need for need in head.needs if need not in self.backbone.gives]
        if missing:
            why = self.backbone.lacks.get(missing[0], f'the backbone {name} gives none')
            raise UserError(f"{loss} reads {missing[0].replace('_', ' ')} and {why}: leave it out of --loss_names or use "
                            f'{self.backbone.instead}')
        reads_tokens = bool(head.needs) or head.refine is not Head.refine
        if reads_tokens and not head.accepts_any_width and {self.image_width, self.text_width} != {self.embed_dim}:
            raise UserError(f"{loss} reads tokens in the embeddings' space and the backbone {name} has image tokens {self.image_width}, "
                            f'text tokens {self.text_width} and embeddings {self.embed_dim} wide: leave it out of --loss_names or use '
                            f'{self.backbone.instead}')

    def _refuse_pieces(self, what, why, instead):
        reason = self.backbone.micro_batch_unsupported()
        if reason:
            raise UserError(f'{what} cannot split a batch for {reason}')
        for head in self.heads:
            reason = getattr(head, why.__name__)()
            if reason:
                raise UserError(f"{what} cannot split a batch for the loss '{head.names[0]}': {reason}; leave it out{instead}")

    def train(self, mode=True):
        for part in [*self.heads, *(part for _, part in self._shared.values())]:   # whose children are the model's own
            part.training = mode
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        """What moves and casts parameters. Where it makes new ones, heads are to keep reading the model's."""
        super()._apply(fn, recurse)
        for head in self.heads:
            for name in head._parameters:
                head._parameters[name] = self._parameters[name]
        return self

    def blocks(self):
        """The blocks of the encoders and of the heads' cross encoder: ``[(module, whether its inputs change their length)]``."""
        of_encoders = self.backbone.blocks()
        known = {block for block, _ in of_encoders}
        return [*of_encoders,
                *((part, True) for part in self.modules() if isinstance(part, ResidualAttentionBlock) and part not in known)]

    def autocast(self):
        """The precision of the forward pass, for the device that the parameters are on."""
        device = next(self.parameters()).device
        dtype = precision.amp_dtype(self.amp, device)
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def image_embedding(self, tokens, extras=None):
        """[B, N, D] -> [B, D] float32: the backbone's embedding, as the heads refine it."""
        return self._refined(self.backbone.image_embedding(tokens), tokens[:, 1:], extras)

    def text_embedding(self, tokens, caption_ids, extras=None):
        """[B, L, D], [B, L] -> [B, D] float32: the backbone's embedding, as the heads refine it."""
        return self._refined(self.backbone.text_embedding(tokens, caption_ids), tokens, extras)

    def _refined(self, embedding, tokens, extras):
        for head in self.heads:
            refined = head.refine(embedding, tokens, {} if extras is None else extras)
            if refined.shape != embedding.shape:
                raise UserError(f'{describe_head(head)}: refine turns embeddings {list(embedding.shape)} into {list(refined.shape)}, which other '
                                "heads cannot read: it keeps their shape; a head's own embedding is added beside them by embed()")
            embedding = refined
        return embedding

    def embed_image(self, images):
        """Normalised images [B, 3, H, W] -> [B, D] float32: the embedding that all heads share, without those that heads add."""
        return self.image_embedding(self.backbone.encode_image(images)[0])

    def embed_text(self, caption_ids):
        """Token ids [B, L] -> [B, D] float32: the embedding that all heads share, without those that heads add."""
        return self.text_embedding(self.backbone.encode_text(caption_ids)[0], caption_ids)

    def added(self, side, tokens, caption_ids=None, attention=None):
        """{name: [B, E] float32} of the embeddings that heads add."""
        embeddings = {}
        for head in self.adding:
            with head_error_context(head):
                embedding = head.embed(side, tokens, caption_ids, attention if head.embedding_needs_attention else None).float()
            if embedding.shape != (len(tokens), head.embedding_width):
                raise UserError(f"{describe_head(head)}: embed gives {list(embedding.shape)} for a batch of {len(tokens)} {side}s, and its "
                                f'embedding_width is {head.embedding_width}')
            embeddings[head.embedding] = embedding
        return embeddings

    def joined(self, embedding, added):
        """All embeddings of a sample in one, [B, D + E + ...]: the cosine of two of them is the weighted mean of the parts' cosines."""
        if not added:
            return embedding
        parts = [embedding, *added.values()]
        return torch.cat([part.weight ** 0.5 * F.normalize(value, dim=1) for part, value in zip(self.parts, parts)], dim=1)

    def without_padding(self, caption_ids):
        """Captions [B, L], on the CPU, cut to the batch's longest (to a multiple of 8) where nothing reads padding: no active head
        in training, no refined embedding in evaluation. Exact, for no word attends to padding."""
        if self.reads_padding if self.training else self.refines:
            return caption_ids
        longest = int(self.backbone.lengths(caption_ids).max())
        return caption_ids[:, :min(-(-longest // 8) * 8, caption_ids.shape[1])]

    def looked_up(self, batch):
        """What :meth:`Head.prepare_on_host` of all heads finds in a batch that is still on the CPU."""
        return {name: value for head in self.heads for name, value in head.prepare_on_host(batch).items()}

    def encode_image(self, images):
        """Normalised images [B, 3, H, W] -> embeddings [B, D], float32, not normalised."""
        with self.autocast():
            tokens, attention = self.backbone.encode_image(images, self.attends)
            return self.joined(self.image_embedding(tokens), self.added('image', tokens, None, attention))

    def encode_text(self, caption_ids):
        """Token ids [B, L] -> embeddings [B, D], float32, not normalised."""
        with self.autocast():
            tokens, attention = self.backbone.encode_text(caption_ids, self.attends)
            return self.joined(self.text_embedding(tokens, caption_ids), self.added('text', tokens, caption_ids, attention))

    def encode(self, batch):
        """The batch's :class:`Encoded`: each encoder once, and a second text pass only where captions are kept whole
        beside their masked copy ``mlm_ids``."""
        image_tokens, image_attention = self.backbone.encode_image(batch['images'], self.attends or 'image_attention' in self.needs)
        text_tokens, text_attention = self.backbone.encode_text(batch['caption_ids'], self.attends or 'text_attention' in self.needs)
        masked_text_tokens = None
        if 'masked_text_tokens' in self.needs:
            masked_text_tokens = text_tokens
            if 'mlm_ids' in batch:
                masked_text_tokens, _ = self.backbone.encode_text(batch['mlm_ids'])
        image_extras, text_extras = {}, {}
        of_images = self.added('image', image_tokens, None, image_attention)
        of_captions = self.added('text', text_tokens, batch['caption_ids'], text_attention)
        return Encoded(
            image=self.image_embedding(image_tokens, image_extras), image_extras=image_extras,
            text=self.text_embedding(text_tokens, batch['caption_ids'], text_extras), text_extras=text_extras,
            image_tokens=image_tokens if 'image_tokens' in self.needs else None,
            text_tokens=text_tokens if 'text_tokens' in self.needs else None, masked_text_tokens=masked_text_tokens,
            image_attention=image_attention, text_attention=text_attention, encoder=self.backbone.encoder,
            embed_image=self.embed_image, embed_text=self.embed_text,
            added={name: (of_images[name], of_captions[name]) for name in of_images})

    def rewritten(self, batch, shard=WHOLE_BATCH):
        """The batch as :meth:`Head.transform_batch` of all heads leaves it."""
        for head in self.heads:
            batch = head.transform_batch(batch, self, shard)
        return batch

    def forward(self, batch):
        """A batch's losses and read-outs: ``{'sdm_loss': ..., 'img_acc': ..., 'temperature': ...}``, all scalars."""
        batch = self.rewritten(batch)
        with self.autocast():
            encoded = self.encode(batch)
            results = {'temperature': torch.full((), self.temperature)}
            for head in self.heads:
                add_results(results, head, head(encoded, batch))
        return results


def holds(part, module):
    """Whether a module is, or is in, a part (a module or a parameter)."""
    return isinstance(part, nn.Module) and any(inner is module for inner in part.modules())


def owned_by(head):
    """A head's parts, and those of what it shares with others."""
    children = list(head.children())
    return [*children, *head.parameters(recurse=False), *(part for child in children for part in child.children())]


def add_results(results, head, own):
    """Add a head's results to a step's; a name that is there already, or a loss that was asked for and is missing, raises
    :class:`UserError`."""
    again = sorted(results.keys() & own.keys())
    if again:
        raise UserError(f"{type(head).__module__}.{type(head).__name__} returns '{again[0]}', which another head returns too: one of them "
                        'must call it otherwise')
    if head.is_named and not any(name.endswith('_loss') for name in own):
        raise UserError(f"the loss '{head.names[0]}' is named in --loss_names, and {type(head).__module__} returns nothing whose name ends "
                        f"in _loss, only {', '.join(own) or 'nothing'}")
    results.update(own)


def total_loss(results):
    """The sum of every entry whose name ends in ``_loss``."""
    return sum(value for name, value in results.items() if name.endswith('_loss'))


def compile_blocks(model, device):
    """Compile the transformer blocks in place. Blocks of a size share their code, and those that read captions are compiled once
    for all lengths. Raises UserError where PyTorch finds no compiler."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # whatever is missing, the compilers' errors have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'--compile: PyTorch cannot compile here ({reason}); leave it out, or install a C++ compiler') from None
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, VARIANTS)
    for block, changes_length in model.blocks():
        block.compile(dynamic=True if changes_length else None)


def take_leftover(model, source):
    """Weights of heads that were in the file that training starts from: those that the model has, too, and of the same shape."""
    own = model.state_dict()
    taken = {name: value for name, value in model.backbone.leftover.items() if name in own and value.shape == own[name].shape}
    if model.backbone.leftover:
        with torch.no_grad():
            for name, value in taken.items():
                own[name].copy_(value)
        rest = [name for name in model.backbone.leftover if name not in taken]
        logger.info('heads from %s: %s%s', source, some(taken) or 'none', f'; left out: {some(rest)}' if rest else '')


def build_replaced(args, num_classes, backbone, weights):
    """Build the model for ``weights`` that the caller loads next, without the files of ``--pretrain_choice``.

    Random weights come from no file. A learned temperature starts from the pretrained one if ``weights`` have none.

    Returns:
        The :class:`RetrievalModel`; None if it needs those files.
    """
    if args.pretrain_choice.startswith('scratch:') or not backbone.is_of(weights):
        return None
    random_state, activation = torch.get_rng_state(), args.activation
    model = RetrievalModel(args, num_classes, backbone.build(args, weights))
    scale, own = weights.get('logit_scale'), model.state_dict().get('logit_scale')
    if own is None or scale is not None and scale.shape == own.shape:
        return model
    torch.set_rng_state(random_state)      # the model is built again, from the same random numbers
    args.activation = activation
    return None


def build_model(args, num_classes, state_dict=None, replaced_by=None):
    """The model that ``args`` describe, on the CPU.

    For training, the encoders start from ``--pretrain_choice``. For testing (``args.training`` false) a checkpoint is going
    to fill them, so only their shape is looked up. With ``state_dict``, a trained model's, the shape is read off it and
    its weights are loaded, strictly. With ``replaced_by``, the weights of ``--init_from`` or ``--resume`` that the
    caller loads next, the files of ``--pretrain_choice`` are read only if those weights lack what the model needs of them.
    """
    backbone, model = backbone_class(args), None
    if state_dict is not None:
        refuse_other_family(backbone, state_dict, getattr(args, 'checkpoint', None) or 'the checkpoint')
    elif replaced_by is not None:
        replaced_by = as_a_runs(replaced_by)
        refuse_other_family(backbone, replaced_by, args.resume_ckpt_file if args.resume else args.init_from)
        model = build_replaced(args, num_classes, backbone, replaced_by)
    pretrained = model is None and state_dict is None
    model = model or RetrievalModel(args, num_classes, backbone.build(args, state_dict))
    take_leftover(model, args.pretrain_choice)
    if args.training and pretrained:
        model.after_weights_loaded()
    if args.compile and args.training:
        compile_blocks(model, pick_device(args.device))
    if state_dict is not None:
        from utils.checkpoint import load_weights
        load_weights(model, state_dict)
    return model

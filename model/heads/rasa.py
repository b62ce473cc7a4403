"""RaSa (Bai et al., IJCAI 2023): relation- and sensitivity-aware losses of the backbone ``albef``."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model import objectives
from model.heads import ClassifiesPairs, HasSchedule, Head, UsesAllGather
from model.heads.aptm import DrawsNegatives, Temperature
from model.momentum import MomentumEncoder
from model.queue import IdentityQueue
from utils.option_types import non_negative_float


class AlbefMomentumEncoder(MomentumEncoder):
    """The momentum encoder of ALBEF: it follows the encoders before each step's forward pass.

    ALBEF's checkpoint has a momentum encoder. Training starts from it, or else from a copy of the encoders.
    """

    def after_weights_loaded(self, model):
        saved = model.backbone.head_weights
        # The hook is called again after --init_from, which replaces the encoders. The copy then follows them.
        model.backbone.head_weights = {}
        if not any(name.startswith('visual_encoder_m.') for name in saved):
            super().after_weights_loaded(model)


class MatchingHead(nn.Module):
    """Two logits of a token that has read caption and image. The second is higher if they belong together."""

    def __init__(self, width):
        super().__init__()
        self.itm_head = nn.Linear(width, 2)

    def forward(self, tokens):
        """[..., D] -> [..., 2]."""
        return self.itm_head(tokens)


class UnitEmbeddings(NamedTuple):
    """Embeddings of the global batch, [B, D] each and of length 1, and the tokens of this process's images.

    Attributes:
        image: of the images.
        text: of the captions.
        image_tokens: [b, N, D].
    """
    image: torch.Tensor
    text: torch.Tensor
    image_tokens: torch.Tensor


class Negatives(NamedTuple):
    """The drawn negatives of this process's b pairs.

    Attributes:
        images: [b], the row of the global batch whose image each caption gets.
        texts: [b], the row of the global batch whose caption each image gets.
        tokens: [2b, L, D] of the captions with the drawn images, then of the drawn captions with the images.
    """
    images: torch.Tensor
    texts: torch.Tensor
    tokens: torch.Tensor


class AlbefHead(UsesAllGather, Head):
    """Base class of the losses on the backbone albef. They share the passes through the encoders.

    Attributes:
        new_layer: name of a layer that ALBEF does not have; its learning rate has the factor ``--lr_factor``.
    """
    backbone = 'albef'
    accepts_any_width = True
    needs = ('image_tokens', 'text_tokens', 'fusion')
    new_layer = ''

    @classmethod
    def learning_rate(cls, name, lr, weight_decay, args):
        is_new = cls.new_layer and name.startswith(f'{cls.new_layer}.')
        return (args.lr * args.lr_factor if is_new else lr), weight_decay

    def micro_batch_unsupported(self):
        return "ALBEF's losses share passes that compare the whole batch"


class MomentumHead(AlbefHead):
    """Base class of the losses that read the momentum encoder. It encodes the second view of each image."""
    fields = ('second_images',)
    shared_options = ('moco_momentum', 'start_temperature')

    def __init__(self, args, model):
        super().__init__()
        self.temperature = model.shared(Temperature, args.start_temperature)
        self.momentum = model.shared(AlbefMomentumEncoder, model, args.moco_momentum, True)

    def momentum_embeddings(self, encoded, batch):
        """Embed the batch by the momentum encoder, once for all heads: :class:`UnitEmbeddings` without gradient."""
        return encoded.compute_once(embed_by_momentum, batch, self.momentum.backbone)


@torch.no_grad()
def embed_by_momentum(encoded, batch, momentum):
    """Embed the second views and the captions by the momentum encoder: :class:`UnitEmbeddings`."""
    ids = batch['caption_ids']
    with encoded.shard.per_rank_rng():
        image_tokens = momentum.encode_image(batch['second_images'])[0]
        text_tokens = momentum.encode_text(ids)[0]
    image, text = momentum.image_embedding(image_tokens), momentum.text_embedding(text_tokens, ids)
    return UnitEmbeddings(*gather_unit_embeddings(encoded.shard, image, text), image_tokens)


def gather_unit_embeddings(shard, *embeddings):
    """Normalize embeddings [b, D] and gather them from all processes: a list of [B, D]."""
    return [shard.all_gather(F.normalize(embedding.float(), dim=1)) for embedding in embeddings]


def unit_embeddings(encoded):
    """Return the encoders' :class:`UnitEmbeddings` of the global batch."""
    return UnitEmbeddings(*gather_unit_embeddings(encoded.shard, encoded.image, encoded.text), encoded.image_tokens)


def read_pairs(encoded, batch):
    """Read the captions with their images: tokens [b, L, D]."""
    ids = batch['caption_ids']
    with encoded.shard.per_rank_rng():
        return encoded.encoder.read(ids, encoded.encoder.text_mask(ids), encoded.image_tokens)


def read_negatives(encoded, batch, momentum, temperature):
    """Draw a similar image of another identity for each caption, and a similar caption for each image, and read them.

    An image is drawn by the softmax of the caption's similarities with the batch's images by the momentum encoder, and
    a caption in the same way.

    Args:
        encoded: the :class:`~model.encoded_batch.EncodedBatch`.
        batch: {field: tensor}.
        momentum: the :class:`UnitEmbeddings` of the momentum encoder.
        temperature: softmax temperature.

    Returns:
        :class:`Negatives`; None if the global batch shows one identity.
    """
    shard, encoder, online = encoded.shard, encoded.encoder, encoded.compute_once(unit_embeddings)
    pids, ids = shard.all_gather(batch['pids']), batch['caption_ids']
    if bool((pids == pids[0]).all()):
        return None
    with torch.autocast(pids.device.type, enabled=False):
        tables = online.text @ momentum.image.t() / temperature, online.image @ momentum.text.t() / temperature
    images, texts = (shard.local_rows(torch.multinomial(objectives.negative_probabilities(table, pids), 1).squeeze(1))
                     for table in tables)
    ids = torch.cat([ids, shard.all_gather(ids)[texts]])                                             # [2b, L]
    image_tokens = torch.cat([shard.all_gather(encoded.image_tokens)[images], encoded.image_tokens])
    with shard.per_rank_rng():
        return Negatives(images, texts, encoder.read(ids, encoder.text_mask(ids), image_tokens))


def count_over_ranks(values, batch, shard):
    """Sum the entries of a bool tensor over all ranks. A placeholder row does not count."""
    return shard.all_reduce_sum(values.sum().float() * bool(shard.local_size(batch)))


class SoftTargetHead(HasSchedule, MomentumHead):
    """Base class of the losses with soft targets of the momentum encoder.

    Attributes:
        alpha: the weight of the soft targets. It rises from 0 to ``--softlabel_ratio`` in the first epoch.
    """
    shared_options = (*MomentumHead.shared_options, 'softlabel_ratio')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.ratio = self.alpha = args.softlabel_ratio

    def before_step(self, epoch, step, steps):
        self.alpha = self.ratio * (min(1, (step - 1) / steps) if epoch == 1 else 1)


class Contrast(SoftTargetHead):
    """Contrast within and across images and captions, with a momentum encoder and queues (RaSa, after ALBEF).

    Images and captions are compared with those of the batch and of earlier batches, which the momentum encoder
    embedded. Samples of one identity are positives. A part of the targets comes from the momentum encoder. The loss is
    the mean of objectives.distilled_contrast from images to captions, captions to images, images to images and
    captions to captions. The temperature is learned.
    """
    names = ('cl',)
    shared_options = (*SoftTargetHead.shared_options, 'moco_queue')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--cl_loss_weight', type=non_negative_float, default=0.5,
                            help='weight of the loss cl (RaSa)')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.weight = args.cl_loss_weight
        self.queue = model.shared(ContrastQueue, args.moco_queue, model.embed_dim)

    def forward(self, encoded, batch):
        online, momentum = encoded.compute_once(unit_embeddings), self.momentum_embeddings(encoded, batch)
        pids = encoded.shard.all_gather(batch['pids'])
        image_keys, text_keys, key_pids = self.queue.extend_with_batch(momentum.image, momentum.text, pids)
        is_positive = pids[:, None] == key_pids                                                       # [B, B + Q]
        image, text = (online.image, momentum.image), (online.text, momentum.text)
        losses = [objectives.distilled_contrast(*rows, keys, is_positive, temperature=self.temperature.temp,
                                                alpha=self.alpha)
                  for rows, keys in ((image, text_keys), (text, image_keys), (image, image_keys), (text, text_keys))]
        return {'cl_loss': self.weight * sum(losses) / 4, 'temp': self.temperature.temp.detach().clone()}


class ContrastQueue(IdentityQueue):
    """The queue of ``cl``. The batch of a step is appended after the step."""

    newest = None       # images [B, D], captions [B, D] and identities [B] of the step

    def extend_with_batch(self, images, texts, pids):
        """Return the keys of the batch and of the queue, and store the batch, which :meth:`after_step` appends.

        Args:
            images: [B, D] by the momentum encoder.
            texts: [B, D], the same for captions.
            pids: [B], their identities.

        Returns:
            ``(images [B + Q, D], captions [B + Q, D], identities [B + Q])``.
        """
        self.newest = images, texts, pids
        return (torch.cat([images, self.image_queue.t()]), torch.cat([texts, self.text_queue.t()]),
                torch.cat([pids, self.idx_queue[0]]))

    def after_step(self, model):
        self.append(*self.newest)


class NegativesHead(DrawsNegatives, MomentumHead):
    """Base class of the losses that compare pairs with drawn negatives."""
    shared_options = (*MomentumHead.shared_options, 'random_negative_epochs')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.random_negative_epochs = args.random_negative_epochs
        self.matching = model.shared(MatchingHead, model.text_width)


class Matching(ClassifiesPairs, NegativesHead):
    """Image-text matching with hard negatives by the momentum encoder (RaSa, after ALBEF).

    Each caption is compared with its own image and a similar one of another identity, and each image with a similar
    caption. All layers of BERT read caption and image together. test.py --rerank uses the scores. A caption of the
    batch can be another one of the image's person.
    """
    names = ('pitm',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--pitm_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss pitm')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.weight = args.pitm_loss_weight

    def forward(self, encoded, batch):
        tokens, matches, _ = read_pairs_and_negatives(self, encoded, batch)
        logits = self.matching(tokens[:, 0])                                                          # [3b, 2]
        return {'pitm_loss': self.weight * objectives.image_text_matching(logits, matches),
                'itm_acc': objectives.accuracy(logits, matches)}

    def pair_logits(self, encoder, caption_ids, text_tokens, image_tokens):
        tokens = encoder.read(caption_ids, encoder.text_mask(caption_ids), image_tokens, first_only=True)
        return self.matching(tokens[:, 0])


def read_pairs_and_negatives(head, encoded, batch):
    """Read b pairs, and 2b negatives if the global batch has several identities.

    Args:
        head: a :class:`NegativesHead`.
        encoded: the :class:`~model.encoded_batch.EncodedBatch`.
        batch: {field: tensor}.

    Returns:
        ``(tokens [3b, L, D], matches [3b] of 1 and 0, negatives)``; without negatives [b, ...], and None.
    """
    momentum = head.momentum_embeddings(encoded, batch)
    pairs = encoded.compute_once(read_pairs, batch)
    negatives = encoded.compute_once(read_negatives, batch, momentum, head.negative_temperature)
    tokens = pairs if negatives is None else torch.cat([pairs, negatives.tokens])
    matches = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    matches[:len(pairs)] = 1
    return tokens, matches, negatives


class MaskedLanguageModeling(SoftTargetHead):
    """On the backbone albef: masked language modeling with soft targets of the momentum encoder (RaSa, after ALBEF).

    All layers of BERT read the masked caption with the image. The loss is objectives.distilled_mlm.
    """
    names = ('mlm',)
    fields = ('second_images', 'own_caption_ids', 'own_mlm_ids', 'own_mlm_labels')
    shared_options = (*SoftTargetHead.shared_options, 'mlm_loss_weight')
    reads_padding = True

    def __init__(self, args, model):
        super().__init__(args, model)
        self.weight = args.mlm_loss_weight

    def forward(self, encoded, batch):
        ids, labels = batch['own_mlm_ids'], batch['own_mlm_labels']
        mask, momentum = encoded.encoder.text_mask(batch['own_caption_ids']), self.momentum_embeddings(encoded, batch)
        with encoded.shard.per_rank_rng():
            logits = encoded.encoder.predict(encoded.encoder.read(ids, mask, encoded.image_tokens))     # [b, L, V]
            soft = predict_by_momentum(self.momentum.backbone, ids, mask, momentum.image_tokens)
        count = count_over_ranks(labels != -100, batch, encoded.shard)
        return {'mlm_loss': self.weight * objectives.distilled_mlm(logits, soft, labels, alpha=self.alpha, count=count)}

    def micro_batch_weight(self, micro_batch, batch):
        return 1    # each rank's loss is a sum, divided by the count of the global batch


@torch.no_grad()
def predict_by_momentum(momentum, ids, mask, image_tokens):
    """Score all words at all positions by the momentum encoder: [b, L], [b, L], [b, N, D] -> [b, L, V]."""
    return momentum.predict(momentum.read(ids, mask, image_tokens))


class PositiveRelationDetection(AlbefHead):
    """Detection of weak positive pairs (RaSa).

    A layer on the first token predicts whether the caption of a pair was replaced by another one of the same person.
    """
    names = ('prd',)
    fields = ('replaced',)
    new_layer = 'prd_head'

    @staticmethod
    def add_options(parser):
        parser.add_argument('--prd_loss_weight', type=non_negative_float, default=0.5,
                            help='weight of the loss prd (RaSa)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.prd_loss_weight
        self.prd_head = nn.Linear(model.text_width, 2)

    def forward(self, encoded, batch):
        logits = self.prd_head(encoded.compute_once(read_pairs, batch)[:, 0])                         # [b, 2]
        return {'prd_loss': self.weight * objectives.image_text_matching(logits, batch['replaced'].long())}


class ReplacedTokenDetection(MomentumHead):
    """Detection of replaced tokens (RaSa; ELECTRA: Clark et al., ICLR 2020).

    The momentum encoder reads a masked caption with the image, and draws a word for every position. A layer on each
    token predicts whether the word differs from the caption's.
    """
    names = ('mrtd',)
    fields = ('second_images', 'own_caption_ids', 'own_mrtd_ids')
    new_layer = 'mrtd_head'

    @staticmethod
    def add_options(parser):
        parser.add_argument('--mrtd_loss_weight', type=non_negative_float, default=0.5,
                            help='weight of the loss mrtd (RaSa)')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.weight = args.mrtd_loss_weight
        self.mrtd_head = nn.Linear(model.text_width, 2)

    def forward(self, encoded, batch):
        shard, encoder, ids = encoded.shard, encoded.encoder, batch['own_caption_ids']
        mask, momentum = encoder.text_mask(ids), self.momentum_embeddings(encoded, batch)
        # All ranks draw for the global batch, so that the draws do not depend on their number.
        uniform = shard.local_rows(torch.rand((shard.global_size(ids), ids.shape[1]), device=ids.device))
        with shard.per_rank_rng():
            logits = predict_by_momentum(self.momentum.backbone, batch['own_mrtd_ids'], mask, momentum.image_tokens)
            drawn, labels = replace_tokens(ids, mask, draw_tokens(logits, uniform))
            logits = self.mrtd_head(encoder.read(drawn, mask, encoded.image_tokens))                  # [b, L, 2]
        count = count_over_ranks(labels != -100, batch, shard)
        return {'mrtd_loss': self.weight * objectives.summed_cross_entropy(logits, labels) / count.clamp(min=1)}

    def micro_batch_weight(self, micro_batch, batch):
        return 1    # each rank's loss is a sum, divided by the count of the global batch


def draw_tokens(logits, uniform):
    """Draw a token for each position by the softmax of its scores: [b, L, V], [b, L] from 0 to 1 -> int64 [b, L].

    >>> draw_tokens(torch.tensor([[[0., 0., 0., 0.]]]), torch.tensor([[0.6]]))
    tensor([[2]])
    """
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)                                        # [b, L, V]
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def replace_tokens(ids, mask, drawn):
    """Return the drawn tokens with start and padding of the caption, and a label for each.

    Args:
        ids: [b, L], the caption; it begins with the start token.
        mask: [b, L], 0 at padding.
        drawn: [b, L].

    Returns:
        ``(ids [b, L], labels [b, L])``. A label is 1 if the token differs from the caption's, 0 if not, and -100 at the
        first position, at padding, and if start or padding was drawn.
    """
    start = ids[:, :1]
    drawn = torch.cat([start, drawn[:, 1:] * mask[:, 1:]], dim=1)       # the id of padding is 0
    labels = (drawn != ids).long()
    return drawn, labels.masked_fill((drawn == 0) | (drawn == start), -100)

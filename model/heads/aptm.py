"""APTM (Yang et al., ACM MM 2023): losses of the backbone ``aptm``, which fuses captions with images."""
import torch
from torch import nn

from model import objectives
from model.heads import (ClassifiesPairs, HasSchedule, Head, PredictsAttributes, PreparesOnHost, TrainsInMicroBatches,
                         UsesAllGather)
from utils.errors import UserError
from utils.option_types import fraction, non_negative_float, non_negative_int, positive_float, positive_int

IGNORE_INDEX = -100
PROMPTS_PER_STEP = 5      # attribute prompts that are matched with images


class Temperature(nn.Module):
    """The learned temperature ``temp``, without bounds."""

    def __init__(self, start):
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(float(start)))


class DrawsNegatives(HasSchedule):
    """A head that compares pairs with negatives, which it draws by their similarity / the learned temperature.

    In the first ``--random_negative_epochs`` epochs all other identities of the batch are equally probable.

    Attributes:
        temperature: the :class:`Temperature`.
        random_negative_epochs: number of these epochs.
    """
    draws_randomly = False

    def before_step(self, epoch, step, steps):
        self.draws_randomly = epoch <= self.random_negative_epochs

    @property
    def negative_temperature(self):
        """The softmax temperature of the similarities by which negatives are drawn."""
        return float('inf') if self.draws_randomly else self.temperature.temp


class MatchingHead(nn.Module):
    """Two logits of the fused first token. The second one is higher if caption and image belong together."""

    def __init__(self, width):
        super().__init__()
        self.itm_head = nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(),
                                      nn.Linear(2 * width, 2))

    def forward(self, encoder, text_tokens, mask, image_tokens):
        """[P, L, D], [P, L], [P, N, K] -> [P, 2]."""
        return self.itm_head(encoder.fuse(text_tokens, mask, image_tokens, first_only=True)[:, 0])


class AptmHead(Head):
    """Base class of the heads of this file."""
    backbone = 'aptm'
    accepts_any_width = True


class SoftITC(AptmHead):
    """On the backbone aptm: image-text contrast with identity targets (APTM).

    All captions of an image's identity are targets. The loss is objectives.itc_by_identity, with a learned temperature.
    """
    names = ('itc',)
    shared_options = ('itc_loss_weight',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--start_temperature', type=positive_float, default=0.07,
                            help='initial value of the learned softmax temperature of the losses on the backbones aptm '
                                 'and albef (APTM, ALBEF)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.itc_loss_weight
        self.temperature = model.shared(Temperature, args.start_temperature)

    def forward(self, encoded, batch):
        temperature = self.temperature.temp
        loss = objectives.itc_by_identity(encoded.image, encoded.text, batch['pids'], temperature=temperature)
        return {'itc_loss': self.weight * loss, 'temp': temperature.detach().clone()}


class ITM(DrawsNegatives, UsesAllGather, ClassifiesPairs, AptmHead):
    """Image-text matching with hard negatives (APTM, after ALBEF).

    Each of the B pairs is compared with a similar caption and a similar image of other identities, or with random ones
    in the first ``--random_negative_epochs`` epochs. A layer on the fused tokens predicts whether caption and image
    belong together. test.py --rerank uses its scores.
    """
    names = ('itm',)
    needs = ('image_tokens', 'text_tokens', 'fusion')
    shared_options = ('start_temperature',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--itm_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss itm')
        parser.add_argument('--random_negative_epochs', type=non_negative_int, default=0,
                            help='number of first epochs in which itm, eda, pitm and attribute (MARS) draw negatives '
                                 'at random instead of by similarity (APTM, RaSa: 0; from random weights: 1 or more)')

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.random_negative_epochs = args.itm_loss_weight, args.random_negative_epochs
        self.temperature = model.shared(Temperature, args.start_temperature)
        self.matching = model.shared(MatchingHead, model.text_width)

    def forward(self, encoded, batch):
        mask = encoded.encoder.text_mask(batch['caption_ids'])
        loss, accuracy = matching_loss(self.matching, encoded, encoded.text, encoded.text_tokens, mask, batch['pids'],
                                       self.negative_temperature)
        return {'itm_loss': self.weight * loss, 'itm_acc': accuracy}

    def micro_batch_unsupported(self):
        return 'it draws negatives from the whole batch and reads their tokens'

    def pair_logits(self, encoder, caption_ids, text_tokens, image_tokens):
        return self.matching(encoder, text_tokens, encoder.text_mask(caption_ids), image_tokens)


def matching_loss(matching, encoded, text, text_tokens, mask, pids, temperature):
    """Loss and accuracy of image-text matching over b pairs and 2b hard negatives.

    If the batch shows one identity, only the pairs are used. Each rank has its own pairs, with negatives from the
    global batch.

    Args:
        matching: the :class:`MatchingHead`.
        encoded: the local images and the encoder.
        text: [b, D] embeddings of captions.
        text_tokens: [b, L, D].
        mask: [b, L], which tokens are not padding.
        pids: [b] identities.
        temperature: softmax temperature for drawing negatives; infinite for random ones.

    Returns:
        ``(loss, accuracy)``, two scalars.
    """
    shard = encoded.shard
    texts, images = objectives.sample_hard_negatives(*map(shard.all_gather, (encoded.image, text, pids)),
                                                     temperature=temperature)
    pairs = [(text_tokens, mask, encoded.image_tokens)]
    if texts is not None:
        texts, images = shard.local_rows(texts), shard.local_rows(images)
        pairs += [(shard.all_gather(text_tokens)[texts], shard.all_gather(mask)[texts], encoded.image_tokens),
                  (text_tokens, mask, shard.all_gather(encoded.image_tokens)[images])]
    with shard.per_rank_rng():
        logits = matching(encoded.encoder, *(torch.cat(parts) for parts in zip(*pairs)))             # [3b, 2]
    matches = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    matches[:len(pids)] = 1
    return objectives.image_text_matching(logits, matches), objectives.accuracy(logits, matches)


class BertMLM(PreparesOnHost, TrainsInMicroBatches, AptmHead):
    """On the backbone aptm: masked language modeling with the image (APTM).

    All layers of BERT read the masked caption, and its fusion layers read the image also.
    """
    names = ('mlm',)
    needs = ('image_tokens', 'fusion')
    fields = ('bert_mlm_ids', 'bert_mlm_positions', 'bert_mlm_labels')
    shared_options = ('mlm_loss_weight',)
    reads_padding = True

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.mlm_loss_weight

    def forward(self, encoded, batch):
        mask = encoded.encoder.text_mask(batch['caption_ids'])
        with encoded.shard.per_rank_rng():
            loss, accuracy = masked_word_loss(encoded.encoder, batch['bert_mlm_ids'], mask, batch['bert_mlm_positions'],
                                              batch['bert_mlm_labels'], encoded.image_tokens,
                                              batch.get('host_bert_mlm_used'))
        return {'mlm_loss': self.weight * loss, 'mlm_acc': accuracy}

    def prepare_on_host(self, batch):
        return {'host_bert_mlm_used': used_entries(batch['bert_mlm_labels'])} if 'bert_mlm_labels' in batch else {}

    def micro_batch_weight(self, micro_batch, batch):
        masked, total = ((samples['bert_mlm_labels'] != IGNORE_INDEX).sum() for samples in (micro_batch, batch))
        return masked / total.clamp(min=1)


def masked_word_loss(encoder, ids, mask, positions, labels, image_tokens, used=None):
    """Loss and accuracy of masked words.

    Args:
        encoder: the encoders of the backbone.
        ids: [b, L] token ids of masked captions.
        mask: [b, L], which tokens are not padding.
        positions: [b, M] of masked words.
        labels: [b, M], their ids, or -100 for unused entries.
        image_tokens: [b, N, K].
        used: :func:`used_entries` of the labels, if they are known.

    Returns:
        ``(loss, accuracy)``, two scalars.
    """
    tokens = encoder.read(ids, mask, image_tokens)                                                       # [b, L, D]
    tokens = tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1])).flatten(0, 1)      # [b M, D]
    used = used_entries(labels) if used is None else used                                                # [W]
    logits = encoder.predict(tokens.index_select(0, used))                                               # [W, V]
    labels = labels.flatten().index_select(0, used)
    return objectives.masked_language_modeling(logits, labels), objectives.accuracy(logits, labels)


def used_entries(labels):
    """The entries of the labels of masked words that are used: [b, M] -> int64 [W], indices into all b*M."""
    return (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)


class EDA(DrawsNegatives, UsesAllGather, AptmHead):
    """The losses itc and itm with randomly edited captions (APTM).

    The edits are those of EDA (Wei and Zou, EMNLP 2019). itm is included if --loss_names contains it.
    """
    names = ('eda',)
    needs = ('image_tokens', 'fusion')
    fields = ('eda_ids',)
    shared_options = ('start_temperature', 'random_negative_epochs')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--eda_loss_weight', type=non_negative_float, default=0.8,
                            help='weight of the loss eda (APTM)')

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.random_negative_epochs = args.eda_loss_weight, args.random_negative_epochs
        self.temperature = model.shared(Temperature, args.start_temperature)
        has_itm = 'itm' in args.loss_names.replace(' ', '').split('+')
        self.matching = model.shared(MatchingHead, model.text_width) if has_itm else None

    def forward(self, encoded, batch):
        encoder, ids, pids, shard = encoded.encoder, batch['eda_ids'], batch['pids'], encoded.shard
        with shard.per_rank_rng():
            tokens, _ = encoder.encode_text(ids)
        text = encoder.text_embedding(tokens, ids)
        loss = objectives.itc_by_identity(*map(shard.all_gather, (encoded.image, text, pids)),
                                          temperature=self.temperature.temp)
        if self.matching is not None:
            mask = encoder.text_mask(ids)
            loss = loss + matching_loss(self.matching, encoded, text, tokens, mask, pids, self.negative_temperature)[0]
        return {'eda_loss': self.weight * loss}

    def micro_batch_unsupported(self):
        return 'it compares the whole batch and reads its tokens'


class Attributes(UsesAllGather, AptmHead):
    """Contrast, matching and masked words of attribute prompts (APTM).

    Each attribute has two prompts, one for each of its labels. The loss is the mean of objectives.attribute_contrast,
    of matching five prompts with the images, and of predicting masked words of the prompts.
    """
    names = ('attr',)
    needs = ('image_tokens', 'fusion')
    fields = ('attribute_labels', 'prompt_seed')     # with these fields, the batch also has prompts
    shared_options = ('start_temperature',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--attr_loss_weight', type=non_negative_float, default=0.8,
                            help='weight of the loss attr (APTM)')
        parser.add_argument('--attr_smoothing', type=fraction, default=0.4,
                            help='label smoothing of the contrast and the matching of attr (APTM)')
        parser.add_argument('--prompt_file', default='',
                            help="JSON file with the attributes' prompts, a list of "
                                 '["prompt of label 0", "prompt of label 1"] (default: the prompts of the dataset)')

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.smoothing = args.attr_loss_weight, args.attr_smoothing
        self.temperature = model.shared(Temperature, args.start_temperature)
        self.matching = model.shared(MatchingHead, model.text_width)

    def forward(self, encoded, batch):
        contrast, matching, words = attribute_losses(self, encoded, batch)
        return {'attr_loss': self.weight * (contrast + matching + words) / 3}

    def micro_batch_weight(self, micro_batch, batch):
        return 1    # each rank's losses are sums, divided by counts of the global batch

    def micro_batch_unsupported(self):
        return 'it matches prompts with images of the whole batch'


def attribute_losses(head, encoded, batch):
    """Losses of the batch's prompts and images; the sum over the ranks is the loss of the global batch.

    Args:
        head: the :class:`Attributes` head.
        encoded: the local images and the encoder.
        batch: {field: tensor} with ``prompt_ids`` [2A, L] and ``attribute_labels`` [b, A] of 1, 0 and -1 (unknown).

    Returns:
        ``(contrast, matching, words)``, three scalars.
    """
    encoder, shard, ids, labels = encoded.encoder, encoded.shard, batch['prompt_ids'], batch['attribute_labels']
    mask, (tokens, _) = encoder.text_mask(ids), encoder.encode_text(ids)
    all_labels = shard.all_gather(labels)                                                                # [B, A]
    labeled_count = (all_labels >= 0).sum(dim=0)                                                     # [A]
    contrast = objectives.attribute_contrast(
        encoded.image, encoder.text_embedding(tokens, ids), labels, smoothing=head.smoothing,
        temperature=head.temperature.temp, labeled_count=labeled_count)
    is_true, counts = objectives.true_prompts(labels), labeled_count.tolist()                        # [b, 2A], [A]
    matching = [match_prompt(head, encoded, tokens[prompt], mask[prompt], labels[:, prompt // 2], is_true[:, prompt],
                             counts[prompt // 2])
                for prompt in torch.randperm(len(ids))[:PROMPTS_PER_STEP].tolist()]
    words = prompt_word_loss(encoded, batch, mask, objectives.true_prompts(all_labels))
    return contrast, torch.stack(matching).mean(), words


def match_prompt(head, encoded, tokens, mask, labels, is_true, labeled_count):
    """Cross-entropy of whether one prompt is true of each labeled image.

    Args:
        head: the :class:`Attributes` head.
        encoded: the local images and the encoder.
        tokens: [L, D] of the prompt.
        mask: [L], which tokens are not padding.
        labels: [b] of the prompt's attribute: 1, 0, or -1 for unknown.
        is_true: bool [b], whether the prompt is true.
        labeled_count: how many images of the global batch have the label.

    Returns:
        A scalar: the local images' part of the mean over the global batch.
    """
    if not labeled_count:
        return encoded.image.new_zeros(())
    labeled = (labels >= 0).nonzero().squeeze(1)
    local_fraction = len(labeled) / labeled_count
    # A rank without labeled images passes one image, because all ranks must call the same layers. Its weight is 0.
    labeled = labeled if len(labeled) else labeled.new_zeros(1)
    count = len(labeled)
    with encoded.shard.per_rank_rng():
        logits = head.matching(encoded.encoder, tokens.expand(count, -1, -1), mask.expand(count, -1),
                               encoded.image_tokens[labeled])
    losses = objectives.smoothed_cross_entropy(logits, is_true[labeled].long(), smoothing=head.smoothing)
    return losses * local_fraction


def prompt_word_loss(encoded, batch, mask, is_true):
    """Loss of the masked words of each prompt that is true of an image, read with one such image.

    The image is drawn from the global batch. The rank that has it computes the prompt's loss.

    Args:
        encoded: the local images and the encoder.
        batch: {field: tensor} with ``prompt_mlm_ids``, ``prompt_mlm_positions`` and ``prompt_mlm_labels``.
        mask: [2A, L], which tokens are not padding.
        is_true: bool [B, 2A], whether a prompt is true of an image of the global batch.

    Returns:
        A scalar: the local part of the mean over all masked words.
    """
    prompts = is_true.any(dim=0).nonzero().squeeze(1)                                                # [P] of 2A
    if not len(prompts):
        return encoded.image.new_zeros(())
    first_row = encoded.shard.local_slice.start
    images = torch.multinomial(is_true.t()[prompts].float(), 1).squeeze(1) - first_row               # [P] local rows
    is_local = (images >= 0) & (images < encoded.shard.local_size(batch))
    local = is_local.nonzero().squeeze(1)                                                            # [p] of P
    local_count, total = ((batch['prompt_mlm_labels'][rows] != IGNORE_INDEX).sum()
                          for rows in (prompts[local], prompts))
    # A rank without images of its own reads one prompt, because all ranks must call the same layers. Its weight is 0.
    local = local if len(local) else local.new_zeros(1)
    rows, images = prompts[local], images[local].clamp(0, len(encoded.image_tokens) - 1)
    ids, positions, labels = (batch[f'prompt_mlm_{field}'][rows] for field in ('ids', 'positions', 'labels'))
    with encoded.shard.per_rank_rng():
        loss, _ = masked_word_loss(encoded.encoder, ids, mask[rows], positions, labels, encoded.image_tokens[images])
    return loss * (local_count / total.clamp(min=1))


class ImageAttributes(UsesAllGather, PredictsAttributes, AptmHead):
    """Attribute classification of images, without prompts (APTM).

    A classifier of the image's first token predicts all attributes. The loss is
    objectives.attribute_binary_cross_entropy. APTM uses it on PA-100K.
    """
    names = ('img_cls',)
    needs = ('image_tokens',)
    fields = ('attribute_labels',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--img_cls_attributes', type=positive_int, default=26,
                            help='number of attributes that img_cls predicts (PA-100K has 26)')

    def __init__(self, args, model):
        super().__init__()
        self.img_cls = nn.Sequential(nn.Linear(model.image_width, 256), nn.BatchNorm1d(256), nn.Dropout(0.1),
                                     nn.Linear(256, args.img_cls_attributes))
        for layer in (self.img_cls[0], self.img_cls[3]):
            nn.init.normal_(layer.weight, std=1e-5)

    def forward(self, encoded, batch):
        first = encoded.shard.all_gather(encoded.image_tokens[:, :1])                                # [B, 1, K]
        labels = encoded.shard.all_gather(batch['attribute_labels'])                                 # [B, A]
        if len(first) < 2:      # BatchNorm needs two images
            return {'img_cls_loss': first.sum() * 0}
        logits = self.predict_attributes(first)                                                  # [B, A]
        if logits.shape != labels.shape:
            raise UserError(f'--img_cls_attributes is {logits.shape[1]}, and the images of the dataset have '
                            f'{labels.shape[1]} labels: give --img_cls_attributes {labels.shape[1]}')
        return {'img_cls_loss': objectives.attribute_binary_cross_entropy(logits, labels)}

    def predict_attributes(self, image_tokens):
        return self.img_cls(image_tokens[:, 0]).float()

    def micro_batch_unsupported(self):
        return 'its BatchNorm normalizes the whole batch'

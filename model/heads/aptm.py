"""APTM (Yang et al., ACM MM 2023): contrast by identity, matching with hard negatives, masked words, second captions and attribute prompts.

These run on the backbone ``aptm``, whose fusion layers read a caption with an image.
"""
import torch
from torch import nn

from model import objectives
from model.heads import Head
from utils.errors import UserError
from utils.option_types import amount, count, fraction, weight

NO_LABEL = -100
PROMPTS_MATCHED = 5      # of the attributes' prompts, a step


class Temperature(nn.Module):
    """What similarities are divided by: ``temp``, learned and not clamped."""

    def __init__(self, start):
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(float(start)))


class Matching(nn.Module):
    """Two scores of a fused first token, the second of which says that caption and image belong together: ``itm_head``."""

    def __init__(self, width):
        super().__init__()
        self.itm_head = nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, 2))

    def forward(self, encoder, text_tokens, mask, image_tokens):
        """[P, L, D], [P, L], [P, N, K] -> [P, 2]"""
        return self.itm_head(encoder.fuse(text_tokens, mask, image_tokens, first_only=True)[:, 0])


class AptmHead(Head):
    backbone = 'aptm'
    accepts_any_width = True


class SoftITC(AptmHead):
    """InfoNCE whose targets are all samples of an identity."""
    names = ('itc',)
    shared_options = ('itc_loss_weight',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--start_temperature', type=amount, default=0.07, help='of the similarities, learned from there on (aptm)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.itc_loss_weight
        self.temperature = model.shared(Temperature, args.start_temperature)

    def forward(self, encoded, batch):
        temperature = self.temperature.temp
        loss = objectives.itc_by_identity(encoded.image, encoded.text, batch['pids'], temperature=temperature)
        return {'itc_loss': self.weight * loss, 'temp': temperature.detach()}


class ITM(AptmHead):
    """Does a caption belong to an image? Asked of the pairs and of two hard negatives for each."""
    names = ('itm',)
    needs = ('image_tokens', 'text_tokens', 'fusion')
    shared_options = ('start_temperature',)
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--itm_loss_weight', type=weight, default=1.0, help='weight of itm')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.itm_loss_weight
        self.temperature = model.shared(Temperature, args.start_temperature)
        self.matching = model.shared(Matching, model.text_width)

    def forward(self, encoded, batch):
        mask = encoded.encoder.mask_of(batch['caption_ids'])
        loss, accuracy = matching_loss(self.matching, encoded, encoded.text, encoded.text_tokens, mask, batch['pids'],
                                       self.temperature.temp)
        return {'itm_loss': self.weight * loss, 'itm_acc': accuracy}

    def micro_batch_unsupported(self):
        return 'it draws negatives out of the whole batch and reads their tokens'

    def score_pairs(self, encoder, caption_ids, text_tokens, image_tokens):
        """The scores that re-rank: of captions [P, L] with tokens [P, L, D] and images with tokens [P, N, K], [P]."""
        return self.matching(encoder, text_tokens, encoder.mask_of(caption_ids), image_tokens)[:, 1].float()


def matching_loss(matching, encoded, text, text_tokens, mask, pids, temperature):
    """(loss, accuracy) over B pairs and 2 B hard negatives; the pairs alone where the batch holds one identity. Of several processes each
    has its own pairs, with negatives out of the whole batch."""
    peers = encoded.peers
    texts, images = objectives.sample_hard_negatives(*map(peers.gather, (encoded.image, text, pids)), temperature=temperature)
    pairs = [(text_tokens, mask, encoded.image_tokens)]
    if texts is not None:
        texts, images = peers.mine(texts), peers.mine(images)
        pairs += [(peers.gather(text_tokens)[texts], peers.gather(mask)[texts], encoded.image_tokens),
                  (text_tokens, mask, peers.gather(encoded.image_tokens)[images])]
    with peers.apart():
        logits = matching(encoded.encoder, *(torch.cat(parts) for parts in zip(*pairs)))             # [3B, 2]
    matches = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    matches[:len(pids)] = 1
    return objectives.image_text_matching(logits, matches), objectives.accuracy(logits, matches)


class BertMLM(AptmHead):
    """Predict a caption's masked words from it and the image, by all of BERT's layers."""
    names = ('mlm',)
    needs = ('image_tokens', 'fusion')
    fields = ('bert_mlm_ids', 'bert_mlm_places', 'bert_mlm_labels')
    shared_options = ('mlm_loss_weight',)

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.mlm_loss_weight

    def forward(self, encoded, batch):
        mask = encoded.encoder.mask_of(batch['caption_ids'])
        with encoded.peers.apart():
            loss, accuracy = word_loss(encoded.encoder, batch['bert_mlm_ids'], mask, batch['bert_mlm_places'], batch['bert_mlm_labels'],
                                       encoded.image_tokens)
        return {'mlm_loss': self.weight * loss, 'mlm_acc': accuracy}

    reads_padding = True

    def micro_batch_weight(self, piece, batch):
        chosen, in_all = ((samples['bert_mlm_labels'] != NO_LABEL).sum() for samples in (piece, batch))
        return chosen / in_all.clamp(min=1)


def word_loss(encoder, ids, mask, places, labels, image_tokens):
    """(loss, accuracy) of the words at ``places`` [B, M] of masked captions ``ids`` [B, L]; where ``labels`` [B, M] are -100 is none."""
    tokens = encoder.read(ids, mask, image_tokens)                                                   # [B, L, D]
    tokens = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1])).flatten(0, 1)     # [B M, D]
    labels = labels.flatten()
    chosen = (labels != NO_LABEL).nonzero().squeeze(1)
    logits = encoder.predict(tokens.index_select(0, chosen))
    labels = labels.index_select(0, chosen)
    return objectives.masked_language_modeling(logits, labels), objectives.accuracy(logits, labels)


class EDA(AptmHead):
    """The losses itc and itm once more, of each caption's changed copy."""
    names = ('eda',)
    needs = ('image_tokens', 'fusion')
    fields = ('eda_ids',)
    shared_options = ('start_temperature',)
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--eda_loss_weight', type=weight, default=0.8, help='weight of what eda adds')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.eda_loss_weight
        self.temperature = model.shared(Temperature, args.start_temperature)
        self.matching = model.shared(Matching, model.text_width) if 'itm' in args.loss_names.replace(' ', '').split('+') else None

    def forward(self, encoded, batch):
        encoder, ids, pids, peers = encoded.encoder, batch['eda_ids'], batch['pids'], encoded.peers
        with peers.apart():
            tokens, _ = encoder.encode_text(ids)
        text = encoder.text_embedding(tokens, ids)
        loss = objectives.itc_by_identity(*map(peers.gather, (encoded.image, text, pids)), temperature=self.temperature.temp)
        if self.matching is not None:
            loss = loss + matching_loss(self.matching, encoded, text, tokens, encoder.mask_of(ids), pids, self.temperature.temp)[0]
        return {'eda_loss': self.weight * loss}

    def micro_batch_unsupported(self):
        return 'it compares the whole batch and reads its tokens'


class Attributes(AptmHead):
    """Images against sentences about their attributes: contrast, matching and masked words of prompts."""
    names = ('attr',)
    needs = ('image_tokens', 'fusion')
    fields = ('attribute_labels', 'prompt_seed')     # the batch has prompts for it, too
    shared_options = ('start_temperature',)
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--attr_loss_weight', type=weight, default=0.8, help='weight of attr, the mean of its three losses')
        parser.add_argument('--attr_smoothing', type=fraction, default=0.4, help='of the labels in the contrast and matching of attr')
        parser.add_argument('--prompt_file', default='', help="the attributes' prompts instead of the dataset's own: a JSON list of "
                            '["where the label is 0", "where it is 1"]')

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.smoothing = args.attr_loss_weight, args.attr_smoothing
        self.temperature = model.shared(Temperature, args.start_temperature)
        self.matching = model.shared(Matching, model.text_width)

    def forward(self, encoded, batch):
        contrast, matching, words = attribute_losses(self, encoded, batch)
        return {'attr_loss': self.weight * (contrast + matching + words) / 3}

    def micro_batch_weight(self, piece, batch):
        return 1    # of several processes' images and prompts: the losses are sums, divided by what the whole batch has

    def micro_batch_unsupported(self):
        return 'its prompts are matched with images of the whole batch'


def attribute_losses(head, encoded, batch):
    """(contrast, matching, words) of the batch's prompts and images; of several processes each has a part of the sums."""
    encoder, peers, ids, labels = encoded.encoder, encoded.peers, batch['prompt_ids'], batch['attribute_labels']     # [2A, L], [b, A]
    mask, (tokens, _) = encoder.mask_of(ids), encoder.encode_text(ids)
    everyones = peers.gather(labels)                                                                 # [B, A]
    labelled = (everyones >= 0).sum(dim=0)                                                           # [A]
    contrast = objectives.attribute_contrast(encoded.image, encoder.text_embedding(tokens, ids), labels, smoothing=head.smoothing,
                                             temperature=head.temperature.temp, labelled=labelled)
    holds, in_all = objectives.true_prompts(labels), labelled.tolist()                               # [b, 2A]
    losses = [match_prompt(head, encoded, tokens[prompt], mask[prompt], labels[:, prompt // 2], holds[:, prompt], in_all[prompt // 2])
              for prompt in torch.randperm(len(ids))[:PROMPTS_MATCHED].tolist()]
    return contrast, torch.stack(losses).mean(), prompt_words(encoded, batch, mask, objectives.true_prompts(everyones))


def match_prompt(head, encoded, tokens, mask, labels, holds, labelled):
    """Whether one prompt is true of each image that is labelled, of the ``labelled`` that the whole batch has: tokens [L, D], mask [L],
    labels [b], holds [b] -> scalar."""
    if not labelled:
        return encoded.image.new_zeros(())
    known = (labels >= 0).nonzero().squeeze(1)
    part = len(known) / labelled
    known = known if len(known) else known.new_zeros(1)     # all processes pass the same layers, and be it for nothing
    count = len(known)
    with encoded.peers.apart():
        logits = head.matching(encoded.encoder, tokens.expand(count, -1, -1), mask.expand(count, -1), encoded.image_tokens[known])
    return objectives.smoothed_cross_entropy(logits, holds[known].long(), smoothing=head.smoothing) * part


def prompt_words(encoded, batch, mask, holds):
    """The masked words of each prompt that some image satisfies, by ``holds`` [B, 2A], read with one of those images, which is drawn: of
    several processes the one reads it that has the image."""
    true = holds.any(dim=0).nonzero().squeeze(1)                                                     # [P] of 2A
    if not len(true):
        return encoded.image.new_zeros(())
    images = torch.multinomial(holds.t()[true].float(), 1).squeeze(1) - (encoded.peers.own.start or 0)      # [P], counted from our first
    here = ((images >= 0) & (images < encoded.peers.rows_in(batch))).nonzero().squeeze(1)                    # [p] of P
    chosen, in_all = ((batch['prompt_mlm_labels'][prompts] != NO_LABEL).sum() for prompts in (true[here], true))
    here = here if len(here) else here.new_zeros(1)
    ids, places, labels = (batch[f'prompt_mlm_{part}'][true[here]] for part in ('ids', 'places', 'labels'))
    with encoded.peers.apart():
        loss, _ = word_loss(encoded.encoder, ids, mask[true[here]], places, labels,
                            encoded.image_tokens[images[here].clamp(0, len(encoded.image_tokens) - 1)])
    return loss * (chosen / in_all.clamp(min=1))


class ImageAttributes(AptmHead):
    """Attributes out of the image alone, without prompts: ``img_cls``, from the first image token to a score of each attribute."""
    names = ('img_cls',)
    needs = ('image_tokens',)
    fields = ('attribute_labels',)
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--img_cls_attributes', type=count, default=26, help='how many attributes img_cls tells: 26 of PA-100K')

    def __init__(self, args, model):
        super().__init__()
        self.img_cls = nn.Sequential(nn.Linear(model.image_width, 256), nn.BatchNorm1d(256), nn.Dropout(0.1),
                                     nn.Linear(256, args.img_cls_attributes))
        for layer in (self.img_cls[0], self.img_cls[3]):
            nn.init.normal_(layer.weight, std=1e-5)

    def forward(self, encoded, batch):
        first, labels = encoded.image_tokens[:, :1], batch['attribute_labels']                           # [b, 1, K], [b, A]
        first, labels = encoded.peers.gather(first), encoded.peers.gather(labels)                        # [B, 1, K], [B, A]
        if len(first) < 2:      # BatchNorm has nothing to compare one image with
            return {'img_cls_loss': first.sum() * 0}
        logits = self.predict_attributes(first)                                                                   # [B, A]
        if logits.shape != labels.shape:
            raise UserError(f'--img_cls_attributes {logits.shape[1]}: the images have {labels.shape[1]} labels')
        return {'img_cls_loss': objectives.attribute_binary_cross_entropy(logits, labels)}

    def predict_attributes(self, image_tokens):
        return self.img_cls(image_tokens[:, 0]).float()

    def micro_batch_unsupported(self):
        return 'its BatchNorm sees the whole batch'

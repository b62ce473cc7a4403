"""TBPS-CLIP (Cao et al., AAAI 2024): soft-target, reverse and cyclic contrast, and self-supervision of images."""
import math

import torch
from torch import nn

from model import objectives
from model.heads import HasReferenceNames, HasSchedule, Head, UsesAllGather
from utils.option_types import add_boolean_option, fraction, non_negative_float, positive_float

# Prefixes of parameter names here and in TBPS-CLIP's implementation, which ignores entries that it does not know.
TBPS_NAMES = {'base_model.visual.': 'visual.', 'base_model.': 'encode_text.'}
INITIAL_LOG_SCALE = math.log(1 / 0.07)   # if the pretrained archive has none


class LearnedScale(nn.Module):
    """1 / temperature as a learned parameter, at most 100.

    The parameter ``logit_scale`` is the logarithm. It starts at the pretrained model's value, if there is one.
    """

    def __init__(self, clip=None):
        super().__init__()
        pretrained = getattr(clip, 'pretrained_scale', None)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE if pretrained is None else pretrained))

    def forward(self):
        return objectives.clamped_scale(self.logit_scale.float())


class ContrastHead(HasReferenceNames, Head):
    """Base class of ``nitc`` and ``ritc``, which share the learned temperature."""
    reference_names = TBPS_NAMES

    def __init__(self, args, model):
        super().__init__()
        self.scale = model.shared(LearnedScale, model.backbone.encoder)
        self.weight = getattr(args, f'{self.names[0]}_loss_weight')


class NITC(HasSchedule, UsesAllGather, ContrastHead):
    """Image-text contrast with soft targets (TBPS-CLIP, AAAI 2024).

    A second forward pass of the model gives soft targets, which are averaged with targets by identity. The temperature
    is learned. The loss is objectives.nitc.
    """
    names = ('nitc',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--nitc_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss nitc')
        parser.add_argument('--softlabel_ratio', type=fraction, default=0.5,
                            help="weight of the model's own predictions in the targets of nitc, and of the momentum "
                                 "encoder's in those of cl and mlm on the backbone albef; it rises from 0 during the "
                                 'first epoch (RaSa: 0.4)')
        add_boolean_option(parser, '--mvs_image', False, 'a second augmented view of each image in nitc')

    @classmethod
    def get_fields(cls, args):
        return ('second_images',) if args.mvs_image else ()

    def __init__(self, args, model):
        super().__init__(args, model)
        self.ratio, self.alpha = args.softlabel_ratio, args.softlabel_ratio
        self.uses_second_view = args.mvs_image

    def before_step(self, epoch, step, steps):
        self.alpha = self.ratio * (min(1, (step - 1) / steps) if epoch == 1 else 1)

    def forward(self, encoded, batch):
        shard = encoded.shard
        with torch.no_grad(), shard.per_rank_rng():
            # Only the text encoder has dropout, so the second pass of the images is the first one.
            soft_text = encoded.embed_text(shard.local_rows(batch['caption_ids']))
        soft_text, views = shard.all_gather(soft_text), [encoded.image]
        if self.uses_second_view:
            views.append(shard.all_gather(encoded.embed_image(batch['second_images'])))
        losses = [objectives.nitc(view, encoded.text, view, soft_text, batch['pids'], scale=self.scale(),
                                  alpha=self.alpha) for view in views]
        return {'nitc_loss': self.weight * sum(losses) / len(losses)}

    def micro_batch_unsupported(self):
        return 'it encodes a second view of the whole batch' if self.uses_second_view else None


class RITC(ContrastHead):
    """Reverse image-text contrast (TBPS-CLIP, AAAI 2024).

    It is the Kullback-Leibler divergence of the identities' distribution from the softmax of the similarities. The
    temperature is learned. The loss is objectives.ritc.
    """
    names = ('ritc',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--ritc_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss ritc')
        parser.add_argument('--ritc_eps', type=positive_float, default=1e-2,
                            help='number added to the targets of ritc inside the logarithm')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.eps = args.ritc_eps

    def forward(self, encoded, batch):
        loss = objectives.ritc(encoded.image, encoded.text, batch['pids'], scale=self.scale(), eps=self.eps)
        return {'ritc_loss': self.weight * loss}


class CITC(HasReferenceNames, Head):
    """Cyclic image-text contrast (TBPS-CLIP, AAAI 2024).

    Similarities between images should equal those between their captions. The loss is objectives.citc.
    """
    names = ('citc',)
    reference_names = TBPS_NAMES

    @staticmethod
    def add_options(parser):
        parser.add_argument('--citc_loss_weight', type=non_negative_float, default=0.1,
                            help='weight of the loss citc (TBPS-CLIP)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.citc_loss_weight

    def forward(self, encoded, batch):
        return {'citc_loss': self.weight * objectives.citc(encoded.image, encoded.text)}


class SS(UsesAllGather, HasReferenceNames, Head):
    """Self-supervision of images, SimCLR (TBPS-CLIP, AAAI 2024).

    Two strongly augmented views of an image should have similar projections. The loss is objectives.simclr.
    """
    names = ('ss',)
    reference_names = TBPS_NAMES
    fields = ('simclr_images',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--ss_loss_weight', type=non_negative_float, default=0.4,
                            help='weight of the loss ss (TBPS-CLIP)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.ss_loss_weight
        self.simclr_mlp = nn.Sequential(nn.Linear(model.embed_dim, 128), nn.ReLU(), nn.Linear(128, model.embed_dim))

    def forward(self, encoded, batch):
        first, second = (self.simclr_mlp(encoded.embed_image(views))                     # [b, D] each
                         for views in batch['simclr_images'].unbind(1))
        loss = objectives.simclr(*map(encoded.shard.all_gather, (first, second)))            # of [B, D]
        return {'ss_loss': self.weight * loss}

    def micro_batch_unsupported(self):
        return 'it encodes two more views of the whole batch'

"""TBPS-CLIP (Cao et al., AAAI 2024): contrast with soft targets, reverse and cyclic contrast, self-supervision of images, and the
learned temperature that the first two share."""
import math

import torch
from torch import nn

from model import objectives
from model.heads import Head
from utils.option_types import amount, fraction, weight, yes_no

# The released model has its encoders under other names, and loads what has them alone, without a word on the rest.
TBPS_NAMES = {'base_model.visual.': 'visual.', 'base_model.': 'encode_text.'}
START = math.log(1 / 0.07)   # of the temperature's logarithm, where the pretrained archive brings none


class LearnedScale(nn.Module):
    """1 / temperature, learned by its logarithm ``logit_scale`` and clamped to 100 where it is used."""

    def __init__(self, clip=None):
        super().__init__()
        start = getattr(clip, 'pretrained_scale', None)
        self.logit_scale = nn.Parameter(torch.tensor(START if start is None else start))

    def forward(self):
        return objectives.clamped_scale(self.logit_scale.float())


class Contrast(Head):
    """What nitc and ritc share."""
    reference_names = TBPS_NAMES

    def __init__(self, args, model):
        super().__init__()
        self.scale = model.shared(LearnedScale, model.backbone.encoder)
        self.weight = getattr(args, f'{self.names[0]}_loss_weight')


class NITC(Contrast):
    """The targets are softened by what a second pass of the same model finds alike."""
    names = ('nitc',)
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--nitc_loss_weight', type=weight, default=1.0, help='weight of nitc')
        parser.add_argument('--softlabel_ratio', type=fraction, default=0.5,
                            help="share of nitc's targets that the model gives itself; it rises from 0 in the first epoch")
        yes_no(parser, '--mvs_image', False, 'nitc also compares a second view of each image')

    @classmethod
    def get_fields(cls, args):
        return ('second_images',) if args.mvs_image else ()

    def __init__(self, args, model):
        super().__init__(args, model)
        self.ratio, self.alpha, self.both_views = args.softlabel_ratio, args.softlabel_ratio, args.mvs_image

    def before_step(self, epoch, step, steps):
        self.alpha = self.ratio * (min(1, (step - 1) / steps) if epoch == 1 else 1)

    def forward(self, encoded, batch):
        peers = encoded.peers
        with torch.no_grad(), peers.apart():
            soft_text = encoded.embed_text(peers.mine(batch['caption_ids']))     # dropout is drawn again; images have none
        soft_text, views = peers.gather(soft_text), [encoded.image]
        if self.both_views:
            views.append(peers.gather(encoded.embed_image(batch['second_images'])))
        losses = [objectives.nitc(view, encoded.text, view, soft_text, batch['pids'], scale=self.scale(), alpha=self.alpha)
                  for view in views]
        return {'nitc_loss': self.weight * sum(losses) / len(losses)}

    def micro_batch_unsupported(self):
        return 'it encodes a second view of the whole batch' if self.both_views else None


class RITC(Contrast):
    """The contrast the other way round: the model's distribution against that of the identities."""
    names = ('ritc',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--ritc_loss_weight', type=weight, default=1.0, help='weight of ritc')
        parser.add_argument('--ritc_eps', type=amount, default=1e-2, help="what is added to ritc's targets")

    def __init__(self, args, model):
        super().__init__(args, model)
        self.eps = args.ritc_eps

    def forward(self, encoded, batch):
        loss = objectives.ritc(encoded.image, encoded.text, batch['pids'], scale=self.scale(), eps=self.eps)
        return {'ritc_loss': self.weight * loss}


class CITC(Head):
    """Similarities are the same within and across the modalities."""
    names = ('citc',)
    reference_names = TBPS_NAMES

    @staticmethod
    def add_options(parser):
        parser.add_argument('--citc_loss_weight', type=weight, default=0.1, help='weight of citc')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.citc_loss_weight

    def forward(self, encoded, batch):
        return {'citc_loss': self.weight * objectives.citc(encoded.image, encoded.text)}


class SS(Head):
    """Two strongly augmented views of an image find each other (SimCLR)."""
    names = ('ss',)
    reference_names = TBPS_NAMES
    fields = ('simclr_images',)
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--ss_loss_weight', type=weight, default=0.4, help='weight of ss')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.ss_loss_weight
        self.simclr_mlp = nn.Sequential(nn.Linear(model.embed_dim, 128), nn.ReLU(), nn.Linear(128, model.embed_dim))

    def forward(self, encoded, batch):
        one, other = (self.simclr_mlp(encoded.embed_image(views)) for views in batch['simclr_images'].unbind(1))   # [b, D] each
        return {'ss_loss': self.weight * objectives.simclr(*map(encoded.peers.gather, (one, other)))}              # of [B, D]

    def micro_batch_unsupported(self):
        return 'it encodes two more views of the whole batch'

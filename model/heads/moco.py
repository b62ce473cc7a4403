"""MoCo (He et al., CVPR 2020): contrast with the embeddings of a momentum encoder, kept in a queue."""
import torch
import torch.nn.functional as F

from model import objectives
from model.heads import HasTrainingOnlyParts, Head, UsesAllGather
from model.momentum import copy_weights, make_momentum_copy, update_momentum_copy
from model.queue import EmbeddingQueue
from utils.option_types import fraction, non_negative_float, positive_int


class MoCo(HasTrainingOnlyParts, UsesAllGather, Head):
    """Image-text contrast with a momentum encoder and a queue (MoCo, CVPR 2020; for pairs: ALBEF, NeurIPS 2021).

    A momentum encoder, whose weights follow those of the encoders slowly, embeds the batch. Each image is compared with
    these embeddings of the captions, and with those of earlier batches in a queue; each caption the same. The loss is
    objectives.momentum_contrast. Samples of the same identity count as negatives.
    """
    names = ('moco',)
    training_only_parts = ('momentum', 'queue')
    shared_options = ('temperature',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--moco_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss moco')
        parser.add_argument('--moco_queue', type=positive_int, default=4096,
                            help='number of earlier samples in the queue of moco, and of cl on the backbone albef '
                                 '(MoCo, ALBEF: 65536)')
        parser.add_argument('--moco_momentum', type=fraction, default=0.995,
                            help='fraction of its weights that the momentum encoder keeps in each step, for moco and '
                                 'the losses of the backbone albef (ALBEF: 0.995; MoCo: 0.999)')

    def __init__(self, args, model):
        super().__init__()
        self.scale, self.weight, self.rate = 1 / args.temperature, args.moco_loss_weight, args.moco_momentum
        self.momentum = make_momentum_copy(model.backbone)
        self.queue = EmbeddingQueue(args.moco_queue, model.embed_dim)
        self.newest = None      # the batch's embeddings by the momentum encoder, (images [B, D], captions [B, D])

    def after_weights_loaded(self, model):
        copy_weights(self.momentum, model.backbone)

    def forward(self, encoded, batch):
        shard, ids = encoded.shard, encoded.shard.local_rows(batch['caption_ids'])             # [b, L]
        with torch.no_grad(), shard.per_rank_rng():
            image = self.momentum.image_embedding(self.momentum.encode_image(batch['images'])[0])
            text = self.momentum.text_embedding(self.momentum.encode_text(ids)[0], ids)
        image, text = self.newest = tuple(shard.all_gather(F.normalize(rows.float(), dim=1)) for rows in (image, text))
        losses = [objectives.momentum_contrast(encoded.image, text, self.queue.texts, scale=self.scale),
                  objectives.momentum_contrast(encoded.text, image, self.queue.images, scale=self.scale)]
        return {'moco_loss': self.weight * sum(losses) / 2}

    def after_step(self, model):
        update_momentum_copy(self.momentum, model.backbone, self.rate)
        self.queue.append(*self.newest)

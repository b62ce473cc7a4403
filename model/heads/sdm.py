"""IRRA (Jiang and Ye, CVPR 2023): similarity distribution matching."""
from model import objectives
from model.heads import HasPairLosses, Head


class SDM(HasPairLosses, Head):
    """Similarity distribution matching (IRRA, CVPR 2023).

    The loss compares the softmax of the similarities with the distribution of the pairs of equal identity. It is
    objectives.sdm.
    """
    names = ('sdm',)
    shared_options = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def pair_losses(self, encoded, batch):
        return {'sdm': self.loss(encoded, batch, reduction='none')}

    def forward(self, encoded, batch):
        if 'clean' in batch:   # another head selects clean pairs (--ccd)
            losses = self.loss(encoded, batch, reduction='none')
            return {'sdm_loss': objectives.reduce_clean_pairs(losses, batch['clean'], 'mean')}
        return {'sdm_loss': self.loss(encoded, batch)}

    def loss(self, encoded, batch, reduction='mean'):
        return objectives.sdm(encoded.image, encoded.text, batch['pids'], scale=self.scale, reduction=reduction)

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
        return {'sdm': objectives.sdm_per_pair(encoded.image, encoded.text, batch['pids'], scale=self.scale)}

    def forward(self, encoded, batch):
        if 'clean' in batch:   # another head selects clean pairs (--ccd)
            losses = self.pair_losses(encoded, batch)['sdm']
            return {'sdm_loss': objectives.reduce_clean_pairs(losses, batch['clean'], mean=True)}
        return {'sdm_loss': objectives.sdm(encoded.image, encoded.text, batch['pids'], scale=self.scale)}

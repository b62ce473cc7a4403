"""IRRA (Jiang and Ye, CVPR 2023): similarity distribution matching."""
from model import objectives
from model.heads import Head


class SDM(Head):
    """Similarity distribution matching between images and captions (IRRA)."""
    names = ('sdm',)
    shared_options = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def pair_losses(self, encoded, batch):
        return {'sdm': objectives.sdm_per_pair(encoded.image, encoded.text, batch['pids'], scale=self.scale)}

    def forward(self, encoded, batch):
        if 'clean' in batch:   # a division leaves out noisy pairs
            losses = self.pair_losses(encoded, batch)['sdm']
            return {'sdm_loss': objectives.reduce_clean_pairs(losses, batch['clean'], mean=True)}
        return {'sdm_loss': objectives.sdm(encoded.image, encoded.text, batch['pids'], scale=self.scale)}

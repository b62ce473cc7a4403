"""IRRA (Jiang and Ye, CVPR 2023): similarity distribution matching."""
from model import objectives
from model.heads import Head


class SDM(Head):
    names = ('sdm',)
    reads = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def forward(self, encoded, batch):
        return {'sdm_loss': objectives.sdm(encoded.image, encoded.text, batch['pids'], scale=self.scale)}

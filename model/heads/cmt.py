"""AGM's contrastive loss (AGMfIRRA, 2025)."""
from model import objectives
from model.heads import Head


class CMT(Head):
    names = ('cmt',)
    reads = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def forward(self, encoded, batch):
        return {'cmt_loss': objectives.cmt(encoded.image, encoded.text, scale=self.scale)}

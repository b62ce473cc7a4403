"""Cross-modal projection matching (Zhang and Lu, ECCV 2018)."""
from model import objectives
from model.heads import Head


class CMPM(Head):
    """Cross-modal projection matching (Zhang and Lu, ECCV 2018).

    The loss is objectives.cmpm: it has no temperature, and the lengths of the embeddings scale the logits.
    """
    names = ('cmpm',)

    def __init__(self, args, model):
        super().__init__()

    def forward(self, encoded, batch):
        return {'cmpm_loss': objectives.cmpm(encoded.image, encoded.text, batch['pids'])}

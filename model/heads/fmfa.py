"""FMFA (ACM TOMM 2026): adaptive similarity distribution matching, and explicit alignment of words with patches."""
from model import objectives
from model.heads import Head
from utils.options import positive


class AdaptiveSDM(Head):
    """IRRA's sdm, with more weight on rows whose best match is not the first of their identity."""
    names = ('a-sdm',)
    shared_options = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def forward(self, encoded, batch):
        return {'a-sdm_loss': objectives.a_sdm(encoded.image, encoded.text, batch['pids'], scale=self.scale)}


class ExplicitAlignment(Head):
    """Words and patches against the patches that words gather: every sample with every other, token by token."""
    names = ('efa',)
    needs = ('image_tokens', 'text_tokens')
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--minmax_loss_weight', type=positive(float, strict=False), default=1.0, help='weight of efa')
        parser.add_argument('--efa_piece', type=positive(int), default=4,
                            help='samples that efa compares with all others at a time; fewer take less memory')

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.piece = args.minmax_loss_weight, args.efa_piece

    def forward(self, encoded, batch):
        patches = encoded.image_tokens[:, 1:]                                  # [B, N, D] without the class token
        loss = objectives.explicit_alignment(patches, encoded.text_tokens, chunk_size=self.piece, gather=encoded.peers.gather)
        return {'efa_loss': self.weight * loss}

    def micro_batch_unsupported(self):
        return 'it compares the tokens of each sample with those of all others'

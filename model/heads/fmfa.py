"""FMFA (ACM TOMM 2026): adaptive similarity distribution matching, and explicit alignment of words with patches."""
from model import objectives
from model.heads import Head, UsesAllGather
from utils.option_types import non_negative_float, positive_int


class AdaptiveSDM(Head):
    """Adaptive similarity distribution matching (FMFA, ACM TOMM 2026).

    The loss is objectives.a_sdm: rows of sdm weigh more if their best match is not the first one of their identity.
    """
    names = ('a-sdm',)
    shared_options = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def forward(self, encoded, batch):
        return {'a-sdm_loss': objectives.a_sdm(encoded.image, encoded.text, batch['pids'], scale=self.scale)}


class ExplicitAlignment(UsesAllGather, Head):
    """Explicit fine-grained alignment of words and patches (FMFA).

    Each word selects patches. Words and patches of every sample are compared with the selected patches of every other
    sample. The loss is objectives.explicit_alignment.
    """
    names = ('efa',)
    needs = ('image_tokens', 'text_tokens')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--minmax_loss_weight', type=non_negative_float, default=1.0,
                            help='weight of the loss efa')
        parser.add_argument('--efa_piece', type=positive_int, default=4,
                            help='number of samples that efa compares with all others at once; fewer need less memory')

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.chunk_size = args.minmax_loss_weight, args.efa_piece

    def forward(self, encoded, batch):
        patches = encoded.image_tokens[:, 1:]                                  # [b, N, D] without the class token
        loss = objectives.explicit_alignment(patches, encoded.text_tokens, chunk_size=self.chunk_size,
                                             all_gather=encoded.shard.all_gather)
        return {'efa_loss': self.weight * loss}

    def micro_batch_unsupported(self):
        return 'it compares the tokens of each sample with those of all others'

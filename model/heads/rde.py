"""RDE (Qin et al., CVPR 2024): alignment losses with one number a pair, a second embedding of the tokens attended to most (TSE), and
the division of the training pairs into clean and noisy ones before each epoch (CCD)."""
from functools import partial

from model import noise_mixture, objectives
from model.heads import Head
from model.heads.a2te import DetailLayers, selection_map, kept
from utils.errors import UserError
from utils.option_types import amount, positive, weight, yes_no

# RDE's own command line: the first of these names is the loss, and everything else in the text is decoration there.
REFERENCE_LOSS_NAMES = {name: f"is of RDE's released code, where '{name}' alone counts, which trains both similarities on divided pairs: "
                  f'type --loss_names {name.lower()}+tse --ccd, and what else you mean as flags (--tau, --margin, --select_ratio, '
                  '--noisy_rate)'
            for name in ('TAL', 'TRL', 'InfoNCE', 'SDM')}

LEARNING_RATE = 1e-3   # of the TSE layers, whatever --lr


def measures(args):
    """{loss name: (function of (image, text, pids) to [B], is it averaged over the batch or summed)}"""
    scale = 1 / args.temperature
    return {
        'tal': (partial(objectives.tal, tau=args.tau, margin=args.margin), False),
        'trl': (partial(objectives.trl, tau=args.tau, margin=args.margin), False),
        'infonce': (lambda image, text, pids: objectives.infonce_per_pair(image, text, scale=scale), True),
        'sdm': (partial(objectives.sdm_per_pair, scale=scale), True)}


def chosen(args):
    """Those of :func:`measures` that ``--loss_names`` names."""
    named = str(args.loss_names).replace(' ', '').split('+')
    return {name: measure for name, measure in measures(args).items() if name in named}


class PairLoss(Head):
    """One number a pair; pairs that a division calls noisy don't count."""

    def __init__(self, args, model):
        super().__init__()
        self.measure, self.mean = measures(args)[self.names[0]]

    def pair_losses(self, encoded, batch):
        return {self.names[0]: self.measure(encoded.image, encoded.text, batch['pids'])}

    def forward(self, encoded, batch):
        losses = self.pair_losses(encoded, batch)[self.names[0]]
        return {f'{self.names[0]}_loss': objectives.reduce_clean_pairs(losses, batch.get('clean'), self.mean)}


class TAL(PairLoss):
    """Triplet alignment: a pair against all others, softly."""
    names = ('tal',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--tau', type=amount, default=0.015, help='temperature of tal and trl')
        parser.add_argument('--margin', type=weight, default=0.1, help='margin of tal and trl')


class TRL(PairLoss):
    """Triplets with the hardest negative."""
    names = ('trl',)
    shared_options = ('tau', 'margin')


class InfoNCE(PairLoss):
    """itc as RDE computes it; beside others of this file."""
    names = ('infonce',)
    shared_options = ('temperature',)


class TSE(Head):
    """A second embedding, pooled from the tokens that the first one is made of, trained by the losses that train the first."""
    names = ('tse',)
    embedding = 'TSE'
    embedding_width = 1024
    embedding_needs_attention = True
    embedding_reads_padding = False
    needs = ('image_tokens', 'text_tokens', 'image_attention', 'text_attention')
    uses_all_gather = True
    shared_options = ('tau', 'margin', 'temperature')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--select_ratio', type=positive(float, most=1), default=0.3,
                            help='share of patches and words that tse pools')
        parser.add_argument('--tse_mode', default='eval', choices=['eval', 'train'],
                            help="tse's batch norm in training: eval: by its first running statistics, which never change (RDE's code up "
                                 "to October 2024, and so its paper's figures); train: by the batch's")

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        return (LEARNING_RATE, weight_decay) if name.startswith(('visul_emb_layer', 'texual_emb_layer')) else (lr, weight_decay)

    @staticmethod
    def validate_options(args, active):
        if active and not chosen(args):
            raise UserError(f"the loss 'tse' trains its embedding by the losses beside it: add one of {', '.join(measures(args))} to "
                            f"--loss_names '{args.loss_names}'")

    def __init__(self, args, model):
        super().__init__()
        rows, cols = model.base_model.grid
        ratio, size = args.select_ratio, f'(--img_size, --stride_size: {rows}x{cols})'
        self.patches = kept(ratio, rows * cols, f'patches of an image {size}', 'select_ratio')
        self.words = kept(ratio, args.text_length - 2, f'words of a caption (--text_length {args.text_length})', 'select_ratio')
        self.details = model.shared(DetailLayers, model.embed_dim)
        self.fixed, self.measures = args.tse_mode == 'eval', chosen(args)

    def embed(self, side, tokens, caption_ids, attention):
        if side == 'image':
            return self.details.visul_emb_layer(tokens, attention, self.patches, self.fixed)              # [B, 1024]
        return self.details.texual_emb_layer(tokens, attention, caption_ids, self.words, self.fixed)      # [B, 1024]

    def attention_maps(self, side, tokens, caption_ids, attention):
        return {'TSE': selection_map(side, attention, caption_ids, self.patches, self.words)}

    def pair_losses(self, encoded, batch):
        whole = tuple(map(encoded.peers.gather, (*encoded.added['TSE'], batch['pids'])))
        return {f'tse {name}': measure(*whole) for name, (measure, _) in self.measures.items()}

    def forward(self, encoded, batch):
        losses = self.pair_losses(encoded, batch)
        clean = encoded.peers.gather(batch['clean']) if 'clean' in batch else None
        return {'tse_loss': sum(objectives.reduce_clean_pairs(losses[f'tse {name}'], clean, mean)
                                for name, (_, mean) in self.measures.items())}

    def micro_batch_unsupported(self):
        return 'it compares the second embeddings of the whole batch'

    def distributed_unsupported(self):
        return None if self.fixed else 'with --tse_mode train it normalises its tokens over the whole batch (--tse_mode eval does not)'


class Division(Head):
    """Consensus division: before each epoch, pairs that all similarities call noisy are left out of that epoch's losses."""
    shared_options = ('noisy_rate', 'dataset_name')

    @staticmethod
    def add_options(parser):
        yes_no(parser, '--ccd', False, 'divide the training pairs into clean and noisy ones before each epoch, by the losses of tal, trl, '
                                       'infonce, sdm and tse, and train on the clean ones (RDE)')

    @staticmethod
    def is_enabled(args):
        return args.ccd

    @staticmethod
    def validate_options(args, active):
        if active and not chosen(args):
            raise UserError(f"--ccd divides pairs by a loss that has one number a pair: add one of {', '.join(measures(args))} to "
                            f"--loss_names '{args.loss_names}'")

    def __init__(self, args, model):
        super().__init__()
        thorough = args.noisy_rate > 0.4 or args.dataset_name == 'RSTPReid'
        self.settings = noise_mixture.FINE_FIT if thorough else noise_mixture.COARSE_FIT

    def select_clean_pairs(self, losses, tie_breakers):
        return noise_mixture.select_by_consensus(list(losses.values()), coins, self.settings)

    def forward(self, encoded, batch):
        return {}

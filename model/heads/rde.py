"""RDE (Qin et al., CVPR 2024): losses per pair, a second embedding (TSE), and selection of clean pairs (CCD).

CCD is confident consensus division: before each epoch, it divides the training pairs into clean and noisy ones.
"""
from functools import partial

from model import noise_mixture, objectives
from model.heads import (
    AddsEmbedding, DrawsAttentionMaps, EnabledByOptions, HasPairLosses, Head, SelectsCleanPairs, UsesAllGather,
)
from model.heads.a2te import DetailLayers, count_pooled_tokens, selection_map
from utils.errors import UserError
from utils.option_types import add_boolean_option, non_negative_float, positive_float, positive_fraction

# RDE's command line reads only the first of these names in --loss_names and ignores the rest of the text.
REFERENCE_LOSS_NAMES = {
    name: f"is a name of RDE's reference implementation, which reads only '{name}' and trains both similarities on "
          f'clean pairs: give --loss_names {name.lower()}+tse --ccd, and the other settings as options (--tau, '
          '--margin, --select_ratio, --noisy_rate)'
    for name in ('TAL', 'TRL', 'InfoNCE', 'SDM')}

LEARNING_RATE = 1e-3   # of the TSE layers, for any --lr


def pair_loss_functions(args):
    """All losses per pair: {loss name: (function of (image, text, pids) to [B], reduction of the batch loss)}."""
    triplet = {'tau': args.tau, 'margin': args.margin, 'reduction': 'none'}
    softmax = {'scale': 1 / args.temperature, 'reduction': 'none'}
    return {
        'tal': (partial(objectives.tal, **triplet), 'sum'),
        'trl': (partial(objectives.trl, **triplet), 'sum'),
        'infonce': (lambda image, text, pids: objectives.itc(image, text, **softmax), 'mean'),
        'sdm': (partial(objectives.sdm, **softmax), 'mean')}


def selected_pair_losses(args):
    """The :func:`pair_loss_functions` that ``--loss_names`` names."""
    names = str(args.loss_names).replace(' ', '').split('+')
    return {name: function for name, function in pair_loss_functions(args).items() if name in names}


class PairLoss(HasPairLosses, Head):
    """Base class of losses with one number per pair, in which noisy pairs do not count."""

    def __init__(self, args, model):
        super().__init__()
        self.loss_function, self.reduction = pair_loss_functions(args)[self.names[0]]

    def pair_losses(self, encoded, batch):
        return {self.names[0]: self.loss_function(encoded.image, encoded.text, batch['pids'])}

    def forward(self, encoded, batch):
        losses = self.pair_losses(encoded, batch)[self.names[0]]
        return {f'{self.names[0]}_loss': objectives.reduce_clean_pairs(losses, batch.get('clean'), self.reduction)}


class TAL(PairLoss):
    """Triplet alignment loss (RDE, CVPR 2024).

    The hinge compares each pair with the log-sum-exp of all negatives of the batch, and the batch loss is the sum over
    pairs. The loss is objectives.tal.
    """
    names = ('tal',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--tau', type=positive_float, default=0.015, help='temperature of tal and trl (RDE)')
        parser.add_argument('--margin', type=non_negative_float, default=0.1,
                            help='margin of the hinge of tal and trl (RDE)')


class TRL(PairLoss):
    """Triplet ranking loss with the hardest negative (RDE, CVPR 2024).

    The batch loss is the sum over pairs. The loss is objectives.trl.
    """
    names = ('trl',)
    shared_options = ('tau', 'margin')


class InfoNCE(PairLoss):
    """Image-text contrast with one loss per pair (RDE, CVPR 2024).

    It equals itc, and supports --ccd and tse. The loss is objectives.itc.
    """
    names = ('infonce',)
    shared_options = ('temperature',)


class TSE(AddsEmbedding, HasPairLosses, UsesAllGather, DrawsAttentionMaps, Head):
    """Token selection embedding, a second embedding (RDE, CVPR 2024).

    The patches and words that the first embedding attends to most are pooled into a second one. Each of the losses
    tal, trl, infonce and sdm in --loss_names also trains the second embedding.
    """
    names = ('tse',)
    embedding = 'TSE'
    embedding_width = 1024
    embedding_needs_attention = True
    embedding_reads_padding = False
    needs = ('image_tokens', 'text_tokens', 'image_attention', 'text_attention')
    shared_options = ('tau', 'margin', 'temperature')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--select_ratio', type=positive_fraction, default=0.3,
                            help='fraction of the patches and words that tse pools (RDE)')
        parser.add_argument('--tse_mode', default='eval', choices=['eval', 'train'],
                            help='statistics of the batch norm of tse during training: eval, the initial running '
                                 "statistics (the figures of RDE's paper, and its code until October 2024); train, "
                                 'those of the batch')

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        is_detail_layer = name.startswith(('visul_emb_layer', 'texual_emb_layer'))   # spelled as in RDE's checkpoints
        return (LEARNING_RATE, weight_decay) if is_detail_layer else (lr, weight_decay)

    @staticmethod
    def validate_options(args, active):
        if active and not selected_pair_losses(args):
            raise UserError("the loss 'tse' needs a loss that trains its embedding: add one of "
                            f"{', '.join(pair_loss_functions(args))} to --loss_names '{args.loss_names}'")

    def __init__(self, args, model):
        super().__init__()
        grid = model.base_model.grid
        self.patches, self.words = count_pooled_tokens('select_ratio', args.select_ratio, grid, args.text_length)
        self.details = model.shared(DetailLayers, model.embed_dim)
        self.use_running_stats, self.loss_functions = args.tse_mode == 'eval', selected_pair_losses(args)

    def embed(self, side, tokens, caption_ids, attention):
        if side == 'image':
            return self.details.visul_emb_layer(tokens, attention, self.patches, self.use_running_stats)     # [B, 1024]
        return self.details.texual_emb_layer(tokens, attention, caption_ids, self.words, self.use_running_stats)

    def attention_maps(self, side, tokens, caption_ids, attention):
        return {'TSE': selection_map(side, attention, caption_ids, self.patches, self.words)}

    def pair_losses(self, encoded, batch):
        inputs = tuple(map(encoded.shard.all_gather, (*encoded.extra_embeddings['TSE'], batch['pids'])))
        return {f'tse {name}': function(*inputs) for name, (function, _) in self.loss_functions.items()}

    def forward(self, encoded, batch):
        losses = self.pair_losses(encoded, batch)
        clean = encoded.shard.all_gather(batch['clean']) if 'clean' in batch else None
        return {'tse_loss': sum(objectives.reduce_clean_pairs(losses[f'tse {name}'], clean, reduction)
                                for name, (_, reduction) in self.loss_functions.items())}

    def micro_batch_unsupported(self):
        return 'it compares the second embeddings of the whole batch'

    def distributed_unsupported(self):
        return None if self.use_running_stats else (
            'with --tse_mode train it normalizes tokens over the whole batch (--tse_mode eval does not)')


class CCD(EnabledByOptions, SelectsCleanPairs, Head):
    """Confident consensus division of the training pairs (RDE, CVPR 2024).

    Before each epoch, the losses of each similarity classify the pairs as clean or noisy. Pairs that all similarities
    classify as noisy do not count in the epoch. The method is in model/noise_mixture.py.
    """
    shared_options = ('noisy_rate', 'dataset_name')

    @staticmethod
    def add_options(parser):
        add_boolean_option(parser, '--ccd', False,
                           'selection of clean training pairs before each epoch, by the losses of tal, trl, infonce, '
                           'sdm and tse (RDE)')

    @staticmethod
    def is_enabled(args):
        return args.ccd

    @staticmethod
    def validate_options(args, active):
        if active and not selected_pair_losses(args):
            raise UserError('--ccd needs a loss with one number per pair: add one of '
                            f"{', '.join(pair_loss_functions(args))} to --loss_names '{args.loss_names}'")

    def __init__(self, args, model):
        super().__init__()
        needs_fine_fit = args.noisy_rate > 0.4 or args.dataset_name == 'RSTPReid'
        self.settings = noise_mixture.FINE_FIT if needs_fine_fit else noise_mixture.COARSE_FIT

    def select_clean_pairs(self, losses, tie_breakers):
        return noise_mixture.select_by_consensus(list(losses.values()), tie_breakers, self.settings)

    def forward(self, encoded, batch):
        return {}

"""DM-Adapter (Liu et al., AAAI 2025, arXiv 2503.04144): a mixture of adapters next to each MLP of frozen CLIP."""
import torch
import torch.nn.functional as F
from torch import nn

from model.clip_model import BlockTuning, LayerNorm
from model.expert_routing import RoutedExperts
from model.heads import Head
from model.tunings import Tuning
from model.tunings.adapter import BottleneckAdapter
from utils.errors import UserError

FACTORS = {'image': 0.1, 'text': 4.0}       # of the mixture's output


class AdapterMixture(RoutedExperts):
    """Mixture of E adapters, of which each token uses ``topk``."""

    def __init__(self, width, num_experts, topk, reduction):
        super().__init__()
        self.topk = topk
        self.experts = nn.ModuleList(BottleneckAdapter(width, width // reduction) for _ in range(num_experts))
        self.input_gate = nn.Linear(width, num_experts, bias=False)
        self.task_gate = nn.Linear(width, num_experts, bias=False)
        self.alpha = nn.Parameter(torch.tensor(0.5))
        for gate in (self.input_gate, self.task_gate):
            nn.init.normal_(gate.weight, std=0.02)

    def forward(self, x, task_param):
        """Mix the experts' outputs.

        All experts read all tokens, and the weight of an expert that a token does not use is 0. The experts are narrow,
        so this is faster than sorting tokens by expert, and shapes do not depend on the data (``--compile``).

        Args:
            x: [B, L, D].
            task_param: [D], the learned vector that the gate reads.

        Returns:
            The output [B, L, D], the gate logits [B, L, E], and the selected experts [B, L, E] as 1.0 or 0.0.
        """
        logits, weights, selected = self.route(x, task_param)
        down, down_bias = self.stack_parameters('down')                             # [E, R, D], [E, R]
        up, up_bias = self.stack_parameters('up')                                   # [E, D, R], [E, D]
        hidden = F.relu(F.linear(x, down.flatten(0, 1), down_bias.flatten()))       # [B, L, E * R]
        weights = weights.to(hidden.dtype)
        hidden = (hidden.unflatten(-1, down_bias.shape) * weights.unsqueeze(-1)).flatten(-2)
        return F.linear(hidden, up.transpose(0, 1).flatten(1)) + weights @ up_bias.to(hidden.dtype), logits, selected


class DMAdapterBlock(BlockTuning):
    """``factor`` times the mixture ``block.feed_forward`` of ln_3 x, next to the MLP.

    The routing of a sample is [2, E]: the mean over its tokens, padding included, of the gate's probability of each
    expert, and of the selections of each expert.
    """

    def __init__(self, factor):
        self.factor = factor

    def mlp_branch(self, block, x):
        mixed, logits, selected = block.feed_forward(block.ln_3(x), block.task_param)
        return self.factor * mixed, torch.stack([logits.softmax(dim=-1).mean(dim=1), selected.mean(dim=1)], dim=1)


def balance(routing):
    """Load-balancing loss of all blocks (Shazeer et al., ICLR 2017): [B, blocks, 2, E] -> scalar.

    For each expert of a block, the gate's mean probability is multiplied by the mean number of selections. The loss is
    the sum over experts and blocks. It is ``objectives.load_balance`` of means over the tokens of each sample.

    Example:
        >>> even = torch.tensor([[[[0.5, 0.5], [1.0, 1.0]]]])       # both of two experts are selected
        >>> balance(even)
        tensor(1.)
    """
    probability, selection = routing.mean(dim=0).unbind(dim=1)                      # [blocks, E] each
    return (probability * selection).sum()


class ExpertBalance(Head):
    """Even use of the experts (DM-Adapter, AAAI 2025).

    The loss is --aux_factor times the sum of ``balance`` over both encoders. Padding counts, so captions are not
    trimmed.
    """

    names = ('aux',)
    shared_options = ('aux_factor',)
    reads_padding = True

    def __init__(self, args, model):
        super().__init__()
        self.factor = args.aux_factor

    def forward(self, encoded, batch):
        return {'aux_loss': self.factor * (balance(encoded.image_routing) + balance(encoded.text_routing))}


class DMAdapter(Tuning):
    """A mixture of adapters next to each MLP (DM-Adapter, AAAI 2025).

    Each token of each block of both encoders uses the --topk best of --num_experts adapters. CLIP is frozen. The loss
    aux keeps the use of the adapters even; with this tuning, it replaces PHP's loss of the same name.
    """

    name = 'dm-adapter'
    shared_options = ('num_experts', 'topk', 'reduction', 'aux_factor')
    losses = {'aux': ExpertBalance}
    has_routing = True

    @staticmethod
    def validate_options(args):
        if args.topk > args.num_experts:
            raise UserError(f'--topk {args.topk} is above --num_experts {args.num_experts}: give a smaller --topk')
        if args.php_parts is not None:
            raise UserError('--tuning dm-adapter has a loss aux of its own, which replaces that of PHP, and '
                            f'--php_parts {args.php_parts} enables PHP: leave out one of them')

    def __init__(self, args, backbone):
        for side, _, block in self.numbered_blocks(backbone):
            block.task_param = nn.Parameter(torch.randn(block.width))
            block.ln_3 = LayerNorm(block.width)
            block.feed_forward = AdapterMixture(block.width, args.num_experts, args.topk, args.reduction)
            block.tuning = DMAdapterBlock(FACTORS[side])

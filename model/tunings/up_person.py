"""UP-Person (Liu et al., arXiv 2504.10084, 2025): adapters, low-rank keys and values, and prefixes in frozen CLIP."""
import torch
import torch.nn.functional as F
from torch import nn

from model.clip_model import BlockTuning
from model.tunings import Tuning
from model.tunings.adapter import BottleneckAdapter
from model.tunings.prefix import prepend
from utils.option_types import non_negative_int, positive_int_up_to

ADAPTER_REDUCTION = 8       # fixed in the reference implementation


class Scale(nn.Module):
    """A learned factor, which starts at 1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class KeyValueLora(nn.Module):
    """Low-rank update of the projections to keys (0) and values (1): scale B A, which starts at 0."""

    def __init__(self, width, rank):
        super().__init__()
        self.lora_A = nn.ParameterList(torch.empty(rank, width) for _ in range(2))
        self.lora_B = nn.ParameterList(torch.zeros(width, rank) for _ in range(2))
        self.scale = nn.ModuleList(Scale() for _ in range(2))
        for matrix in self.lora_A:
            nn.init.kaiming_uniform_(matrix, a=5 ** 0.5)

    def update(self):
        """Compute the update of the rows of keys and values of the input projection, [2 D, D], in float32."""
        with torch.autocast(self.lora_A[0].device.type, enabled=False):
            return torch.cat([factor.scale * (up @ down)
                              for up, down, factor in zip(self.lora_B, self.lora_A, self.scale)])


class PrefixTokens(nn.Module):
    """P learned tokens times a learned factor, [P, D]."""

    def __init__(self, width, length):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(length, width).uniform_(0, 0.01))
        self.scaler = Scale()

    def forward(self):
        return self.scaler.scale * self.tokens


class Prefix(nn.Module):
    """P learned keys and values that every token attends to.

    The reference implementation multiplies the attention to them by ``scale_to_grad`` after the softmax. Here the
    values are multiplied instead, which gives the same result with any implementation of attention.
    """

    def __init__(self, width, length):
        super().__init__()
        self.key = PrefixTokens(width, length)
        self.val = PrefixTokens(width, length)
        self.scale_to_grad = nn.Parameter(torch.tensor(100.0))

    def forward(self):
        """Return keys and values, [P, D] each."""
        return self.key(), self.scale_to_grad * self.val()


class UPPersonBlock(BlockTuning):
    """The modules of one block. Each may be missing.

    The adapters of the block are ``block.adapter_ln_msa`` and ``block.adapter_ln_mlp``. They read the block's residual
    stream instead of its normalized input, and their outputs are added to the normalized input.

    Args:
        has_adapters: whether the block has adapters.
        lora: the block's :class:`KeyValueLora`, or None.
        prefix: the block's :class:`Prefix`, or None.
    """

    def __init__(self, has_adapters, lora, prefix):
        self.has_adapters, self.lora, self.prefix = has_adapters, lora, prefix

    def attention_input(self, block, normalized, x):
        return normalized + block.scale_1 * block.adapter_ln_msa(x) if self.has_adapters else normalized

    def in_projection_weight(self, block, weight):
        if self.lora is None:
            return weight
        return weight + F.pad(self.lora.update(), (0, 0, block.width, 0))       # the rows of the queries are unchanged

    def keys_and_values(self, block, keys, values):
        if self.prefix is None:
            return keys, values, 0
        prefix_keys, prefix_values = self.prefix()
        return prepend(prefix_keys, keys), prepend(prefix_values, values), len(prefix_keys)

    def mlp_input(self, block, normalized, x):
        return normalized + block.scale_2 * block.adapter_ln_mlp(x) if self.has_adapters else normalized


class LoraLearner(nn.Module):
    """The low-rank updates of the first ``depth`` blocks of both encoders."""

    def __init__(self, widths, rank, depth):
        super().__init__()
        for side, side_widths in widths.items():
            setattr(self, f'lora_{side}', nn.ModuleList(KeyValueLora(width, rank) for width in side_widths[:depth]))


class PrefixLearner(nn.Module):
    """The prefixes of the first ``depth`` blocks of an encoder, in the list ``name``."""

    def __init__(self, name, widths, length, depth):
        super().__init__()
        setattr(self, name, nn.ModuleList(Prefix(width, length) for width in widths[:depth]))


class UPPerson(Tuning):
    """Adapters, low-rank keys and values, and prefixes (UP-Person, 2025).

    Each block of both encoders gets two adapters (L-Adapter) and a low-rank update of the projections to keys and
    values (LoRA). It also gets learned keys and values that every token attends to (S-Prefix). CLIP is frozen. The
    learning rate is --lr for all parameters, also those of heads.
    """

    name = 'up-person'

    @staticmethod
    def add_options(parser):
        parser.add_argument('--prefix_length', type=positive_int_up_to(10_000), default=20,
                            help='number of learned keys and values that a block adds to those of the tokens '
                                 '(UP-Person: 10)')
        parser.add_argument('--rank', type=positive_int_up_to(8192), default=64,
                            help='rank of the low-rank updates (UP-Person: 32)')
        parser.add_argument('--depth_lora', type=non_negative_int, default=12,
                            help='number of blocks of each encoder, from the first, that have low-rank updates')
        parser.add_argument('--depth_prefix', type=non_negative_int, default=12,
                            help='number of blocks of each encoder, from the first, that have prefixes')
        parser.add_argument('--depth_adapter', type=non_negative_int, default=0,
                            help='number of blocks of each encoder, from the first, that have no adapters')

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        return args.lr, weight_decay

    def __init__(self, args, backbone):
        blocks = self.numbered_blocks(backbone)
        widths = {side: [block.width for block_side, _, block in blocks if block_side == side]
                  for side in ('image', 'text')}
        lora = prefixes = {'image': (), 'text': ()}
        if args.depth_lora:
            backbone.LORA_learner = LoraLearner(widths, args.rank, args.depth_lora)
            lora = {side: getattr(backbone.LORA_learner, f'lora_{side}') for side in widths}
        if args.depth_prefix:
            length, depth = args.prefix_length, args.depth_prefix
            backbone.vit_prefix_learner = PrefixLearner('vit_prefix', widths['image'], length, depth)
            backbone.text_prefix_learner = PrefixLearner('text_prefix', widths['text'], length, depth)
            prefixes = {'image': backbone.vit_prefix_learner.vit_prefix,
                        'text': backbone.text_prefix_learner.text_prefix}
        for side, number, block in blocks:
            has_adapters = number >= args.depth_adapter
            if has_adapters:
                add_adapters(block)
            block.tuning = UPPersonBlock(has_adapters, *(parts[number] if number < len(parts) else None
                                                         for parts in (lora[side], prefixes[side])))


def add_adapters(block):
    """Add UP-Person's two adapters with their factors to a block."""
    for part in ('msa', 'mlp'):
        setattr(block, f'adapter_ln_{part}', BottleneckAdapter(block.width, block.width // ADAPTER_REDUCTION))
    block.scale_1, block.scale_2 = (nn.Parameter(torch.ones(())) for _ in range(2))

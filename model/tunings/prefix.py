"""Prefix tuning (Li and Liang, ACL 2021, arXiv 2101.00190) in both encoders."""
import torch
from torch import nn

from model.clip_model import BlockTuning
from model.tunings import Tuning


def prepend(prefix, sequence):
    """Put a prefix [P, D] before each sequence: [B, L, D] -> [B, P + L, D]."""
    return torch.cat([prefix.to(sequence.dtype).expand(sequence.shape[0], -1, -1), sequence], dim=1)


class PrefixBlock(BlockTuning):
    """Adds the block's learned keys and values before those of the tokens."""

    def keys_and_values(self, block, keys, values):
        return prepend(block.prefix_keys, keys), prepend(block.prefix_values, values), len(block.prefix_keys)


class Prefix(Tuning):
    """Prefix tuning (Li and Liang, ACL 2021): learned keys and values that all tokens of a block attend to.

    Each block of both encoders has its own. They are not projected and have no positions. The attention weights of a
    token add up to 1 over prefix and tokens. The parameters of a block are ``prefix_keys`` and ``prefix_values``
    [P, D]; they start at N(0, 0.02).
    """

    name = 'prefix'
    merge_unsupported = 'no weight computes its keys and values'
    shared_options = ('prefix_length',)

    def __init__(self, args, backbone):
        for _, _, block in self.numbered_blocks(backbone):
            block.prefix_keys, block.prefix_values = (
                nn.Parameter(0.02 * torch.randn(args.prefix_length, block.width)) for _ in range(2))
            block.tuning = PrefixBlock()

"""Parallel adapters (AdaptFormer, Chen et al., NeurIPS 2022, arXiv 2205.13535)."""
import torch.nn.functional as F
from torch import nn

from model.clip_model import BlockTuning
from model.tunings import Tuning
from utils.option_types import positive_float, positive_int_up_to


class BottleneckAdapter(nn.Module):
    """up(ReLU(down x)), from width to bottleneck and back. ``up`` starts at 0, so that nothing is added at the start.

    Args:
        width: D, of x [..., D] and of the result.
        bottleneck: width in between.
    """

    def __init__(self, width, bottleneck):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down.weight, a=5 ** 0.5)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x):
        """Compute [..., D] -> [..., D]."""
        return self.up(F.relu(self.down(x)))


class AdapterBlock(BlockTuning):
    """Adds the adapter next to the MLP."""

    def __init__(self, scale):
        self.scale = scale

    def mlp_branch(self, block, x):
        return self.scale * block.adapter(x), None


class Adapter(Tuning):
    """Parallel adapters (AdaptFormer, Chen et al., NeurIPS 2022): a bottleneck next to the MLP of each block.

    With x after attention, a block computes x + mlp(ln_2 x) + s up(ReLU(down x)). The parameters of a block are named
    ``adapter.down.*`` and ``adapter.up.*``.
    """

    name = 'adapter'
    merge_unsupported = 'an adapter is not linear'

    @staticmethod
    def add_options(parser):
        parser.add_argument('--adapter_width', type=positive_int_up_to(65536), default=64,
                            help='width of the bottleneck of --tuning adapter (AdaptFormer: 64)')
        parser.add_argument('--adapter_scale', type=positive_float, default=0.1,
                            help='factor on the output of --tuning adapter (AdaptFormer: 0.1)')

    def __init__(self, args, backbone):
        for _, _, block in self.numbered_blocks(backbone):
            block.adapter = BottleneckAdapter(block.width, args.adapter_width)
            block.tuning = AdapterBlock(args.adapter_scale)

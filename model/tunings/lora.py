"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on linear layers of the transformer blocks."""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from model.clip_model import BlockTuning, ResidualAttentionBlock
from model.tunings import Tuning
from utils.errors import UserError
from utils.option_types import positive_float, positive_int_up_to

PROJECTIONS = ('q', 'k', 'v')
TARGETS = (*PROJECTIONS, 'out', 'mlp')


class LowRank(nn.Module):
    """s B A x, with A [r, inputs] and B [outputs, r].

    A starts as the weight of a linear layer, and B at 0, so that nothing is added at the start.

    Args:
        inputs: width of x.
        outputs: width of the result.
        rank: r.
        scale: s.

    Example:
        >>> LowRank(4, 6, rank=2, scale=1.0)(torch.ones(3, 4)).shape
        torch.Size([3, 6])
    """

    def __init__(self, inputs, outputs, rank, scale):
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=5 ** 0.5)

    def forward(self, x):
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def delta(self):
        """Return s B A [outputs, inputs] in float32, which adds to the weight of a linear layer."""
        with torch.autocast(self.A.device.type, enabled=False):
            return self.scale * self.B @ self.A


class LowRankProjections(nn.ModuleDict):
    """A :class:`LowRank` for some of the queries, keys and values that one layer [3 D, D] computes.

    Args:
        names: some of 'q', 'k' and 'v'.
        width: D.
        rank, scale: as in :class:`LowRank`.
    """

    def __init__(self, names, width, rank, scale):
        super().__init__({name: LowRank(width, width, rank, scale) for name in PROJECTIONS if name in names})

    def forward(self, x):
        zeros = x.new_zeros(()).expand(*x.shape)
        return torch.cat([self[name](x) if name in self else zeros for name in PROJECTIONS], dim=-1)

    def delta(self):
        """Return what adds to the weight: [3 D, D]."""
        deltas = [self[name].delta() if name in self else None for name in PROJECTIONS]
        zeros = torch.zeros_like(next(delta for delta in deltas if delta is not None))
        return torch.cat([zeros if delta is None else delta for delta in deltas])


class LoraBlock(BlockTuning):
    """Adds LoRA to the weight of CLIP's input projection. The projection itself is computed as without LoRA."""

    def in_projection_weight(self, block, weight):
        return weight + block.attn.lora.delta()


class LoraMultiheadAttention(nn.MultiheadAttention):
    """An nn.MultiheadAttention that adds LoRA to its weights.

    PyTorch's class reads the weights of its layers and does not call the layers, so hooks would have no effect. An
    existing module gets this class by ``module.__class__``, and keeps its parameters and their names.
    """

    def forward(self, query, key, value, need_weights=False, attn_mask=None):
        inputs = (query, key, value)
        if self.batch_first:
            inputs = (x.transpose(0, 1) for x in inputs)                            # [L, B, D] each
        in_weight, out_weight = self.in_proj_weight, self.out_proj.weight
        if hasattr(self, 'lora'):
            in_weight = in_weight + self.lora.delta()
        if hasattr(self.out_proj, 'lora'):
            out_weight = out_weight + self.out_proj.lora.delta()
        out, attention = F.multi_head_attention_forward(
            *inputs, self.embed_dim, self.num_heads, in_weight, self.in_proj_bias, None, None, False, 0.0, out_weight,
            self.out_proj.bias, training=self.training, need_weights=need_weights, attn_mask=attn_mask)
        return out.transpose(0, 1) if self.batch_first else out, attention


def add_low_rank(layer, inputs, output):
    """Forward hook of a linear layer: add the output of its LoRA."""
    return output + layer.lora(inputs[0])


class Lora(Tuning):
    """LoRA (Hu et al., ICLR 2022): low-rank matrices B A add to weights of the blocks.

    The weights are those of queries, keys, values and the output of attention, and of the MLP. ``--lora_targets``
    chooses among them. The parameters are named ``<layer>.lora.A``, and of queries, keys and values
    ``<attention>.lora.<q, k or v>.A``. ``export --merge`` adds the product to the weights.
    """

    name = 'lora'
    backbones = ('clip', 'open_clip')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--lora_rank', type=positive_int_up_to(4096), default=8,
                            help='rank of the matrices of --tuning lora')
        parser.add_argument('--lora_alpha', type=positive_float, default=16.0,
                            help='strength of --tuning lora: alpha / rank multiplies the product of the matrices')
        parser.add_argument('--lora_targets', type=str, nargs='+', choices=TARGETS, default=('q', 'v'),
                            help='layers of each block that --tuning lora adds to: queries, keys, values and output of '
                                 'attention, and the layers of the MLP (LoRA: q v)')

    def __init__(self, args, backbone):
        self.settings = args.lora_rank, args.lora_alpha / args.lora_rank
        if backbone.tunable_blocks():
            blocks = [block for _, _, block in self.numbered_blocks(backbone)]
        else:
            check_blocks(backbone)
            blocks = [block for block, _ in backbone.blocks()]
        projections = [name for name in PROJECTIONS if name in args.lora_targets]
        for block in blocks:
            if projections:
                self.add_to_projections(block, projections)
            if 'out' in args.lora_targets:
                self.add_to_output(block.attn)
            if 'mlp' in args.lora_targets:
                for layer in [part for part in block.mlp.modules() if isinstance(part, nn.Linear)]:
                    self.add_to_layer(layer)

    def add_to_projections(self, block, names):
        """Add to the weights of queries, keys or values, which are one layer or three."""
        attention = block.attn
        if hasattr(attention, 'in_proj_weight'):
            attention.lora = LowRankProjections(names, attention.in_proj_weight.shape[1], *self.settings)
            if isinstance(block, ResidualAttentionBlock):
                block.tuning = LoraBlock()
            else:
                attention.__class__ = LoraMultiheadAttention
        elif getattr(attention, 'qkv', None) is not None:
            attention.qkv.lora = LowRankProjections(names, attention.qkv.in_features, *self.settings)
            attention.qkv.register_forward_hook(add_low_rank)
        else:
            for name in names:
                self.add_to_layer(getattr(attention, f'{name}_proj'))

    def add_to_output(self, attention):
        """Add to the weight of the layer after attention."""
        layer = attention.out_proj if hasattr(attention, 'out_proj') else attention.proj
        if isinstance(attention, nn.MultiheadAttention):
            layer.lora = LowRank(layer.in_features, layer.out_features, *self.settings)
            attention.__class__ = LoraMultiheadAttention
        else:
            self.add_to_layer(layer)

    def add_to_layer(self, layer):
        """Add to a linear layer. Its weight keeps its name."""
        layer.lora = LowRank(layer.in_features, layer.out_features, *self.settings)
        layer.register_forward_hook(add_low_rank)

    def merge(self, backbone):
        merged = {}
        for name, layer in backbone.named_modules():
            if hasattr(layer, 'lora'):
                weight = f'{name}.in_proj_weight' if hasattr(layer, 'in_proj_weight') else f'{name}.weight'
                value = backbone.get_parameter(weight)
                merged[weight] = (value.double() + copy.deepcopy(layer.lora).double().delta()).to(value.dtype)
        return merged


def check_blocks(backbone):
    """Raise :class:`UserError` unless both encoders of open_clip have blocks with layers that LoRA can change."""
    blocks = [block for block, _ in backbone.blocks()]
    image_modules = set(backbone.base_model.visual.modules())
    has_both = len({block in image_modules for block in blocks}) == 2
    # timm reads the weight of such a layer without calling it, so that a hook would be without effect.
    is_known = all(hasattr(block, 'attn') and hasattr(block, 'mlp') and getattr(block.attn, 'q_bias', None) is None
                   for block in blocks)
    if not (has_both and is_known):
        raise UserError('--tuning lora needs transformer blocks with the layers attn and mlp in both encoders, and an '
                        'encoder of --pretrain_choice has others: choose a ViT, or --tuning none')

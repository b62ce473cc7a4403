"""ALBEF's image encoder: a Vision Transformer (Dosovitskiy et al., ICLR 2021) with timm's parameter names."""
import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

EPS = 1e-6      # of layer norms, as in timm


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> patches [B, P, D], row by row."""

    def __init__(self, patch_size, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values: [B, N, D] -> [B, N, D]."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)      # [3, B, heads, N, D/heads]
        return self.proj(F.scaled_dot_product_attention(*qkv.unbind()).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, Linear, ``ratio`` times as wide in between: [..., D] -> [..., D]."""

    def __init__(self, width, ratio=4):
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm self-attention and MLP: [B, N, D] -> [B, N, D]."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Images [B, 3, H, W] -> tokens [B, N, D], class token first.

    Args:
        img_size: (height, width) in pixels, multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        width: D.
        layers: number of blocks.
        heads: number of attention heads.
        init_std: standard deviation of the weights before training.
    """

    def __init__(self, img_size, patch_size, width, layers, heads, init_std=0.02):
        super().__init__()
        self.grid = tuple(side // patch_size for side in img_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.grad_checkpoint = False
        self.apply(functools.partial(initialize_linear, std=init_std))
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, images, visible=None):
        """Encode images.

        Args:
            images: [B, 3, H, W], normalized.
            visible: [B, K] numbers of the patches to encode; None for all.

        Returns:
            [B, N, D], or [B, 1 + K, D] with ``visible``.
        """
        x = self.patch_embed(images) + self.pos_embed[:, 1:]                             # [B, P, D]
        if visible is not None:
            x = take_tokens(x, visible)                                                  # [B, K, D]
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            if self.grad_checkpoint and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


def take_tokens(tokens, positions):
    """Take the tokens at each sample's positions: [B, N, D], [B, K] -> [B, K, D]."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def initialize_linear(part, std):
    """Initialize the weight of a linear layer from a truncated normal with deviation ``std``, and its bias to 0."""
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=std)
        nn.init.zeros_(part.bias)


def resize_pos_embed(table, grid):
    """Resize a position table of a square grid, class token first: [1, 1 + s*s, D] -> [1, 1 + rows*cols, D].

    The interpolation is bicubic, as in ALBEF's reference implementation. A table of this grid's size stays unchanged.
    """
    if table.shape[1] == 1 + grid[0] * grid[1]:
        return table
    side = round((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)        # [1, D, s, s]
    patches = F.interpolate(patches, size=grid, mode='bicubic', align_corners=False)     # [1, D, rows, cols]
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

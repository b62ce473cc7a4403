"""APTM's image encoder: Swin Transformer (Liu et al., ICCV 2021), under the parameter names of its released weights.

Window attention, stochastic depth and patch merging are torchvision's. What differs from torchvision's own Swin: a stage whose shorter
side is not larger than the window takes that side as a square window and does not shift, and the MLP's layers have their released names.
"""
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.swin_transformer import PatchMerging, ShiftedWindowAttention
from torchvision.ops import StochasticDepth

EPS = 1e-5


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> patches [B, H/p, W/p, C]."""

    def __init__(self, patch_size, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, images):
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Attention(ShiftedWindowAttention):
    """torchvision's, with the index of relative positions as the released weights keep it: [N, N] for a window of N."""

    def define_relative_position_index(self):
        super().define_relative_position_index()
        side = self.window_size[0] * self.window_size[1]
        self.relative_position_index = self.relative_position_index.view(side, side)


class MLP(nn.Module):
    def __init__(self, width, ratio=4):
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm window attention and MLP, [B, H, W, C] -> the same; each branch is dropped for a whole image at the rate ``drop_path``."""

    def __init__(self, width, heads, grid, window, shift, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, [window, window], [shift, shift], heads)
        self.drop_path = StochasticDepth(drop_path, 'row')
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)
        if shift:       # kept because released weights hold it; torchvision makes its own, of the same numbers
            self.register_buffer('attn_mask', shift_mask(grid, window, shift))

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def shift_mask(grid, window, shift):
    """-100 between places of a shifted window that are no neighbours in the image, else 0: [windows, N, N]."""
    height, width = grid
    region = torch.zeros(height, width)
    for number, (rows, columns) in enumerate((rows, columns) for rows in strips(window, shift) for columns in strips(window, shift)):
        region[rows, columns] = number
    region = region.view(height // window, window, width // window, window).permute(0, 2, 1, 3).reshape(-1, window * window)
    return (region[:, None] != region[:, :, None]).float() * -100


def strips(window, shift):
    return slice(0, -window), slice(-window, -shift), slice(-shift, None)


class Stage(nn.Module):
    """Blocks, every second of them shifted, and patch merging behind them in every stage but the last."""

    def __init__(self, width, depth, heads, grid, window, drop_paths, merges):
        super().__init__()
        shift = window // 2 if min(grid) > window else 0
        window = min(window, *grid)
        self.blocks = nn.ModuleList([
            Block(width, heads, grid, window, shift if number % 2 else 0, drop_paths[number]) for number in range(depth)])
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x, grad_checkpoint=False):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if grad_checkpoint else block(x)
        return x if self.downsample is None else self.downsample(x)


class SwinTransformer(nn.Module):
    """Images [B, 3, H, W] of ``img_size`` -> tokens [B, 1 + N, D]: the mean of the last stage's N places, then those.

    ``width`` is the first stage's and doubles with each of the others. Raises ValueError where ``img_size`` does not divide into
    whole windows (:func:`misfit` says why).
    """

    def __init__(self, img_size=(384, 128), patch_size=4, width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=8, drop_path=0.1):
        super().__init__()
        reason = misfit(img_size, patch_size, len(depths), window)
        if reason:
            raise ValueError(reason)
        self.patch_embed = PatchEmbed(patch_size, width)
        rates = [drop_path * number / max(sum(depths) - 1, 1) for number in range(sum(depths))]
        self.layers = nn.ModuleList()
        for number, (depth, count) in enumerate(zip(depths, heads)):
            grid = stage_grid(img_size, patch_size, number)
            first = sum(depths[:number])
            self.layers.append(Stage(width * 2 ** number, depth, count, grid, window, rates[first:first + depth],
                                     merges=number < len(depths) - 1))
        self.width = width * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(self.width, eps=EPS)
        self.grad_checkpoint = False
        self.apply(initialise)

    def forward(self, images):
        x = self.patch_embed(images)                                        # [B, H/p, W/p, C]
        for layer in self.layers:
            x = layer(x, self.grad_checkpoint and self.training)
        x = self.norm(x).flatten(1, 2)                                      # [B, N, D]
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)           # [B, 1 + N, D]


def stage_grid(img_size, patch_size, number):
    """Rows and columns of the patches in a stage, counted from 0."""
    return tuple(side // (patch_size * 2 ** number) for side in img_size)


def misfit(img_size, patch_size, stages, window):
    """Why images of ``img_size`` (height, width) cannot be cut into the stages' windows, or None."""
    step = patch_size * 2 ** (stages - 1)
    if any(side % step for side in img_size):
        return f'height and width of the images must be multiples of {step}, and are {img_size[0]} x {img_size[1]}'
    for number in range(stages):
        grid = stage_grid(img_size, patch_size, number)
        side = min(window, *grid)
        if any(length % side for length in grid):
            return (f'images of {img_size[0]} x {img_size[1]} make {grid[0]} x {grid[1]} places in stage {number + 1}, which windows '
                    f'of {side} x {side} cannot cover')
    return None


def initialise(part):
    """As released: linear layers from a truncated normal with deviation 0.02 and without bias. Position tables have theirs."""
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)

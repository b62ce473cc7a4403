"""APTM's image encoder: Swin Transformer (Liu et al., ICCV 2021), under the parameter names of its released weights.

Window attention, stochastic depth and patch merging are torchvision's. Two things differ from torchvision's own Swin.
If the shorter side of a stage is not larger than the window, that side becomes the window and nothing is shifted. The
layers of the MLP have the names of the released weights.
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
    """Pre-norm window attention and MLP: [B, H, W, C] -> [B, H, W, C].

    Stochastic depth drops each branch for a whole image at the rate ``drop_path``.
    """

    def __init__(self, width, heads, grid, window, shift, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, [window, window], [shift, shift], heads)
        self.drop_path = StochasticDepth(drop_path, 'row')
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)
        if shift:       # a buffer of the released weights; torchvision computes its own with the same numbers
            self.register_buffer('attn_mask', shift_mask(grid, window, shift))

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def shift_mask(grid, window, shift):
    """Return -100 between positions of a shifted window that are no neighbors in the image, else 0: [W, N, N]."""
    height, width = grid
    region, slices = torch.zeros(height, width), strips(window, shift)
    for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
        region[rows, columns] = number
    region = region.view(height // window, window, width // window, window).permute(0, 2, 1, 3)
    region = region.reshape(-1, window * window)
    return (region[:, None] != region[:, :, None]).float() * -100


def strips(window, shift):
    return slice(0, -window), slice(-window, -shift), slice(-shift, None)


class Stage(nn.Module):
    """Blocks, every second one shifted, followed by patch merging except in the last stage."""

    def __init__(self, width, depth, heads, grid, window, drop_paths, merges):
        super().__init__()
        shift = window // 2 if min(grid) > window else 0
        window = min(window, *grid)
        self.blocks = nn.ModuleList([
            Block(width, heads, grid, window, shift if number % 2 else 0, drop_paths[number])
            for number in range(depth)])
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x, grad_checkpoint=False):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if grad_checkpoint else block(x)
        return x if self.downsample is None else self.downsample(x)


class SwinTransformer(nn.Module):
    """Images [B, 3, H, W] of ``img_size`` -> tokens [B, 1 + N, D].

    The first token is the mean of the last stage's N positions; the others are these positions.

    Args:
        img_size: (height, width) in pixels.
        patch_size: side of a patch in pixels.
        width: width of the first stage; it doubles with each further stage.
        depths: number of blocks of each stage.
        heads: number of attention heads of each stage.
        window: side of a window in positions.
        drop_path: rate of stochastic depth in the last block.

    Raises:
        ValueError: ``img_size`` does not divide into windows; :func:`explain_misfit` gives the reason.
    """

    def __init__(self, img_size=(384, 128), patch_size=4, width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32),
                 window=8, drop_path=0.1):
        super().__init__()
        reason = explain_misfit(img_size, patch_size, len(depths), window)
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
        self.apply(initialize)

    def forward(self, images):
        x = self.patch_embed(images)                                        # [B, H/p, W/p, C]
        for layer in self.layers:
            x = layer(x, self.grad_checkpoint and self.training)
        x = self.norm(x).flatten(1, 2)                                      # [B, N, D]
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)           # [B, 1 + N, D]


def stage_grid(img_size, patch_size, number):
    """Return the rows and columns of positions in stage ``number``, counted from 0."""
    return tuple(side // (patch_size * 2 ** number) for side in img_size)


def explain_misfit(img_size, patch_size, stages, window):
    """Return why images of ``img_size`` (height, width) do not divide into the stages' windows; None if they do."""
    step = patch_size * 2 ** (stages - 1)
    if any(side % step for side in img_size):
        return f'height and width of the images must be multiples of {step}, and are {img_size[0]} x {img_size[1]}'
    for number in range(stages):
        grid = stage_grid(img_size, patch_size, number)
        side = min(window, *grid)
        if any(length % side for length in grid):
            return (f'images of {img_size[0]} x {img_size[1]} make {grid[0]} x {grid[1]} positions in stage '
                    f'{number + 1}, which windows of {side} x {side} cannot cover')
    return None


def initialize(part):
    """Initialize linear layers: weights from a truncated normal with standard deviation 0.02, biases 0."""
    if isinstance(part, nn.Linear):
        nn.init.trunc_normal_(part.weight, std=0.02)
        if part.bias is not None:
            nn.init.zeros_(part.bias)

"""CLIP's image and text encoders (Radford et al. 2021, arXiv 2103.00020) under OpenAI's parameter names.

Every encoder returns all its tokens, projected into the common space. ``model/build.py`` chooses the token that becomes
the embedding. Parameters are float32; half precision comes from torch.autocast.
"""
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from utils.errors import UserError


@dataclass
class ClipShape:
    """The sizes of a CLIP. If the number of heads is not given, heads are 64 wide, as in all of OpenAI's models.

    ``vision_layers`` is a number of blocks, or for a ResNet the bottlenecks of its four stages (``vision_patch_size``
    is None then). ``image_resolution`` (pixels, square) and ``text_length`` are those of the pretrained position
    tables; the first is None if the table is not square. Neither limits what a :class:`CLIP` is built for.
    """
    embed_dim: int
    image_resolution: int | None
    vision_layers: int | tuple
    vision_width: int
    vision_patch_size: int | None
    text_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    vision_heads: int | None = None
    text_heads: int | None = None

    def __post_init__(self):
        if self.is_resnet:
            self.vision_layers = tuple(self.vision_layers)
        trunk_width = self.vision_width * 32 if self.is_resnet else self.vision_width
        self.vision_heads = self.vision_heads or head_count(trunk_width)
        self.text_heads = self.text_heads or head_count(self.text_width)

    @property
    def is_resnet(self):
        return not isinstance(self.vision_layers, int)


def head_count(width):
    if width % 64:
        raise UserError(f'a transformer of width {width} cannot be divided into heads of 64: choose a multiple of 64')
    return width // 64


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the input's precision."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


QUICK_GELU_FACTOR = 1.702   # of QuickGELU


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x):
        return F.silu(QUICK_GELU_FACTOR * x) / QUICK_GELU_FACTOR


class SiLULinear(torch.autograd.Function):
    """``linear(SiLU(x))`` that keeps only x for the backward pass and recomputes the activation.

    It saves a fifth of a block's memory and costs one pass over x.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(F.silu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        x_grad = weight_grad = bias_grad = None
        rows = grad.flatten(0, -2)                                                  # [B*L, D]
        if ctx.needs_input_grad[0]:
            x_grad = torch.ops.aten.silu_backward(grad @ weight, x)
        if ctx.needs_input_grad[1]:     # not if the weight is frozen (--tuning)
            weight_grad = rows.t() @ F.silu(x).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            bias_grad = rows.sum(0)
        return x_grad, weight_grad, bias_grad


class MLP(nn.Sequential):
    """Linear, activation (``'quick_gelu'`` or ``'gelu'``), Linear, four times as wide in between.

    ``lean`` computes the same up to rounding, in less time and memory. The two factors of QuickGELU are multiplied into
    the weights before and after it, and only the first layer's output is kept for the backward pass. Layers with hooks,
    wrapped or exchanged layers, and GELU are called one after the other.
    """
    lean = False

    def __init__(self, width, activation='quick_gelu'):
        gelu = {'quick_gelu': QuickGELU, 'gelu': nn.GELU}[activation]()
        super().__init__(OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=gelu, c_proj=nn.Linear(4 * width, width)))

    def forward(self, x):
        kinds = (self.c_fc, nn.Linear), (self.gelu, QuickGELU), (self.c_proj, nn.Linear)
        if not self.lean or not all(is_plain(layer, kind) for layer, kind in kinds):
            return super().forward(x)
        x = F.linear(x, QUICK_GELU_FACTOR * self.c_fc.weight, QUICK_GELU_FACTOR * self.c_fc.bias)   # [B, L, 4 D]
        weight, bias = self.c_proj.weight / QUICK_GELU_FACTOR, self.c_proj.bias
        return SiLULinear.apply(x, weight.to(x.dtype), bias.to(x.dtype))


HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def is_plain(layer, kind):
    """Whether calling the layer only computes with its parameters: it has no other class, hooks or forward method."""
    # PyTorch 2.6 cannot compile vars(layer)
    return type(layer) is kind and 'forward' not in layer.__dict__ and not any(getattr(layer, hooks) for hooks in HOOKS)


class Attention(nn.Module):
    """Multi-head attention, batch first, with the parameters of nn.MultiheadAttention.

    ``forward(query [B, Lq, D], keys [B, Lk, D], values [B, Lk, D])`` returns ``(out [B, Lq, D], map)``. Without
    ``keys`` it is self-attention; without ``values`` the keys are the values. The map is the attention averaged over
    the heads, [B, Lq, Lk], and None unless ``need_map``. If ``causal``, a position sees itself and earlier ones.
    ``dropout`` is the rate of dropout on the attention weights in training. ``block`` is the block whose
    :class:`BlockTuning` changes the weight of the input projection, the keys and the values. The map has no columns of
    keys that the tuning adds, so its rows then sum to less than 1.
    """
    dropout = 0.0

    def __init__(self, width, heads):
        super().__init__()
        if width % heads:
            raise UserError(f'{heads} attention heads cannot share a width of {width}')
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query, keys=None, values=None, causal=False, need_map=False, block=None):
        if block is None:
            (q, k, v), added_count = self._project(query, keys, values), 0          # [B, L, D] each
        else:
            weight = block.tuning.in_projection_weight(block, self.in_proj_weight)
            q, k, v = F.linear(query, weight, self.in_proj_bias).chunk(3, dim=-1)
            k, v, added_count = block.tuning.keys_and_values(block, k, v)           # [B, P + L, D] each
        q, k, v = (self._split(x) for x in (q, k, v))                               # [B, H, L, D/H] each
        if need_map:
            weights = attention_weights(q, k, causal, added_count)                  # [B, H, Lq, P + Lk]
            attention = weights[..., added_count:].mean(1)
            out = F.dropout(weights, self.dropout, self.training).to(v.dtype) @ v
        else:
            dropout, attention = self.dropout if self.training else 0.0, None
            mask = ~causal_mask(q, k, added_count) if causal and added_count else None
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout,
                                                 is_causal=causal and mask is None)
        out = out.transpose(1, 2).flatten(2)                                        # [B, Lq, D]
        return self.out_proj(out), attention

    def _project(self, query, keys, values):
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if keys is None:
            return F.linear(query, weight, bias).chunk(3, dim=-1)
        values = keys if values is None else values
        width = query.shape[-1]
        q = F.linear(query, weight[:width], bias[:width])
        if values is keys:
            return (q, *F.linear(keys, weight[width:], bias[width:]).chunk(2, dim=-1))
        k = F.linear(keys, weight[width:2 * width], bias[width:2 * width])
        return q, k, F.linear(values, weight[2 * width:], bias[2 * width:])

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)                    # [B, L, D] -> [B, H, L, D/H]


def attention_weights(q, k, causal, added_count=0):
    """softmax(q k^T / sqrt(D/H)): [B, H, Lq, D/H], [B, H, Lk, D/H] -> [B, H, Lq, Lk].

    All queries attend to the first ``added_count`` keys, also if ``causal``.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(causal_mask(q, k, added_count), float('-inf'))
    return scores.float().softmax(dim=-1)


def causal_mask(q, k, added_count):
    """Return the causal mask [Lq, Lk]: True for keys that a query must not attend to, because they are after it.

    The first ``added_count`` keys have no position, so it is False for them.
    """
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(added_count + 1)


class BlockTuning:
    """The extension points of a :class:`ResidualAttentionBlock`. By default, none of them changes anything.

    A :class:`~model.tunings.Tuning` sets ``block.tuning`` to an instance of a subclass. Parameters of one block are
    attributes of the block (``block.scale_1 = nn.Parameter(...)``), so checkpoints have them under its name. The
    methods read them from ``block``, because ``--shard`` replaces them.

    Attributes:
        is_random: whether a method draws random numbers in training, such as dropout (for ``--grad_checkpoint``).
    """
    is_random = False

    def attention_input(self, block, normalized, x):
        """Return what attention reads, instead of ``normalized``.

        Args:
            block: the block.
            normalized: [B, L, D], ln_1 x.
            x: [B, L, D], the block's input.
        """
        return normalized

    def in_projection_weight(self, block, weight):
        """Return the weight [3 D, D] that projects to queries, keys and values, instead of ``weight``."""
        return weight

    def keys_and_values(self, block, keys, values):
        """Return other keys and values, and the number P of keys and values that were added *before* them.

        All queries attend to the added ones, also in the text encoder.

        Args:
            block: the block.
            keys: [B, L, D], with all attention heads next to each other.
            values: [B, L, D].

        Returns:
            (keys [B, P + L, D], values [B, P + L, D], P).
        """
        return keys, values, 0

    def mlp_input(self, block, normalized, x):
        """Return what the MLP reads, instead of ``normalized``.

        Args:
            block: the block.
            normalized: [B, L, D], ln_2 x.
            x: [B, L, D], the block's input plus the output of attention.
        """
        return normalized

    def mlp_branch(self, block, x):
        """Compute a branch next to the MLP.

        Args:
            block: the block.
            x: [B, L, D], the block's input plus the output of attention.

        Returns:
            ``(branch, routing)``. The branch [B, L, D] is added to the block's output; None: no branch. The routing
            [B, ...] has a fixed shape per sample, which losses of the tuning read (:class:`~model.tunings.Tuning`);
            None: none.
        """
        return None, None


class ResidualAttentionBlock(nn.Module):
    """x + attn(ln_1 x), then x + mlp(ln_2 x).

    ``forward(x [B, L, D])`` returns ``(x, attention map or None)``. If ``tuning`` has a branch with a routing, it
    returns ``(x, map or None, routing [B, ...])``. The routing is an output, because with ``--grad_checkpoint`` a block
    is computed twice.

    Attributes:
        tuning: the :class:`BlockTuning` of ``--tuning``; None: the block computes what CLIP's does.
    """
    tuning = None

    def __init__(self, width, heads, activation='quick_gelu'):
        super().__init__()
        self.width = width
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.ln_2 = LayerNorm(width)

    def forward(self, x, causal=False, need_map=False):
        if self.tuning is not None:
            return self._forward_with_tuning(x, causal, need_map)
        attended, attention = self.attn(self.ln_1(x), causal=causal, need_map=need_map)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), attention

    def _forward_with_tuning(self, x, causal, need_map):
        normalized = self.tuning.attention_input(self, self.ln_1(x), x)
        attended, attention = self.attn(normalized, causal=causal, need_map=need_map, block=self)
        x = x + attended
        out = x + self.mlp(self.tuning.mlp_input(self, self.ln_2(x), x))
        branch, routing = self.tuning.mlp_branch(self, x)
        if branch is not None:
            out = out + branch
        return (out, attention) if routing is None else (out, attention, routing)


class Transformer(nn.Module):
    """Pre-norm blocks: ``forward(x [B, L, D])`` returns ``(x, attention map of the last block or None)``.

    With ``grad_checkpoint``, only the input of each block is kept for the backward pass and the rest is recomputed
    (Chen et al. 2016, arXiv 1604.06174). The list ``routing`` gets the routing of each block, if ``--tuning`` has one.
    """

    def __init__(self, width, layers, heads, activation='quick_gelu'):
        super().__init__()
        self.grad_checkpoint = False
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, activation) for _ in range(layers))

    def forward(self, x, causal=False, need_map=False, routing=None):
        attention = None
        for i, block in enumerate(self.resblocks, start=1):
            settings = causal, need_map and i == len(self.resblocks)
            if self.grad_checkpoint and torch.is_grad_enabled():
                # Without dropout nothing in a block is random, so no random state is kept.
                is_random = block.attn.dropout > 0 or block.tuning is not None and block.tuning.is_random
                x, attention, *block_routing = checkpoint(block, x, *settings, use_reentrant=False,
                                                          preserve_rng_state=is_random)
            else:
                x, attention, *block_routing = block(x, *settings)
            if routing is not None:
                routing += block_routing
        return x, attention

    def reset_parameters(self):
        """Initialize as CLIP: layers that write into the residual stream are scaled down with the depth."""
        width = self.resblocks[0].ln_1.weight.shape[0]
        out_std = width ** -0.5 * (2 * len(self.resblocks)) ** -0.5
        for block in self.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width ** -0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=out_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=out_std)


class VisionTransformer(nn.Module):
    """``forward(images [B, 3, H, W])`` returns ``(tokens [B, N, embed_dim], map [B, N, N] or None)``.

    N = 1 + rows * cols, class token first. Patches overlap if the stride is below the patch size. ``embed`` and
    ``encode`` are the two halves; code that drops or replaces tokens does so between them.
    """

    def __init__(self, shape, img_size, stride_size, activation='quick_gelu'):
        super().__init__()
        width, patch = shape.vision_width, shape.vision_patch_size
        self.patch_size, self.stride_size = patch, stride_size
        self.grid = tuple((size - patch) // stride_size + 1 for size in img_size)
        check_grid(self.grid, img_size, f'a patch of {patch} pixels')
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + self.grid[0] * self.grid[1], width))
        self.proj = nn.Parameter(torch.empty(width, shape.embed_dim))
        self.conv1 = nn.Conv2d(3, width, patch, stride_size, bias=False)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, shape.vision_layers, shape.vision_heads, activation)
        self.ln_post = LayerNorm(width)

    def forward(self, images, need_map=False, routing=None):
        return self.encode(self.embed(images), need_map, routing)

    def embed(self, images):
        """Embed class token and patches with their positions, before ``ln_pre``: [B, 3, H, W] -> [B, N, width]."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)                     # [B, rows*cols, width]
        # shape[0] and not len(), so that an ONNX export keeps the batch size variable
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.positional_embedding

    def encode(self, tokens, need_map=False, routing=None):
        """Encode some of ``embed``'s tokens: [B, N', width] -> ([B, N', embed_dim], [B, N', N'] or None)."""
        x, attention = self.transformer(self.ln_pre(tokens), need_map=need_map, routing=routing)
        return self.ln_post(x) @ self.proj, attention

    def reset_parameters(self):
        std = self.class_embedding.shape[0] ** -0.5
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=std)
        self.transformer.reset_parameters()


def check_grid(grid, img_size, needed):
    if min(grid) < 1:
        raise UserError(f'--img_size {img_size[0]} {img_size[1]} is too small for {needed}')


class Bottleneck(nn.Module):
    """A residual bottleneck that strides by average pooling after its 3x3 convolution, which has stride 1."""
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(OrderedDict([        # OpenAI's names: the pooling has no number
                ('pool', nn.AvgPool2d(stride)), ('0', nn.Conv2d(inputs, outputs, 1, bias=False)),
                ('1', nn.BatchNorm2d(outputs))]))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.pool(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """The mean of all positions attends to itself and to them: [B, C, rows, cols] -> [B, embed_dim]."""

    def __init__(self, grid, width, heads, embed_dim):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)                                            # [B, N, C]
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.positional_embedding
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)                               # [B, H, 1, C/H]
        return self.c_proj(out.flatten(1))

    def reset_parameters(self):
        std = self.q_proj.weight.shape[0] ** -0.5
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=std)
        nn.init.normal_(self.positional_embedding, std=std)


class ModifiedResNet(nn.Module):
    """CLIP's ResNets, which return one vector per image.

    ``forward(images [B, 3, H, W])`` returns ``(tokens [B, 1, embed_dim], None)``.
    The stem has three convolutions and a pooling. Strides are poolings, against aliasing. Attention replaces the last
    pooling.
    """

    def __init__(self, shape, img_size):
        super().__init__()
        width = shape.vision_width
        self.patch_size = self.stride_size = None
        self.grid = tuple((size + 1) // 2 // 16 for size in img_size)   # the first stride rounds up, four more down
        check_grid(self.grid, img_size, "a ResNet's 32-fold reduction")
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        for i, blocks in enumerate(shape.vision_layers):
            stage_width = width * 2 ** i
            setattr(self, f'layer{i + 1}', resnet_stage(inputs, stage_width, blocks, stride=1 if i == 0 else 2))
            inputs = stage_width * Bottleneck.expansion
        self.attnpool = AttentionPool(self.grid, inputs, shape.vision_heads, shape.embed_dim)

    def forward(self, images, need_map=False, routing=None):
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)                        # [B, width, H/4, W/4]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))                   # [B, 32 width, H/32, W/32]
        return self.attnpool(x).unsqueeze(1), None

    def reset_parameters(self):
        self.attnpool.reset_parameters()
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                nn.init.zeros_(block.bn3.weight)    # each block starts as the identity


def resnet_stage(inputs, width, blocks, stride):
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(width * Bottleneck.expansion, width, 1) for _ in range(blocks - 1)))


class CLIP(nn.Module):
    """Both encoders with random weights. ``model.clip_weights.build_clip`` loads pretrained ones.

    Args:
        shape: a :class:`ClipShape`.
        img_size: (height, width) in pixels.
        stride_size: pixels between patches; not used by a ResNet.
        text_length: number of tokens of the longest caption.
        activation: ``'quick_gelu'`` or ``'gelu'``, of the transformers.

    Attributes:
        has_image_tokens: False for a ResNet, which returns one vector per image.
        grid: (rows, cols) of the image's positions.
        patch_size: pixels; None for a ResNet, as is ``stride_size``.

    Raises:
        UserError: the image is smaller than a patch.
    """

    def __init__(self, shape, img_size, stride_size=16, text_length=77, activation='quick_gelu'):
        super().__init__()
        self.embed_dim, self.vocab_size, self.text_length = shape.embed_dim, shape.vocab_size, text_length
        self.activation = activation
        self.has_image_tokens = not shape.is_resnet
        self.positional_embedding = nn.Parameter(torch.empty(text_length, shape.text_width))
        self.text_projection = nn.Parameter(torch.empty(shape.text_width, shape.embed_dim))
        if shape.is_resnet:
            self.visual = ModifiedResNet(shape, img_size)
        else:
            self.visual = VisionTransformer(shape, img_size, stride_size, activation)
        self.transformer = Transformer(shape.text_width, shape.text_layers, shape.text_heads, activation)
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.text_width)
        self.ln_final = LayerNorm(shape.text_width)
        visual = self.visual
        self.grid, self.patch_size, self.stride_size = visual.grid, visual.patch_size, visual.stride_size
        if not self.text_projection.is_meta:    # PyTorch takes long to draw no numbers
            self.reset_parameters()

    def reset_parameters(self):
        """Initialize by CLIP's rules, also the image transformer, which OpenAI's code leaves to PyTorch."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)
        self.transformer.reset_parameters()
        self.visual.reset_parameters()

    def encode_image(self, images, need_map=False, routing=None):
        """Encode images: [B, 3, H, W] -> (tokens [B, N, embed_dim], class token first; map [B, N, N] or None).

        The map is the last block's attention averaged over the heads. A ResNet has N = 1 and no map. The list
        ``routing`` gets the routing of each block (:meth:`BlockTuning.mlp_branch`).
        """
        return self.visual(images, need_map, routing)

    def encode_text(self, ids, need_map=False, routing=None):
        """Encode token ids: [B, L] -> (tokens [B, L, embed_dim], map [B, L, L] or None).

        No token sees a later one. So ids may be trimmed to the batch's longest caption without changing other tokens.
        """
        x = self.token_embedding(ids) + self.positional_embedding[:ids.shape[1]]    # [B, L, width]
        x, attention = self.transformer(x, causal=True, need_map=need_map, routing=routing)
        return self.ln_final(x) @ self.text_projection, attention

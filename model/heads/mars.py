"""MARS (Ergasti et al., ACM TOMM 2025): a text-guided masked autoencoder and an attribute loss."""
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from model import objectives
from model.heads.a2te import group_means
from model.heads.rasa import AlbefHead, NegativesHead, count_over_ranks, read_pairs_and_negatives
from model.heads.sen import patchify
from utils.errors import UserError


class CrossAttention(nn.Module):
    """Multi-head attention of x [B, N, D] to source [B, M, D], which may be x itself: -> [B, N, D]."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x, source):
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)      # [B, heads, N or M, D/heads]
                             for part in (self.to_q(x), self.to_k(source), self.to_v(source)))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first by GELU (Shazeer 2020): [..., D] -> [..., E]."""

    def __init__(self, width, inner_width):
        super().__init__()
        self.l = nn.Linear(width, 2 * inner_width)     # the official name

    def forward(self, x):
        values, gates = self.l(x).chunk(2, dim=-1)
        return values * F.gelu(gates)


class FeedForward(nn.Module):
    """Two linear layers with GEGLU between them: [..., D] -> [..., D]."""

    def __init__(self, width, ratio=4):
        super().__init__()
        # The second entry is the dropout of the reference implementation, whose rate is 0.
        self.net = nn.Sequential(GEGLU(width, ratio * width), nn.Identity(), nn.Linear(ratio * width, width))

    def forward(self, x):
        return self.net(x)


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, attention to a caption, and feed-forward part: [B, N, D], [B, L, D] -> [B, N, D]."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, heads), CrossAttention(width, heads)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, text_tokens):
        source = self.norm1(x)
        x = x + self.attn1(source, source)
        x = x + self.attn2(self.norm2(x), text_tokens)
        return x + self.ff(self.norm3(x))


class VisualDecoder(nn.Module):
    """Image tokens [B, N, D] and caption tokens [B, L, D] -> [B, N, D]. No token is hidden, padding included."""

    def __init__(self, width, layers, heads, grad_checkpoint=False):
        super().__init__()
        self.blocks = nn.ModuleList([DecoderBlock(width, heads) for _ in range(layers)])
        self.grad_checkpoint = grad_checkpoint

    def forward(self, x, text_tokens):
        for block in self.blocks:
            if self.grad_checkpoint and self.training:
                x = checkpoint(block, x, text_tokens, use_reentrant=False)
            else:
                x = block(x, text_tokens)
        return x


class MaskedAutoencoder(AlbefHead):
    """On the backbone albef: text-guided masked autoencoder (MARS, ACM TOMM 2025; MAE: He et al., CVPR 2022).

    The image encoder reads a few patches of each image. A decoder restores the other patches from them and from the
    caption. The loss is objectives.restoration.
    """
    names = ('mae',)
    shared_options = ('mae_loss_weight', 'mask_ratio')
    reads_padding = True

    def __init__(self, args, model):
        super().__init__()
        shape, width = model.backbone.shape, model.image_width
        if model.text_width != width:
            raise UserError(f"the loss 'mae' of the backbone albef needs image and text tokens of one width, and they "
                            f'are {width} and {model.text_width} wide: choose another --pretrain_choice')
        self.weight, self.patch_size = args.mae_loss_weight, shape.patch_size
        rows, columns = model.backbone.visual_encoder.grid
        self.patch_count = rows * columns
        self.visible_count = int(self.patch_count * (1 - args.mask_ratio))
        self.visual_decoder = VisualDecoder(width, shape.decoder_layers, shape.decoder_heads, args.grad_checkpoint)
        self.decoder_pred = nn.Linear(width, 3 * shape.patch_size ** 2)
        positions = max(shape.decoder_positions, 1 + self.patch_count)
        self.visual_decoder_pos_embed = nn.Parameter(width ** -0.5 * torch.randn(positions, width))
        self.mask_token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, encoded, batch):
        images, shard = batch['images'], encoded.shard
        # All ranks draw for the global batch, so that the draws do not depend on their number.
        noise = torch.rand((shard.global_size(images), self.patch_count), device=images.device)
        visible = shard.local_rows(noise).argsort(dim=1)[:, :self.visible_count].sort(dim=1).values         # [b, K]
        with shard.per_rank_rng():
            restored = self.restore(encoded.encoder.visual_encoder(images, visible), visible, encoded.text_tokens)
        is_hidden = torch.ones_like(images[:, :1, 0, 0]).repeat(1, self.patch_count).scatter(1, visible, 0)  # [b, P]
        loss = objectives.restoration(restored[:, 1:], patchify(images, self.patch_size), is_hidden)
        return {'mae_loss': self.weight * loss}

    def restore(self, tokens, visible, text_tokens):
        """Predict the colors of all patches.

        Args:
            tokens: [b, 1 + K, D] of the class token and the visible patches.
            visible: [b, K], the numbers of these patches.
            text_tokens: [b, L, D] of the captions.

        Returns:
            [b, 1 + P, 3 patch^2] in normalized colors; the first row is the class token's and means nothing.
        """
        positions = visible[..., None].expand(-1, -1, tokens.shape[-1])
        patches = self.mask_token.to(tokens.dtype).expand(len(tokens), self.patch_count, -1)
        x = torch.cat([tokens[:, :1], patches.scatter(1, positions, tokens[:, 1:])], dim=1)              # [b, 1 + P, D]
        x = x + self.visual_decoder_pos_embed[:x.shape[1]]
        return self.decoder_pred(self.visual_decoder(x, text_tokens))


class AttributeMatching(NegativesHead):
    """On the backbone albef: matching of each attribute of a caption with the image (MARS, ACM TOMM 2025).

    The pairs and negatives are those of pitm. For each attribute, the mean of its tokens predicts by pitm's layer
    whether caption and image belong together. The loss is objectives.attribute_matching.
    """
    names = ('attribute',)
    fields = ('second_images', 'attributes_mask')
    shared_options = (*NegativesHead.shared_options, 'attribute_weight', 'attribute_tagger')

    def __init__(self, args, model):
        super().__init__(args, model)
        self.weight = args.attribute_weight

    def forward(self, encoded, batch):
        shard, groups = encoded.shard, batch['attributes_mask']                                       # [b, L]
        tokens, matches, negatives = read_pairs_and_negatives(self, encoded, batch)
        if negatives is not None:
            groups = torch.cat([groups, groups, shard.all_gather(groups)[negatives.texts]])           # [3b, L]
        attributes, is_attribute = group_means(tokens.float(), groups)                                # [3b, K, D]
        count = count_over_ranks(is_attribute.any(dim=1), batch, shard)
        loss = objectives.attribute_matching(self.matching(attributes), matches, is_attribute, caption_count=count)
        return {'attribute_loss': self.weight * loss}

    def micro_batch_weight(self, micro_batch, batch):
        return 1    # each rank's loss is a sum, divided by the count of the global batch

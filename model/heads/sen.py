"""SEN (Text-guided Image Restoration and Semantic Enhancement, 2024): restore a colour image from a few of its patches in
grey and the caption, and keep each pair closer than its hardest negatives."""

import torch
from torch import nn

from model import objectives
from model.clip_model import Attention, LayerNorm, Transformer
from model.heads import Head, HeadReport
from model.heads.mlm import output_std
from utils.errors import UserError
from utils.option_types import open_fraction, weight
from utils.pictures import pyplot, wrap_text

GREY = (0.2989, 0.5870, 0.1140)   # of red, green and blue (ITU-R 601)


class MAE(Head):
    """Text-guided restoration: a masked autoencoder (He et al., CVPR 2022) of the image in grey, with the caption's help.

    ``sample_order`` chooses the patches and ``restore`` restores; ``report`` draws pictures with them.
    """
    names = ('mae',)
    report_flag = 'restoration'
    report_help = 'also report what SEN restores: errors of hidden patches with right and wrong captions, JSON and figure'
    report_needs = "restoration; it comes with SEN (the loss 'mae')"
    needs = ('image_tokens', 'text_tokens', "CLIP's image encoder")
    shared_options = ('cmt_depth',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--mask_ratio', type=open_fraction, default=0.8,
                            help='share of the image tokens that mae hides (SEN: 0.7)')
        parser.add_argument('--mae_loss_weight', type=weight, default=1.0, help='weight of mae (SEN: 10)')

    def __init__(self, args, model):
        super().__init__()
        width, grid, patch = model.embed_dim, model.base_model.grid, model.base_model.patch_size
        check_tiling(args.img_size, patch, model.base_model.stride_size)
        self.weight, self.patch_size = args.mae_loss_weight, patch
        self.tokens = 1 + grid[0] * grid[1]
        self.keep = count_visible_tokens(self.tokens, args.mask_ratio)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        # A parameter that never learns, as in the published checkpoints.
        self.decoder_pos_embed = nn.Parameter(sincos_position_embedding(grid, width)[None], requires_grad=False)
        self.decoder_embed = nn.Linear(width, width)
        self.cross_attn_Text = Attention(width, width // 64)
        self.cross_modal_transformer_mae = Transformer(width, args.cmt_depth, width // 64)
        self.decoder_pred = nn.Linear(width, patch * patch * 3)
        for number in (1, 2, 4, 6, 7):
            setattr(self, f'norm_{number}', LayerNorm(width))
        # In the published checkpoints, and read by nothing.
        self.cross_attn_TextImage, self.cross_attn_Image = Attention(width, width // 64), Attention(width, width // 64)
        self.norm_3, self.norm_5 = LayerNorm(width), LayerNorm(width)
        self.reset_parameters(args.cmt_depth)

    def reset_parameters(self, depth):
        """IRRA's deviations for attention and blocks, MAE's for what is around them."""
        width = self.mask_token.shape[-1]
        nn.init.normal_(self.mask_token, std=0.02)
        for attention in (self.cross_attn_Text, self.cross_attn_TextImage, self.cross_attn_Image):
            nn.init.normal_(attention.in_proj_weight, std=width ** -0.5)
            nn.init.normal_(attention.out_proj.weight, std=output_std(width, depth))
        self.cross_modal_transformer_mae.reset_parameters()
        for layer in (self.decoder_embed, self.decoder_pred):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, encoded, batch):
        images = batch['images']
        everyones = images.new_empty((encoded.shard.global_size(images), 0))              # all processes draw for all images
        order = encoded.shard.local_rows(self.sample_order(everyones))
        restored = self.restore(encoded.encoder, images, encoded.text_tokens, order)    # [B, N-1, 3 patch^2]
        loss = objectives.restoration(restored, patchify(images, self.patch_size), self.scored_patches(order))
        return {'mae_loss': self.weight * loss}

    def micro_batch_weight(self, piece, batch):
        return len(piece['pids']) / len(batch['pids'])   # as many patches are scored in each image

    def sample_order(self, images):
        """A random order of each image's tokens, the class token first: [B, N] positions; the first ``keep`` are seen."""
        noise = torch.rand((len(images), self.tokens), device=images.device)
        class_token = torch.zeros(self.tokens, dtype=torch.bool, device=images.device)
        class_token[0] = True
        return noise.masked_fill(class_token, -1).argsort(dim=1)

    def scored_patches(self, order):
        """Patches that count in the loss, [B, N-1]. The released mask takes the first ``keep`` patches for seen, although
        the class token is one of the ``keep`` tokens: so the first hidden patch is not scored."""
        rank = order.argsort(dim=1)[:, 1:] - 1          # of each patch among the patches
        return (rank >= self.keep).float()

    def restore(self, encoder, images, text_tokens, order):
        """The patches' colours from the ``keep`` first tokens of the grey image and the caption.

        [B, 3, H, W], [B, L, D], [B, N] -> [B, N-1, 3 patch^2], in the images' normalised colours, laid out as
        :func:`patches` does.
        """
        tokens = encoder.visual.embed(to_gray(images))                                 # [B, N, width]
        seen, _ = encoder.visual.encode(take(tokens, order[:, :self.keep]))         # [B, keep, D]
        text = self.norm_2(text_tokens)                                             # [B, L, D]
        x = self.decoder_embed(self.norm_1(seen))
        hidden = self.mask_token.to(x.dtype).expand(len(x), self.tokens - self.keep, -1)
        x = take(torch.cat([x, hidden], dim=1), order.argsort(dim=1))               # [B, N, D], in the image's order again
        x = x + self.decoder_pos_embed
        x, _ = self.cross_attn_Text(self.norm_4(x), text, text)                     # no residual
        x, _ = self.cross_modal_transformer_mae(self.norm_6(x))
        return self.decoder_pred(self.norm_7(x))[:, 1:]


    def report(self, split, number=6):
        """Restorations of ``number`` images, spread over the split, with their own captions and with another person's."""
        chosen = pick_evenly(split.entries, number)
        captions = [entry['captions'][0] for entry in chosen]
        wrong = [caption_of_another_identity(entry, split.entries) for entry in chosen]
        views, errors = restore_with_captions(self, split.run.model, split.load_images(chosen), [split.tokens(captions), split.tokens(wrong)],
                                     split.seed)
        text = (f"mean squared error of hidden patches: {errors[0]:.4f} with the image's own caption, "
                f'{errors[1]:.4f} with a wrong one')
        content = {'error_is': 'mean squared error of hidden patches, in normalised colours', 'own_caption': errors[0],
                   'wrong_caption': errors[1], 'images': len(chosen)}
        return HeadReport(text, content, lambda: draw_restorations(split.colours(views), captions, wrong))


class Tri(Head):
    """SEN's semantic enhancement: a triplet loss on the hardest negatives of the batch."""
    names = ('tri',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--tri_loss_weight', type=weight, default=1.0, help='weight of tri (SEN: 10)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.tri_loss_weight

    def forward(self, encoded, batch):
        return {'tri_loss': self.weight * objectives.tri(encoded.image, encoded.text, batch['pids'])}


def check_tiling(img_size, patch, stride):
    if stride != patch:
        raise UserError("the loss 'mae' restores patches that do not overlap and have no gaps: set --stride_size to the "
                        f'patch size, {patch}, instead of {stride}')
    if any(size % patch for size in img_size):
        height, width = (max(1, size // patch) * patch for size in img_size)
        raise UserError(f"the loss 'mae' needs an image that patches of {patch} pixels tile, and --img_size {img_size[0]} "
                        f'{img_size[1]} is none: take {height} {width}')


def count_visible_tokens(tokens, mask_ratio):
    """How many of an image's tokens are seen, the class token among them."""
    keep = int(tokens * (1 - mask_ratio)) if 0 < mask_ratio < 1 else 0
    if not 1 <= keep <= tokens - 2:     # one hidden patch is not scored, so there must be two
        raise UserError(f'--mask_ratio {mask_ratio:g} leaves nothing to see or nothing to restore of {tokens - 1} patches: '
                        'it must lie between 0 and 1, and not that close to either')
    return keep


def take(tokens, positions):
    """The tokens at each sample's positions: [B, N, D], [B, K] -> [B, K, D]."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def to_gray(images):
    """[B, 3, H, W] -> the same in grey, three equal channels."""
    shade = sum(weight * channel for weight, channel in zip(GREY, images.unbind(1)))    # [B, H, W]
    return shade.unsqueeze(1).expand_as(images)


def patchify(images, size):
    """[B, 3, H, W] -> [B, rows*cols, size*size*3]: pixels row by row, red, green and blue of each together."""
    batch, _, height, width = images.shape
    x = images.reshape(batch, 3, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * 3)


def unpatchify(values, size, grid):
    """:func:`patches` undone: [B, rows*cols, size*size*3] -> [B, 3, rows*size, cols*size]."""
    x = values.reshape(len(values), *grid, size, size, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(values), 3, grid[0] * size, grid[1] * size)


def sincos_position_embedding(grid, width):
    """Fixed positions (He et al., CVPR 2022): [1 + rows*cols, width], the column in the first half, the row in the second,
    each half sines then cosines; zeros for the class token."""
    rows, cols = (torch.arange(n, dtype=torch.float64) for n in grid)
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    along = [axis[:, None] * frequencies for axis in (cols, rows)]
    by_col, by_row = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in along)   # [cols or rows, width/2]
    by_col, by_row = by_col.expand(grid[0], -1, -1), by_row[:, None].expand(-1, grid[1], -1)
    table = torch.cat([by_col, by_row], dim=-1).flatten(0, 1)                               # [rows*cols, width]
    return torch.cat([torch.zeros(1, width), table.float()])


# -- the report of what is restored --------------------------------------------------------------------------------------

COLUMNS = ('original', 'what SEN sees:\na few patches, grey', 'restored with\nthe own caption', "restored with\nanother's caption")


def pick_evenly(entries, number):
    """``number`` of the entries, evenly over all."""
    if not entries:
        raise UserError('the test split has no entries: there is nothing to restore')
    places = torch.linspace(0, len(entries) - 1, min(number, len(entries))).long().tolist()
    return [entries[place] for place in places]


def caption_of_another_identity(entry, entries):
    """The first caption, behind the entry and then from the start, of another identity."""
    start = entries.index(entry)
    for other in entries[start:] + entries[:start]:
        if other['id'] != entry['id']:
            return other['captions'][0]
    raise UserError('the test split has one identity only: there is no wrong caption to restore with')


@torch.no_grad()
def restore_with_captions(head, model, images, captions, seed):
    """The pictures of ``COLUMNS`` for images [K, 3, H, W], [K, 4, 3, H, W] in their normalised colours, and for each of the token ids
    [K, L] in ``captions`` the error that the loss would see. All captions get the same patches, drawn with ``seed``."""
    grid, size = model.base_model.grid, head.patch_size
    torch.manual_seed(seed)
    order = head.sample_order(images)
    hidden = (order.argsort(dim=1)[:, 1:] >= head.keep).float()                         # [K, N-1]
    hidden = unpatchify(hidden[..., None].expand(-1, -1, 3 * size * size), size, grid)     # [K, 3, H, W]
    views, errors = [images, to_gray(images) * (1 - hidden)], []
    for ids in captions:
        with model.autocast():
            restored = head.restore(model.base_model, images, model.base_model.encode_text(ids)[0], order).float()
        errors.append(objectives.restoration(restored, patchify(images, size), head.scored_patches(order)).item())
        views.append(torch.where(hidden > 0, unpatchify(restored, size, grid), to_gray(images)))
    return torch.stack(views, dim=1), errors


def draw_restorations(views, captions, wrong):
    """A figure with a row for each image: its own caption, the pictures [K, 4, 3, H, W] in colours from 0 to 1, the wrong caption."""
    rows, columns = views.shape[:2]
    figure, axes = pyplot().subplots(rows, columns + 2, figsize=(6 + 1.3 * columns, 2.9 * rows + 0.5), squeeze=False,
                                     width_ratios=[2.4] + [1] * columns + [2.4])
    for row, pictures, own, other in zip(axes, views, captions, wrong):
        for axis, text in ((row[0], own), (row[-1], other)):
            axis.text(0.02, 0.5, wrap_text(text, 34), va='center', ha='left', fontsize=8, transform=axis.transAxes,
                      parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, picture in zip(row[1:-1], pictures):
            axis.imshow(picture.permute(1, 2, 0).numpy())
    for axis, title in zip(axes[0][1:-1], COLUMNS):
        axis.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    return figure

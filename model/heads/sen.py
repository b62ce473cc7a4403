"""SEN (Text-guided Image Restoration and Semantic Enhancement, 2024): image restoration and a triplet loss."""
import torch
from torch import nn

from model import objectives
from model.clip_model import Attention, LayerNorm, Transformer
from model.heads import HasReport, Head, HeadReport, ImageTable, TrainsInMicroBatches
from model.heads.mlm import output_std
from utils.errors import UserError
from utils.option_types import non_negative_float, open_fraction, positive_int

GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)   # of red, green and blue (ITU-R 601)


class MAE(TrainsInMicroBatches, HasReport, Head):
    """Text-guided image restoration, a masked autoencoder (SEN, 2024).

    The head restores the colors of an image from its caption and a few of its patches in gray (MAE: He et al., CVPR
    2022). The loss is objectives.restoration.
    """
    names = ('mae',)
    report_flag = 'restoration'
    report_help = ("report of SEN's restored patches: errors with matching and wrong captions, as a JSON file, and a "
                   'figure')
    report_needs = "restoration; SEN has it (the loss 'mae')"
    needs = ('image_tokens', 'text_tokens', "CLIP's image encoder")
    shared_options = ('cmt_depth',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--mask_ratio', type=open_fraction, default=0.8,
                            help='fraction of the image tokens that mae hides (SEN: 0.7; MARS: 0.75)')
        parser.add_argument('--mae_loss_weight', type=non_negative_float, default=1.0,
                            help='weight of the loss mae (SEN: 10; MARS: 1)')

    def __init__(self, args, model):
        super().__init__()
        width, grid, patch = model.embed_dim, model.base_model.grid, model.base_model.patch_size
        check_tiling(args.img_size, patch, model.base_model.stride_size)
        self.weight, self.patch_size = args.mae_loss_weight, patch
        self.token_count = 1 + grid[0] * grid[1]
        self.visible_count = count_visible_tokens(self.token_count, args.mask_ratio)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        # A constant, but a parameter in the published checkpoints.
        self.decoder_pos_embed = nn.Parameter(sincos_position_embedding(grid, width)[None], requires_grad=False)
        self.decoder_embed = nn.Linear(width, width)
        self.cross_attn_Text = Attention(width, width // 64)
        self.cross_modal_transformer_mae = Transformer(width, args.cmt_depth, width // 64)
        self.decoder_pred = nn.Linear(width, patch * patch * 3)
        for number in (1, 2, 4, 6, 7):
            setattr(self, f'norm_{number}', LayerNorm(width))
        # In the published checkpoints and unused.
        self.cross_attn_TextImage = Attention(width, width // 64)
        self.cross_attn_Image = Attention(width, width // 64)
        self.norm_3, self.norm_5 = LayerNorm(width), LayerNorm(width)
        self.reset_parameters(args.cmt_depth)

    def reset_parameters(self, depth):
        """Initialize attention and blocks as IRRA does, and the other layers as MAE does."""
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
        # All ranks draw the patches of the global batch, and use those of their own images.
        global_batch = images.new_empty((encoded.shard.global_size(images), 0))
        order = encoded.shard.local_rows(self.sample_order(global_batch))
        restored = self.restore(encoded.encoder, images, encoded.text_tokens, order)    # [b, N-1, 3 patch^2]
        mask = self.scored_patches(order)
        loss = objectives.restoration(restored, patchify(images, self.patch_size), mask)
        return {'mae_loss': self.weight * loss}

    def sample_order(self, images):
        """Draw an order of each image's tokens: positions [B, N], class token first.

        The first ``visible_count`` tokens are visible.
        """
        noise = torch.rand((len(images), self.token_count), device=images.device)
        is_class_token = torch.zeros(self.token_count, dtype=torch.bool, device=images.device)
        is_class_token[0] = True
        return noise.masked_fill(is_class_token, -1).argsort(dim=1)

    def scored_patches(self, order):
        """Which patches count in the loss: [B, N] -> [B, N-1] of 0 and 1.

        The first hidden patch does not count. The reference implementation treats the first ``visible_count`` patches
        as visible, although the class token is one of the ``visible_count`` tokens.
        """
        rank = order.argsort(dim=1)[:, 1:] - 1          # of each patch among the patches
        return (rank >= self.visible_count).float()

    def restore(self, encoder, images, text_tokens, order):
        """Predict the colors of all patches.

        Args:
            encoder: CLIP.
            images: [B, 3, H, W].
            text_tokens: [B, L, D].
            order: [B, N] of :meth:`sample_order`; the first ``visible_count`` tokens of the gray image are read.

        Returns:
            [B, N-1, 3 patch^2] in normalized colors, in the layout of :func:`patchify`.
        """
        tokens = encoder.visual.embed(to_gray(images))                              # [B, N, width]
        visible, _ = encoder.visual.encode(take_tokens(tokens, order[:, :self.visible_count]))      # [B, visible, D]
        text = self.norm_2(text_tokens)                                             # [B, L, D]
        x = self.decoder_embed(self.norm_1(visible))
        hidden = self.mask_token.to(x.dtype).expand(len(x), self.token_count - self.visible_count, -1)
        x = take_tokens(torch.cat([x, hidden], dim=1), order.argsort(dim=1))        # [B, N, D] in the image's order
        x = x + self.decoder_pos_embed
        x, _ = self.cross_attn_Text(self.norm_4(x), text, text)                     # no residual connection
        x, _ = self.cross_modal_transformer_mae(self.norm_6(x))
        return self.decoder_pred(self.norm_7(x))[:, 1:]

    @staticmethod
    def add_report_options(parser):
        parser.add_argument('--images', type=positive_int, default=6,
                            help='number of images for --restoration, at even distances in the test split')

    def report(self, split):
        """Restore images of the split, each with its own caption and with one of another identity."""
        captioned = [entry for entry in split.entries if entry['captions']]
        entries = pick_evenly(captioned, split.args.images)
        captions = [entry['captions'][0] for entry in entries]
        wrong_captions = [caption_of_another_identity(entry, captioned) for entry in entries]
        token_ids = [split.tokenize(captions), split.tokenize(wrong_captions)]
        images = split.load_images(entries)
        panels, errors = restore_with_captions(self, split.run.model, images, token_ids, split.seed)
        text = (f"mean squared error of hidden patches: {errors[0]:.4f} with the image's own caption, "
                f'{errors[1]:.4f} with a wrong one')
        content = {'error_is': 'mean squared error of hidden patches, in normalized colors', 'own_caption': errors[0],
                   'wrong_caption': errors[1], 'images': len(entries)}
        return HeadReport(text, content, ImageTable(split.denormalize(panels), COLUMNS, captions, wrong_captions))


class Tri(Head):
    """Triplet loss with the hardest negatives of the batch (SEN, 2024).

    It is SEN's semantic enhancement. The loss is objectives.tri.
    """
    names = ('tri',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--tri_loss_weight', type=non_negative_float, default=1.0,
                            help='weight of the loss tri (SEN: 10)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.tri_loss_weight

    def forward(self, encoded, batch):
        return {'tri_loss': self.weight * objectives.tri(encoded.image, encoded.text, batch['pids'])}


def check_tiling(img_size, patch, stride):
    """Raise UserError if patches of ``patch`` pixels do not tile an image of ``img_size`` (height, width)."""
    if stride != patch:
        raise UserError("the loss 'mae' restores patches that do not overlap and have no gaps: set --stride_size to "
                        f'the patch size, {patch}, instead of {stride}')
    if any(size % patch for size in img_size):
        height, width = (max(1, size // patch) * patch for size in img_size)
        raise UserError(f"the loss 'mae' needs an --img_size of multiples of the patch size, {patch}, and it is "
                        f'{img_size[0]} {img_size[1]}: give --img_size {height} {width}')


def count_visible_tokens(tokens, mask_ratio):
    """How many of an image's tokens are visible, including the class token."""
    count = int(tokens * (1 - mask_ratio)) if 0 < mask_ratio < 1 else 0
    if not 1 <= count <= tokens - 2:     # one hidden patch does not count in the loss, so two must be hidden
        raise UserError(f'--mask_ratio {mask_ratio:g} leaves nothing to see or nothing to restore of {tokens - 1} '
                        'patches: give a value further from 0 and 1')
    return count


def take_tokens(tokens, positions):
    """The tokens at each sample's positions: [B, N, D], [B, K] -> [B, K, D]."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def to_gray(images):
    """Convert to gray, with three equal channels: [B, 3, H, W] -> [B, 3, H, W]."""
    gray = sum(weight * channel for weight, channel in zip(GRAY_WEIGHTS, images.unbind(1)))     # [B, H, W]
    return gray.unsqueeze(1).expand_as(images)


def patchify(images, size):
    """Cut images into patches: [B, 3, H, W] -> [B, rows*cols, size*size*3].

    A patch holds its pixels row by row, and red, green and blue of each pixel together.
    """
    batch, _, height, width = images.shape
    x = images.reshape(batch, 3, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * 3)


def unpatchify(values, size, grid):
    """Inverse of :func:`patchify`: [B, rows*cols, size*size*3] -> [B, 3, rows*size, cols*size]."""
    x = values.reshape(len(values), *grid, size, size, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(values), 3, grid[0] * size, grid[1] * size)


def sincos_position_embedding(grid, width):
    """Fixed position embeddings (MAE: He et al., CVPR 2022), [1 + rows*cols, width].

    The first half of a vector encodes the column and the second half the row, each with sines, then cosines. The class
    token has zeros.
    """
    rows, cols = (torch.arange(n, dtype=torch.float64) for n in grid)
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = [axis[:, None] * frequencies for axis in (cols, rows)]
    col_codes, row_codes = (torch.cat([a.sin(), a.cos()], dim=1) for a in angles)           # [cols or rows, width/2]
    col_codes, row_codes = col_codes.expand(grid[0], -1, -1), row_codes[:, None].expand(-1, grid[1], -1)
    table = torch.cat([col_codes, row_codes], dim=-1).flatten(0, 1)                         # [rows*cols, width]
    return torch.cat([torch.zeros(1, width), table.float()])


# -- The report of restored images

COLUMNS = ('original', 'input of SEN:\na few patches, gray', "restored with\nthe image's caption",
           "restored with\nanother's caption")


def pick_evenly(entries, number):
    """Pick ``number`` entries at even distances."""
    if not entries:
        raise UserError('the test split has no entries: there is nothing to restore')
    indices = torch.linspace(0, len(entries) - 1, min(number, len(entries))).long().tolist()
    return [entries[index] for index in indices]


def caption_of_another_identity(entry, entries):
    """The first caption of the next entry of another identity; the search continues at the start of the list."""
    start = entries.index(entry)
    for other in entries[start:] + entries[:start]:
        if other['id'] != entry['id']:
            return other['captions'][0]
    raise UserError('the test split has one identity only: there is no wrong caption to restore with')


@torch.no_grad()
def restore_with_captions(head, model, images, captions, seed):
    """Restore images with each of several captions.

    Args:
        head: the :class:`MAE` head.
        model: its model.
        images: [K, 3, H, W].
        captions: list of token ids [K, L].
        seed: seed of the visible patches, which are the same for all captions.

    Returns:
        The images of ``COLUMNS`` in normalized colors, [K, 4, 3, H, W], and the loss for each of the captions.
    """
    grid, size = model.base_model.grid, head.patch_size
    torch.manual_seed(seed)
    order = head.sample_order(images)
    hidden = (order.argsort(dim=1)[:, 1:] >= head.visible_count).float()                    # [K, N-1]
    hidden = unpatchify(hidden[..., None].expand(-1, -1, 3 * size * size), size, grid)      # [K, 3, H, W]
    panels, errors = [images, to_gray(images) * (1 - hidden)], []
    for ids in captions:
        with model.autocast():
            restored = head.restore(model.base_model, images, model.base_model.encode_text(ids)[0], order).float()
        mask = head.scored_patches(order)
        errors.append(objectives.restoration(restored, patchify(images, size), mask).item())
        panels.append(torch.where(hidden > 0, unpatchify(restored, size, grid), to_gray(images)))
    return torch.stack(panels, dim=1), errors

"""A2TE (2025): matching of attributes (A2M) and alignment of details (DAL)."""
import torch
import torch.nn.functional as F
from torch import nn

from model import objectives
from model.heads import DrawsAttentionMaps, HasReferenceNames, Head, UsesAllGather
from model.heads.mlm import CrossEncoder
from utils.batch_shard import WHOLE_BATCH
from utils.errors import UserError
from utils.option_types import non_negative_float, positive_fraction

ALIASES = {'amm': 'mlm+attribute'}
# A2TE's loader matches parameters by the ends of their names. Without the unused copy of the encoders that A2TE's model
# has, it would load other parameters into it and fail at the cross encoder's ln_post.
A2TE_COPIES = {'base_model_m.': 'base_model.'}


class Attribute(UsesAllGather, HasReferenceNames, Head):
    """Matching of a caption's attributes with images, A2M (A2TE, 2025).

    For its own caption and for a similar caption of the batch, the head predicts whether an image shows each of the
    caption's attributes. The loss is objectives.attribute_matching.
    """
    names = ('attribute',)
    needs = ('image_tokens', 'text_tokens')
    fields = ('attributes_mask',)
    shared_options = ('cmt_depth', 'attribute_tagger')
    reference_copies = A2TE_COPIES

    @staticmethod
    def add_options(parser):
        parser.add_argument('--attribute_weight', type=non_negative_float, default=1.0,
                            help='weight of the loss attribute (MARS: 2)')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.attribute_weight
        self.cross = model.shared(CrossEncoder, model.embed_dim, args.cmt_depth)
        self.itm_head = nn.Linear(model.embed_dim, 2)
        nn.init.normal_(self.itm_head.weight, std=0.001)
        nn.init.zeros_(self.itm_head.bias)

    def forward(self, encoded, batch):
        shard, groups = encoded.shard, batch['attributes_mask']                  # [b, L]
        image_tokens, text_tokens = encoded.image_tokens, encoded.text_tokens
        matches = torch.ones_like(groups[:, 0], dtype=torch.long)                # [b]
        all_groups = scored_groups = shard.all_gather(groups)                        # [B, L]
        if len(all_groups) > 1:                                                  # a single pair has no other caption
            drawn = sample_similar_captions(shard.all_gather(encoded.image), shard.all_gather(encoded.text))     # [B]
            scored_groups, other = torch.cat([all_groups, all_groups[drawn]]), shard.local_rows(drawn)
            groups = torch.cat([groups, all_groups[other]])                      # [2b, L]
            image_tokens = torch.cat([image_tokens, image_tokens])
            text_tokens = torch.cat([text_tokens, shard.all_gather(text_tokens)[other]])
            matches = torch.cat([matches, torch.zeros_like(matches)])
        tokens = self.cross(text_tokens, image_tokens).float()                   # [2b, L, D]
        # The reference implementation normalizes over L instead of D.
        attributes, is_attribute = group_means(F.normalize(tokens, dim=1), groups)
        logits = self.itm_head(attributes)                                       # [2b, K, 2]
        loss = objectives.attribute_matching(logits, matches, is_attribute,
                                             caption_count=count_captions_with_groups(scored_groups))
        return {'attr_loss': self.weight * loss}

    def micro_batch_weight(self, micro_batch, batch):
        return 1    # each rank's loss is a sum, divided by the count of the global batch

    def micro_batch_unsupported(self):
        return 'it draws a caption of the whole batch for each image'


@torch.no_grad()
def sample_similar_captions(image_embedding, text_embedding):
    """Draw another caption of the batch for each image: [B, D], [B, D] -> [B].

    The probabilities are the softmax of the inner products.
    """
    with torch.autocast(image_embedding.device.type, enabled=False):
        scores = image_embedding @ text_embedding.t()                            # [B images, B captions]
    # The trainer reports non-finite numbers. Drawing from them would crash the GPU before.
    scores = scores.nan_to_num().fill_diagonal_(float('-inf'))
    probabilities = scores.softmax(dim=1)
    if probabilities.is_cuda:
        return exponential_race(probabilities)
    return torch.multinomial(probabilities, 1).squeeze(1)


def exponential_race(probabilities):
    """Draw one column per row: [B, C] -> [B].

    The column with the shortest exponential waiting time is drawn. ``torch.multinomial`` has the same distribution,
    but makes the host wait for the GPU.
    """
    return (torch.empty_like(probabilities).exponential_() / probabilities).argmin(dim=1)


def group_means(tokens, groups):
    """Average the tokens of each group.

    Args:
        tokens: [B, L, D].
        groups: [B, L], the number of each token's group from 1 to K, or 0.

    Returns:
        The means [B, K, D], and whether a group has tokens, bool [B, K]. K is L // 2, the largest possible number of
        groups of two tokens.
    """
    numbers = torch.arange(1, tokens.shape[1] // 2 + 1, device=tokens.device)
    members = (groups[:, None] == numbers[:, None]).to(tokens.dtype)             # [B, K, L]
    sizes = members.sum(dim=2, keepdim=True)                                     # [B, K, 1]
    with torch.autocast(tokens.device.type, enabled=False):
        return members @ tokens / sizes.clamp(min=1), sizes.squeeze(2) > 0


def count_captions_with_groups(groups):
    """How many of the captions [B, L] have a group of :func:`group_means`."""
    return ((groups > 0) & (groups <= groups.shape[1] // 2)).any(dim=1).sum()


class Detail(UsesAllGather, DrawsAttentionMaps, HasReferenceNames, Head):
    """Alignment of the most attended patches and words, DAL (A2TE, 2025).

    The patches and words that the embedding attends to most are pooled into one vector per image and caption. The loss
    is objectives.detail.
    """
    names = ('detail',)
    needs = ('image_tokens', 'text_tokens', 'image_attention', 'text_attention')
    reference_copies = A2TE_COPIES
    shared_options = ('temperature',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--pool_ratio', type=positive_fraction, default=0.3,
                            help='fraction of the patches and words that detail pools')
        parser.add_argument('--detail_loss_weight', type=non_negative_float, default=0.01,
                            help='weight of the loss detail')

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        return (1e-4, weight_decay) if name.startswith(('visul_emb_layer', 'texual_emb_layer')) else (lr, weight_decay)

    def __init__(self, args, model):
        super().__init__()
        # The reference implementation divides by this number, although it is the inverse of the temperature.
        self.weight, self.tau = args.detail_loss_weight, 1 / args.temperature
        grid = model.base_model.grid
        self.patches, self.words = count_pooled_tokens('pool_ratio', args.pool_ratio, grid, args.text_length)
        self.details = model.shared(DetailLayers, model.embed_dim)

    def forward(self, encoded, batch):
        shard, layers = encoded.shard, self.details
        image = layers.visul_emb_layer(encoded.image_tokens, encoded.image_attention, self.patches, shard=shard)
        text = layers.texual_emb_layer(encoded.text_tokens, encoded.text_attention, batch['caption_ids'], self.words,
                                       shard=shard)                                                  # [b, 1024] each
        image, text, pids = map(shard.all_gather, (image, text, batch['pids']))
        return {'detail_loss': self.weight * objectives.detail(image, text, pids, tau=self.tau)}

    def attention_maps(self, side, tokens, caption_ids, attention):
        return {'details': selection_map(side, attention, caption_ids, self.patches, self.words)}

    def micro_batch_unsupported(self):
        return 'it normalizes its details over the whole batch'


def count_pooled_tokens(option, ratio, grid, text_length):
    """How many patches and words a pooling ratio selects, rounded down.

    Args:
        option: the option's name, for errors.
        ratio: fraction above 0 and at most 1.
        grid: ``(rows, columns)`` of an image's patches.
        text_length: tokens of a caption, including start and end.

    Returns:
        ``(patches, words)``.

    Raises:
        UserError: the ratio is out of range or selects nothing.
    """
    if not 0 < ratio <= 1:
        raise UserError(f'--{option} must be above 0 and at most 1, and is {ratio:g}')
    rows, columns = grid
    patches, words = rows * columns, text_length - 2
    for count, description in ((patches, f'patches of an image (--img_size, --stride_size: {rows}x{columns})'),
                               (words, f'words of a caption (--text_length {text_length})')):
        if int(count * ratio) < 1:
            raise UserError(f'--{option} {ratio:g} selects none of the {count} {description}; use a larger ratio')
    return int(patches * ratio), int(words * ratio)


class DetailMLP(nn.Module):
    """Linear, batch norm, ReLU, linear."""

    def __init__(self, width, hidden=512, out=1024):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, out)])
        # The second batch norm is in checkpoints and unused.
        self.bns = nn.ModuleList([nn.BatchNorm1d(hidden), nn.BatchNorm1d(out)])

    def forward(self, x, use_running_stats=False, shard=WHOLE_BATCH):
        """[b, k, width] -> [b, k, out].

        In training, all rows of the global batch are normalized together. With ``use_running_stats``, the running
        statistics are used in training also, and do not change.
        """
        hidden = self.layers[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])       # [b, k, hidden]
        needs_batch = self.training and not use_running_stats
        rows = shard.all_gather(hidden) if needs_batch else hidden
        normalized = self.batch_normalize(rows.flatten(0, 1), use_running_stats).unflatten(0, rows.shape[:2])
        x = shard.local_rows(normalized) if needs_batch else normalized
        return self.layers[1](x.flatten(0, 1).relu()).unflatten(0, x.shape[:2])

    def batch_normalize(self, x, use_running_stats):
        norm = self.bns[0]
        if not use_running_stats and (len(x) > 1 or not self.training):
            return norm(x)
        # A single row has no variance, so it is normalized by the running statistics.
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class DetailLayers(nn.Module):
    """Layers that pool details into one vector per image or caption. ``detail`` and RDE's ``tse`` share them."""

    def __init__(self, width):
        super().__init__()
        self.visul_emb_layer = VisualDetails(width)
        self.texual_emb_layer = TextDetails(width)


def project_tokens(tokens, positions, mlp, linear, use_running_stats, shard):
    """Project the tokens at the given positions: [B, N, D], [B, k] -> [B, k, 1024]."""
    tokens = tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))    # [B, k, D]
    tokens = F.normalize(tokens.float(), dim=-1)
    return mlp(tokens, use_running_stats, shard) + linear(tokens)


class VisualDetails(nn.Module):
    """Max pooling of an image's most attended patches."""

    def __init__(self, width, out=1024):
        super().__init__()
        self.linear = nn.Linear(width, out)      # in checkpoints and unused
        self.fc = nn.Linear(width, out)
        self.mlp = DetailMLP(width, out=out)

    def forward(self, tokens, attention, k, use_running_stats=False, shard=WHOLE_BATCH):
        """Pool the ``k`` patches that the class token attends to most: [B, N, D], [B, N, N] -> [B, out]."""
        positions = most_attended_patches(attention, k)                                     # [B, k]
        return project_tokens(tokens, positions, self.mlp, self.fc, use_running_stats, shard).max(dim=1).values


class TextDetails(nn.Module):
    """Max pooling of a caption's most attended words."""

    def __init__(self, width, out=1024):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.mlp = DetailMLP(width, out=out)

    def forward(self, tokens, attention, caption_ids, k, use_running_stats=False, shard=WHOLE_BATCH):
        """Pool the ``k`` words that the end token attends to most: [B, L, D], [B, L, L], [B, L] -> [B, out].

        A caption with fewer words pools all of them; a caption without words pools its end token.
        """
        positions, is_valid = most_attended_words(attention, caption_ids, k)                # [B, k]
        details = project_tokens(tokens, positions, self.mlp, self.linear, use_running_stats, shard)   # [B, k, out]
        return details.masked_fill(~is_valid[:, :, None], float('-inf')).max(dim=1).values


def selection_map(side, attention, caption_ids, patch_count, word_count):
    """Which tokens are pooled: 1 or 0 for patches [B, N]; for words [B, L], their attention or 0."""
    if side == 'image':
        positions = most_attended_patches(attention, patch_count) - 1                       # [B, k]
        return torch.zeros_like(attention[:, 0, 1:]).scatter(1, positions, 1.0)
    positions, is_valid = most_attended_words(attention, caption_ids, word_count)           # [B, k] each
    end_attention = attention[torch.arange(len(attention)), caption_ids.argmax(dim=1)]      # [B, L]
    return end_attention * torch.zeros_like(end_attention).scatter(1, positions, is_valid.to(end_attention.dtype))


def most_attended_patches(attention, k):
    """Positions of the ``k`` patches that the class token attends to most: [B, N, N] -> [B, k]."""
    return attention[:, 0, 1:].topk(k, dim=1).indices + 1


def most_attended_words(attention, caption_ids, k):
    """Positions of the ``k`` words that the end token attends to most.

    Short captions are filled up with padding positions, because the batch norm of the reference implementation reads
    them.

    Args:
        attention: [B, L, L].
        caption_ids: [B, L].
        k: number of positions.

    Returns:
        ``(positions, is_valid)``, int64 and bool [B, k]; positions that are not valid must not be pooled.
    """
    end = caption_ids.argmax(dim=1, keepdim=True)                                           # [B, 1]
    position = torch.arange(caption_ids.shape[1], device=end.device).expand_as(caption_ids)     # [B, L]
    # Words lie between start and end. A caption without words has its end token only.
    is_pooled = torch.where(end > 1, (position > 0) & (position < end), position == end)
    attention = attention.gather(1, end[:, :, None].expand(-1, -1, attention.shape[2])).squeeze(1)   # [B, L]
    attention = attention.masked_fill(position > end, -1).masked_fill((position == 0) | (position == end), -2)
    attention = attention.masked_fill(is_pooled & (position == end), 1)
    positions = attention.topk(min(k, attention.shape[1]), dim=1).indices
    return positions, is_pooled.gather(1, positions)

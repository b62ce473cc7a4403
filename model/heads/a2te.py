"""A2TE (2025): attributes of a caption matched with images (A2M), and details, the tokens attended to most (DAL)."""
import torch
import torch.nn.functional as F
from torch import nn

from model import objectives
from model.heads import Head
from model.heads.mlm import CrossEncoder
from utils.errors import UserError
from utils.option_types import positive, weight
from utils.peers import ALONE

ALIASES = {'amm': 'mlm+attribute'}
# A2TE's own loader matches names by their ends: without the copy that its model has of the encoders, and never reads, it takes other
# parameters for it, and stops at the cross encoder's ln_post.
A2TE_COPIES = {'base_model_m.': 'base_model.'}


class Attribute(Head):
    """Does an image have a caption's attributes? Asked for its own caption and for a similar one of the batch."""
    names = ('attribute',)
    needs = ('image_tokens', 'text_tokens')
    fields = ('attributes_mask',)
    shared_options = ('cmt_depth', 'attribute_tagger')
    reference_copies = A2TE_COPIES
    uses_all_gather = True

    @staticmethod
    def add_options(parser):
        parser.add_argument('--attribute_weight', type=weight, default=1.0, help='weight of attribute')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.attribute_weight
        self.cross = model.shared(CrossEncoder, model.embed_dim, args.cmt_depth)
        self.itm_head = nn.Linear(model.embed_dim, 2)
        nn.init.normal_(self.itm_head.weight, std=0.001)
        nn.init.zeros_(self.itm_head.bias)

    def forward(self, encoded, batch):
        peers, groups = encoded.peers, batch['attributes_mask']                  # [B, L]
        image_tokens, text_tokens = encoded.image_tokens, encoded.text_tokens
        matches = torch.ones_like(groups[:, 0], dtype=torch.long)                # [B]
        everyones = groups_read = peers.gather(groups)
        if len(everyones) > 1:                                                   # a single pair has no other caption
            drawn = sample_similar_captions(peers.gather(encoded.image), peers.gather(encoded.text))     # [B]
            groups_read, other = torch.cat([everyones, everyones[drawn]]), peers.mine(drawn)
            groups = torch.cat([groups, everyones[other]])                       # [2B, L]
            image_tokens = torch.cat([image_tokens, image_tokens])
            text_tokens = torch.cat([text_tokens, peers.gather(text_tokens)[other]])
            matches = torch.cat([matches, torch.zeros_like(matches)])
        tokens = self.cross(text_tokens, image_tokens).float()                   # [2B, L, D]
        attributes, there = group_means(F.normalize(tokens, dim=1), groups)      # the release normalises over L, not D
        logits = self.itm_head(attributes)                                       # [2B, K, 2]
        loss = objectives.attribute_matching(logits, matches, there, captions=with_groups(groups_read))
        return {'attr_loss': self.weight * loss}

    def micro_batch_weight(self, piece, batch):
        return 1    # of several processes' captions: the loss is a sum, divided by the whole batch's

    def micro_batch_unsupported(self):
        return 'it draws for each image a caption of the whole batch'


@torch.no_grad()
def sample_similar_captions(image_embedding, text_embedding):
    """For each image another caption of the batch, drawn by the softmax of their inner products. [B, D], [B, D] -> [B]."""
    with torch.autocast(image_embedding.device.type, enabled=False):
        scores = image_embedding @ text_embedding.t()                            # [B images, B captions]
    # Numbers that got out of hand are the trainer's to report: a GPU that draws from them is lost.
    scores = scores.nan_to_num().fill_diagonal_(float('-inf'))
    chances = scores.softmax(dim=1)
    return exponential_race(chances) if chances.is_cuda else torch.multinomial(chances, 1).squeeze(1)


def exponential_race(chances):
    """One column of each row, drawn by its chance, [B, C] -> [B]: the first of exponential waiting times. ``torch.multinomial`` draws
    the same and makes the host wait for a GPU."""
    return (torch.empty_like(chances).exponential_() / chances).argmin(dim=1)


def group_means(tokens, groups):
    """Means of the tokens with the same number: [B, L, D], [B, L] with numbers 1..K or 0 for none -> [B, K, D], and which groups
    there are, bool [B, K]. K is the most that L tokens can make up, at two tokens a group."""
    numbers = torch.arange(1, tokens.shape[1] // 2 + 1, device=tokens.device)
    members = (groups[:, None] == numbers[:, None]).to(tokens.dtype)             # [B, K, L]
    sizes = members.sum(dim=2, keepdim=True)                                     # [B, K, 1]
    with torch.autocast(tokens.device.type, enabled=False):
        return members @ tokens / sizes.clamp(min=1), sizes.squeeze(2) > 0


def with_groups(groups):
    """How many of the captions [B, L] have any of the groups of :func:`group_means`."""
    return ((groups > 0) & (groups <= groups.shape[1] // 2)).any(dim=1).sum()


class Detail(Head):
    """Images and captions compared by those patches and words that their embeddings are made of."""
    names = ('detail',)
    needs = ('image_tokens', 'text_tokens', 'image_attention', 'text_attention')
    uses_all_gather = True
    reference_copies = A2TE_COPIES
    shared_options = ('temperature',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--pool_ratio', type=positive(float, most=1), default=0.3,
                            help='share of patches and words that are details')
        parser.add_argument('--detail_loss_weight', type=weight, default=0.01, help='weight of detail')

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        return (1e-4, weight_decay) if name.startswith(('visul_emb_layer', 'texual_emb_layer')) else (lr, weight_decay)

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.tau = args.detail_loss_weight, 1 / args.temperature
        rows, cols = model.base_model.grid
        self.patches = kept(args.pool_ratio, rows * cols, f'patches of an image (--img_size, --stride_size: {rows}x{cols})')
        self.words = kept(args.pool_ratio, args.text_length - 2, f'words of a caption (--text_length {args.text_length})')
        self.details = model.shared(DetailLayers, model.embed_dim)

    def forward(self, encoded, batch):
        ids, peers = batch['caption_ids'], encoded.peers
        image = self.details.visul_emb_layer(encoded.image_tokens, encoded.image_attention, self.patches, peers=peers)        # [B, 1024]
        text = self.details.texual_emb_layer(encoded.text_tokens, encoded.text_attention, ids, self.words, peers=peers)       # [B, 1024]
        image, text, pids = map(peers.gather, (image, text, batch['pids']))
        return {'detail_loss': self.weight * objectives.detail(image, text, pids, tau=self.tau)}

    def attention_maps(self, side, tokens, caption_ids, attention):
        return {'details': selection_map(side, attention, caption_ids, self.patches, self.words)}

    def micro_batch_unsupported(self):
        return 'it normalises its details over the whole batch'


def kept(ratio, tokens, what, option='pool_ratio'):
    """How many of ``tokens`` the share ``ratio`` is, rounded down."""
    if not 0 < ratio <= 1:
        raise UserError(f'--{option} is a share above 0 and at most 1, and was {ratio:g}')
    if int(tokens * ratio) < 1:
        raise UserError(f'--{option} {ratio:g} keeps none of the {tokens} {what}; raise it')
    return int(tokens * ratio)


class DetailMLP(nn.Module):
    def __init__(self, width, hidden=512, out=1024):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, out)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(hidden), nn.BatchNorm1d(out)])  # the second is in checkpoints and unused

    def forward(self, x, fixed=False, peers=ALONE):
        """[B, k, width] -> [B, k, out], normalised over all B k rows of the batch. ``fixed``: by the running statistics, in training,
        too, and these stay as they are."""
        own = self.layers[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])          # [B, k, hidden]
        by_batch = self.training and not fixed
        whole = peers.gather(own) if by_batch else own
        normalised = self.normalised(whole.flatten(0, 1), fixed).unflatten(0, whole.shape[:2])
        x = peers.mine(normalised) if by_batch else normalised
        return self.layers[1](x.flatten(0, 1).relu()).unflatten(0, x.shape[:2])

    def normalised(self, x, fixed):
        norm = self.bns[0]
        if not fixed and (len(x) > 1 or not self.training):
            return norm(x)
        # one row has no variance
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class DetailLayers(nn.Module):
    """What turns details into one vector, of images and of captions: of A2TE's ``detail`` and of RDE's ``tse``."""

    def __init__(self, width):
        super().__init__()
        self.visul_emb_layer = VisualDetails(width)
        self.texual_emb_layer = TextDetails(width)


def embedded(tokens, places, mlp, linear, fixed, peers):
    """What is pooled: [B, N, D], [B, k] -> [B, k, 1024]."""
    tokens = tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))   # [B, k, D]
    tokens = F.normalize(tokens.float(), dim=-1)
    return mlp(tokens, fixed, peers) + linear(tokens)


class VisualDetails(nn.Module):
    def __init__(self, width, out=1024):
        super().__init__()
        self.linear = nn.Linear(width, out)      # in checkpoints and unused
        self.fc = nn.Linear(width, out)
        self.mlp = DetailMLP(width, out=out)

    def forward(self, tokens, attention, k, fixed=False, peers=ALONE):
        """The ``k`` patches that the class token attends to most, pooled: [B, N, D], [B, N, N] -> [B, out]."""
        places = most_attended_patches(attention, k)                                     # [B, k]
        return embedded(tokens, places, self.mlp, self.fc, fixed, peers).max(dim=1).values


class TextDetails(nn.Module):
    def __init__(self, width, out=1024):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.mlp = DetailMLP(width, out=out)

    def forward(self, tokens, attention, caption_ids, k, fixed=False, peers=ALONE):
        """The ``k`` content tokens that the end token attends to most, pooled; all of them where there are fewer, and the end
        token where there is none: [B, L, D], [B, L, L], [B, L] -> [B, out]."""
        places, real = most_attended_words(attention, caption_ids, k)                    # [B, k]
        details = embedded(tokens, places, self.mlp, self.linear, fixed, peers)     # [B, k, out]
        return details.masked_fill(~real[:, :, None], float('-inf')).max(dim=1).values


def selection_map(side, attention, caption_ids, patches, words):
    """Which tokens are details: 1 or 0 of patches [B, N]; of words [B, L] the attention to those that are, and 0."""
    if side == 'image':
        places = most_attended_patches(attention, patches) - 1                                       # [B, k]
        return torch.zeros_like(attention[:, 0, 1:]).scatter(1, places, 1.0)
    places, real = most_attended_words(attention, caption_ids, words)                                # [B, k] each
    of_end = attention[torch.arange(len(attention)), caption_ids.argmax(dim=1)]                 # [B, L]
    return of_end * torch.zeros_like(of_end).scatter(1, places, real.to(of_end.dtype))


def most_attended_patches(attention, k):
    """Where the ``k`` tokens are that the class token attends to most: [B, N, N] -> [B, k]."""
    return attention[:, 0, 1:].topk(k, dim=1).indices + 1


def most_attended_words(attention, caption_ids, k):
    """``(places, real)``, int64 and bool [B, k]: where the tokens are that the end token attends to most, and whether they are to
    be pooled: short captions are filled up with padding, which the batch norm sees as in the release."""
    end = caption_ids.argmax(dim=1, keepdim=True)                                   # [B, 1]
    place = torch.arange(caption_ids.shape[1], device=end.device).expand_as(caption_ids)   # [B, L]
    wanted = torch.where(end > 1, (place > 0) & (place < end), place == end)        # content, or the end token alone
    attention = attention.gather(1, end[:, :, None].expand(-1, -1, attention.shape[2])).squeeze(1)   # [B, L]
    attention = attention.masked_fill(place > end, -1).masked_fill((place == 0) | (place == end), -2)
    attention = attention.masked_fill(wanted & (place == end), 1)
    places = attention.topk(min(k, attention.shape[1]), dim=1).indices
    return places, wanted.gather(1, places)

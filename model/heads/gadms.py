"""GA-DMS (EMNLP 2025): masking of captions by the saliency of their words, a gradient-attention map of the last epoch.

Two copies of a caption are masked. The loss mlm predicts the salient words of one. In the other, which all other losses
read, words that do not matter are hidden. All random numbers are drawn on the tensors' device by PyTorch's generator.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.clip_model import CLIP, attention_weights
from model.heads import EnabledByOptions, HasPairState, Head, PairState, TransformsBatch
from utils.errors import UserError

START_SALIENCY = 0.85                    # of each position of a caption that no step has seen
SLOPE = 20                               # of the sigmoid between a masking chance of 0 and the largest one
MLM_CHANCE, MLM_THRESHOLD = 0.3, 0.1     # the largest chance, and the saliency with half of it
HIDDEN_CHANCE, HIDDEN_THRESHOLD = 0.2, 0.9     # the same for the words to hide; the threshold is of 1 - saliency
SALIENCY_BLOCKS = 8                      # the last blocks of the text encoder, which the saliency is computed from
EPSILON = 1e-8

# {option: (is it unsupported?, reason)}
UNSUPPORTED_OPTIONS = {
    'caption_masking': (lambda value: value == 'inplace', 'it masks a copy of the caption for each purpose'),
    'caption_filter': (bool, 'the saliency belongs to the positions of the whole caption'),
    'txt_aug': (bool, 'the saliency belongs to the positions of the unchanged caption'),
    'text_dropout': (bool, 'the saliency is defined without dropout'),
    'micro_batch': (bool, 'it compares the saliency of all captions of a batch'),
    'shard': (bool, 'it reads the parameters of the text blocks one by one')}


class SaliencyMasking(EnabledByOptions, HasPairState, TransformsBatch, Head):
    """Masking of captions by the saliency of their words (GA-DMS, EMNLP 2025).

    ``--mlm_masking saliency`` enables it. The saliency of a pair's words is that of the last step that had the pair.
    """
    reads_padding = True      # the saliency compares all positions of a caption
    shared_options = ('masked_token_rate', 'masked_token_unchanged_rate')

    @staticmethod
    def is_enabled(args):
        return args.mlm_masking == 'saliency'

    @staticmethod
    def validate_options(args, active):
        for name, (is_unsupported, reason) in UNSUPPORTED_OPTIONS.items() if active else ():
            value = getattr(args, name)
            if is_unsupported(value):
                flag = f'--{name}' if value is True else f'--{name} {value}'
                raise UserError(f'--mlm_masking saliency excludes {flag}, because {reason}: leave out one of them')

    def __init__(self, args, model):
        super().__init__()
        encoder = model.backbone.encoder
        if not isinstance(encoder, CLIP):
            raise UserError("--mlm_masking saliency reads the text blocks of --backbone clip, and the backbone "
                            f'{model.backbone.name} has others: leave out one of them')
        self.encoder = (encoder,)     # in a tuple, because the head does not own it
        self.mask_id, self.rates = model.mask_id, model.masked_token_rates
        # The reference implementation computes it in half precision.
        self.pair_states = {'saliency': PairState(args.text_length, START_SALIENCY, 'float16')}

    @torch.no_grad()
    def transform_batch(self, batch, model, shard):
        ids = shard.all_gather(batch['caption_ids'])                                        # [B, L]
        saliency = shard.all_gather(batch['saliency'])                                      # [B, L]
        settings = ids, self.mask_id, *self.rates
        mlm_ids, mlm_labels = mask_tokens(mlm_chances(saliency), *settings)
        hidden_ids, _ = mask_tokens(hidden_chances(saliency), *settings)
        return {**batch, 'whole_caption_ids': batch['caption_ids'], 'caption_ids': shard.local_rows(hidden_ids),
                'mlm_ids': shard.local_rows(mlm_ids), 'mlm_labels': shard.local_rows(mlm_labels)}

    def update_pair_state(self, encoded, batch):
        clip, = self.encoder
        # In float32, because the saliency divides by a sum that nearly cancels.
        with torch.autocast(batch['caption_ids'].device.type, enabled=False):
            saliency = token_saliency(clip, encoded.image.detach(), batch['whole_caption_ids'])
        return {'saliency': scale_to_unit(saliency, encoded.shard.all_gather(saliency))}

    def forward(self, encoded, batch):
        return {}


# -- masking -----------------------------------------------------------------------------------------------------------

def mlm_chances(saliency):
    """The chance that mlm predicts each token: up to 0.3 for salient ones, [B, L] -> [B, L]."""
    return MLM_CHANCE * torch.sigmoid(SLOPE * (saliency - MLM_THRESHOLD))


def hidden_chances(saliency):
    """The chance that each token is hidden from the losses: up to 0.2 for tokens without saliency, [B, L] -> [B, L]."""
    return HIDDEN_CHANCE * torch.sigmoid(SLOPE * ((1 - saliency) - HIDDEN_THRESHOLD))


def mask_tokens(chances, ids, mask_id, masked_rate=0.8, unchanged_rate=0.1):
    """Draw and mask tokens: :func:`mask_drawn_tokens` with random numbers of PyTorch's generator."""
    draws = torch.rand(ids.shape, device=ids.device)
    random_ids = torch.randint(1, mask_id, ids.shape, device=ids.device, dtype=ids.dtype)
    return mask_drawn_tokens(ids, chances, draws, random_ids, mask_id, masked_rate, unchanged_rate)


def mask_drawn_tokens(ids, chances, draws, random_ids, mask_id, masked_rate=0.8, unchanged_rate=0.1):
    """Mask the content tokens whose draw is below their chance.

    The ratio of a selected token's draw to its chance decides what it becomes: the mask (below ``masked_rate``), a
    random token, or itself (the upper ``unchanged_rate``). If no token of a caption is selected, its first content
    token becomes the mask.

    Args:
        ids: token ids [B, L]. Content has ids from 1 to ``mask_id - 1``.
        chances: the chance of each token, [B, L].
        draws: uniform random numbers from 0 to 1, [B, L].
        random_ids: random content ids, [B, L].
        mask_id: id of the mask token.
        masked_rate: fraction of selected tokens that become the mask token.
        unchanged_rate: fraction of selected tokens that stay unchanged.

    Returns:
        ``(masked ids, labels)``, [B, L] each. Labels are the original ids of selected tokens, else 0.

    Example:
        >>> ids = torch.tensor([[510, 7, 8, 511, 0]])     # start, two words, end, padding
        >>> draws = torch.tensor([[0.0, 0.9, 0.1, 0.0, 0.0]])
        >>> mask_drawn_tokens(ids, torch.full((1, 5), 0.3), draws, torch.full_like(ids, 5), mask_id=509)
        (tensor([[510,   7, 509, 511,   0]]), tensor([[0, 0, 8, 0, 0]]))
    """
    is_content = (ids > 0) & (ids < mask_id)
    is_selected = is_content & (draws < chances)
    is_first = is_content & (is_content.cumsum(dim=1) == 1)
    is_forced = is_first & ~is_selected.any(dim=1, keepdim=True)
    ratio = draws / chances
    replaced = torch.where(ratio < 1 - unchanged_rate, random_ids, ids)
    replaced = replaced.masked_fill((ratio < masked_rate) | is_forced, mask_id)
    is_selected = is_selected | is_forced
    return torch.where(is_selected, replaced, ids), ids * is_selected


# -- saliency ----------------------------------------------------------------------------------------------------------

class BlockTrace(NamedTuple):
    """The results of a text block with a single attention head.

    Attributes:
        queries, keys, values: [B, L, W].
        attention: [B, L, L].
        attended: [B, L, W], the attention's output before its projection.
    """
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    attention: torch.Tensor
    attended: torch.Tensor


def token_saliency(clip, image, ids):
    """Compute how much each word decides the similarity of a caption to its image (GA-DMS, EMNLP 2025).

    In each of the last blocks, a word counts by three factors: its value along the gradient of the similarity, the
    similarity of its key to the query of the end token, and its attention from the end token.

    The sum over the words by which this is divided nearly cancels. In float32 the result is therefore only good to
    about 1e-5.

    Args:
        clip: a :class:`~model.clip_model.CLIP`.
        image: [B, D] embeddings of the images.
        ids: token ids [B, L] of whole captions.

    Returns:
        [B, L], not negative, 0 outside of the words.
    """
    ends, rows = ids.argmax(dim=1), torch.arange(len(ids), device=ids.device)
    with torch.enable_grad():
        traces, dense_text = encode_with_single_heads(clip, ids)
        similarity = F.cosine_similarity(image.float(), dense_text[rows, ends].float()).sum()
        gradients = torch.autograd.grad(similarity, [trace.attended for trace in traces])
    positions = torch.arange(ids.shape[1], device=ids.device)
    is_word = (positions > 0) & (positions < ends[:, None])                                 # [B, L]
    saliency = torch.zeros(ids.shape, device=ids.device)
    for trace, gradient in zip(traces, gradients):
        importance = word_importance(trace, gradient[rows, ends], rows, ends)               # [B, L]
        norm = importance.sum(dim=1, keepdim=True) + EPSILON      # over all positions, padding included
        saliency = saliency + importance * is_word * trace.attention[rows, ends] * is_word / norm
    return saliency.relu().detach()


def encode_with_single_heads(clip, ids):
    """Encode captions, with one attention head as wide as the encoder in each of the last blocks.

    Returns:
        ``(traces, tokens)``: the :class:`BlockTrace` of each of these blocks, and projected tokens [B, L, D].
    """
    blocks = list(clip.transformer.resblocks)
    x = clip.token_embedding(ids) + clip.positional_embedding[:ids.shape[1]]                # [B, L, W]
    for block in blocks[:-SALIENCY_BLOCKS]:
        x = block(x, causal=True)[0]
    traces, x = [], x.detach().requires_grad_()      # also if all parameters are frozen
    for block in blocks[-SALIENCY_BLOCKS:]:
        projected = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        queries, keys, values = projected.chunk(3, dim=-1)                                  # [B, L, W] each
        attention = attention_weights(queries, keys, causal=True)                           # [B, L, L]
        traces.append(BlockTrace(queries, keys, values, attention, attention @ values))
        x = x + block.attn.out_proj(traces[-1].attended)
        x = x + block.mlp(block.ln_2(x))
    return traces, clip.ln_final(x) @ clip.text_projection


@torch.no_grad()
def word_importance(trace, gradient, rows, ends):
    """Compute the product of a word's value along the gradient [B, W] and of its key's similarity: [B, L]."""
    return end_similarity(trace, rows, ends) * (trace.values @ gradient[:, :, None]).squeeze(2)


def end_similarity(trace, rows, ends):
    """Compare each smoothed key with the end token's smoothed query: [B, L], from 0 to 1 in each caption."""
    query = smooth_positions(trace.queries)[rows, ends]                                     # [B, W]
    cosine = F.cosine_similarity(smooth_positions(trace.keys), query[:, None], dim=2)       # [B, L]
    low, high = cosine.amin(dim=1, keepdim=True), cosine.amax(dim=1, keepdim=True)
    return (cosine - low) / (high - low + EPSILON)


def smooth_positions(x):
    """Average each position with the means of pairs of positions, resized linearly: [B, L, W] -> [B, L, W]."""
    x = x.transpose(1, 2)                                                                   # [B, W, L]
    pairs = F.avg_pool1d(x, kernel_size=2, ceil_mode=True)      # a last single position stays as it is
    return ((x + F.interpolate(pairs, size=x.shape[2], mode='linear')) / 2).transpose(1, 2)


def scale_to_unit(saliency, global_saliency):
    """Scale saliency [b, L] to 0 to 1, by the extremes of the global batch [B, L]. It becomes 0 if all are equal."""
    low, high = global_saliency.min(), global_saliency.max()
    return torch.where(high > low, (saliency - low) / (high - low), torch.zeros_like(saliency))

"""AGM (AGMfIRRA, 2025): its contrastive loss and attention-guided masking.

The masking hides words that the text encoder attends to, instead of random words. The idea is that of AGA's
Attention-Guided Mask (arXiv 2412.15106). All random numbers are drawn on the tensors' device by PyTorch's generator.
"""
import torch

from model import objectives
from model.heads import EnabledByOptions, Head, TransformsBatch
from utils.batch_shard import WHOLE_BATCH
from utils.errors import UserError

# A word is masked with the probability BASE_RATE + GUIDED_RATE * softmax(attention / TEMPERATURE).
BASE_RATE, GUIDED_RATE, TEMPERATURE = 0.1, 0.9 * 0.95, 0.02


class CMT(Head):
    """Image-text contrast with a second temperature (AGM, 2025).

    The loss is objectives.cmt: InfoNCE whose logits are divided by 0.2 in addition to --temperature.
    """
    names = ('cmt',)
    shared_options = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def forward(self, encoded, batch):
        return {'cmt_loss': objectives.cmt(encoded.image, encoded.text, scale=self.scale)}


class InPlaceMasking(EnabledByOptions, TransformsBatch, Head):
    """Attention-guided masking of captions for all losses (AGM, 2025).

    ``--mlm_masking attention --caption_masking inplace`` enables it.
    """
    reads_padding = True   # random numbers are drawn for all positions of a caption

    @staticmethod
    def is_enabled(args):
        in_place = args.caption_masking == 'inplace' or (args.caption_masking is None and args.MLM)
        return args.mlm_masking == 'attention' and in_place

    def __init__(self, args, model):
        super().__init__()
        if 'text_attention' not in model.backbone.provides:
            raise UserError(f'--mlm_masking attention needs attention maps of captions, and the backbone '
                            f'{model.backbone.name} gives none: leave it out')
        self.mask_id, self.rates = model.mask_id, model.masked_token_rates

    @torch.no_grad()
    def transform_batch(self, batch, model, shard):
        # A separate autocast context: weights that it casts without gradient must not be cached for the training pass.
        with model.autocast():
            _, attention = model.backbone.encode_text(batch['caption_ids'], need_map=True)
        ids, labels = mask_attended_tokens(batch['caption_ids'], attention, self.mask_id, *self.rates, shard)
        other_fields = {name: value for name, value in batch.items() if name != 'mlm_ids'}
        return {**other_fields, 'caption_ids': ids, 'mlm_labels': labels}

    def forward(self, encoded, batch):
        return {}


@torch.no_grad()
def mask_attended_tokens(ids, attention, mask_id, masked_rate=0.8, unchanged_rate=0.1, shard=WHOLE_BATCH):
    """Mask content tokens by the attention that they get.

    The fraction ``masked_rate`` of the selected tokens becomes ``mask_id``, ``unchanged_rate`` stays unchanged, and the
    rest becomes random content tokens. If no token of a caption is selected, its most attended content token is masked.

    Args:
        ids: token ids [b, L]. Content has ids from 1 to ``mask_id - 1``; the end of text has the largest id.
        attention: [b, L, L] of the text encoder's last block on these ids, averaged over heads.
        mask_id: id of the mask token.
        masked_rate: fraction of selected tokens that become the mask token.
        unchanged_rate: fraction of selected tokens that stay unchanged.
        shard: the ranks that hold the other rows. All ranks draw random numbers for the global batch.

    Returns:
        ``(masked ids, labels)``, [b, L] each. Labels are the original ids of selected tokens, else 0.
    """
    weight = shard.all_gather(attention_to_content(ids, attention, mask_id))            # [B, L]
    ids = shard.all_gather(ids)
    probabilities = masking_probabilities(weight)
    selected = torch.rand(ids.shape, device=ids.device) < probabilities
    positions = torch.arange(ids.shape[1], device=ids.device)
    # The most attended token; none if a caption has no content.
    is_largest = (positions == weight.argmax(dim=1, keepdim=True)) & (probabilities > 0)
    forced = is_largest & ~selected.any(dim=1, keepdim=True)
    draw = torch.rand(ids.shape, device=ids.device)
    random_ids = torch.randint(1, mask_id, ids.shape, device=ids.device, dtype=ids.dtype)
    replaced = torch.where(draw < masked_rate + unchanged_rate, ids, random_ids)
    replaced = replaced.masked_fill((draw < masked_rate) | forced, mask_id)
    selected = selected | forced
    return shard.local_rows(torch.where(selected, replaced, ids)), shard.local_rows(ids * selected)


def attention_to_content(ids, attention, mask_id):
    """Attention of the end-of-text token to each content token, -inf for other tokens: [B, L], [B, L, L] -> [B, L]."""
    weight = attention[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)].float()
    return weight.masked_fill((ids <= 0) | (ids >= mask_id), float('-inf'))


def masking_probabilities(weight):
    """Probability that each token is selected, 0 for tokens that are not content: [B, L] -> [B, L]."""
    content = weight > float('-inf')
    # The fill value is finite, so that a caption without content does not give NaN.
    focus = (weight / TEMPERATURE).masked_fill(~content, torch.finfo(weight.dtype).min).softmax(dim=1)
    return (BASE_RATE + GUIDED_RATE * focus) * content

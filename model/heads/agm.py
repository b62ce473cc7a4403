"""AGM (AGMfIRRA, 2025): its contrastive loss, and attention-guided masking.

The masking hides the words that the text encoder attends to rather than any words (the idea is AGA's Attention-Guided Mask, arXiv
2412.15106). Everything is drawn on the tensors' device from PyTorch's generator.
"""
import torch

from model import objectives
from model.heads import Head
from utils.errors import UserError
from utils.peers import ALONE

BASE, GUIDED, TEMPERATURE = 0.1, 0.9 * 0.95, 0.02   # chance = BASE + GUIDED * softmax(weight / TEMPERATURE)


class CMT(Head):
    """Cross-modal contrast of AGM, with a temperature of its own."""
    names = ('cmt',)
    shared_options = ('temperature',)

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature

    def forward(self, encoded, batch):
        return {'cmt_loss': objectives.cmt(encoded.image, encoded.text, scale=self.scale)}


class InPlaceMasking(Head):
    """``--mlm_masking attention --caption_masking inplace``: every head reads captions in which attended words are hidden."""
    reads_padding = True   # draws are made for all of a caption's places

    @staticmethod
    def is_enabled(args):
        in_place = args.caption_masking == 'inplace' or (args.caption_masking is None and args.MLM)
        return args.mlm_masking == 'attention' and in_place

    def __init__(self, args, model):
        super().__init__()
        if 'text_attention' not in model.backbone.gives:
            raise UserError(f'--mlm_masking attention chooses words by attention, of which the backbone {model.backbone.name} gives none: '
                            'leave it out')
        self.mask_id, self.rates = model.mask_id, model.masked_token_rates

    @torch.no_grad()
    def transform_batch(self, batch, model, peers):
        # Under an autocast of its own: its cache must not hand weights cast here, without gradient, to the pass that learns.
        with model.autocast():
            _, attention = model.backbone.encode_text(batch['caption_ids'], need_map=True)
        ids, labels = mask_attended_tokens(batch['caption_ids'], attention, self.mask_id, *self.rates, peers)
        kept = {name: value for name, value in batch.items() if name != 'mlm_ids'}
        return {**kept, 'caption_ids': ids, 'mlm_labels': labels}

    def forward(self, encoded, batch):
        return {}



@torch.no_grad()
def mask_attended_tokens(ids, attention, mask_id, masked_rate=0.8, unchanged_rate=0.1, peers=ALONE):
    """Choose content tokens by the attention they get and hide them: ``(masked ids [B, L], labels [B, L])``.

    Of the chosen tokens the share ``masked_rate`` becomes ``mask_id``, ``unchanged_rate`` stays as it is, and the others
    become a random content id. Where chance chooses none, the content token attended to most becomes the mask. Labels are
    the original ids of chosen tokens, else 0.

    Args:
        ids: token ids [B, L]; content lies between 1 and ``mask_id - 1``, the end of text is the largest id.
        attention: of the text encoder's last block on these ids, averaged over heads, [B, L, L].
        peers: the processes that have the batch's other rows: all draw for all of them.
    """
    weight = peers.gather(attention_to_content(ids, attention, mask_id))            # [B, L]
    ids = peers.gather(ids)
    chances = masking_probabilities(weight)
    chosen = torch.rand(ids.shape, device=ids.device) < chances
    places = torch.arange(ids.shape[1], device=ids.device)
    most = (places == weight.argmax(dim=1, keepdim=True)) & (chances > 0)           # none where a caption has no content
    forced = most & ~chosen.any(dim=1, keepdim=True)
    draw = torch.rand(ids.shape, device=ids.device)
    random_ids = torch.randint(1, mask_id, ids.shape, device=ids.device, dtype=ids.dtype)
    hidden = torch.where(draw < masked_rate + unchanged_rate, ids, random_ids)
    hidden = hidden.masked_fill((draw < masked_rate) | forced, mask_id)
    chosen = chosen | forced
    return peers.mine(torch.where(chosen, hidden, ids)), peers.mine(ids * chosen)


def attention_to_content(ids, attention, mask_id):
    """How much the end-of-text token attends to each content token, -inf elsewhere: [B, L]."""
    weight = attention[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)].float()
    return weight.masked_fill((ids <= 0) | (ids >= mask_id), float('-inf'))


def masking_probabilities(weight):
    """Each token's chance to be chosen, [B, L] -> [B, L]; 0 for what is no content."""
    content = weight > float('-inf')
    # finite, so that a caption without content gives no NaN
    focus = (weight / TEMPERATURE).masked_fill(~content, torch.finfo(weight.dtype).min).softmax(dim=1)
    return (BASE + GUIDED * focus) * content

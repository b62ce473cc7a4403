"""IRRA's implicit relation reasoning (CVPR 2023, section 3.2): predict a caption's masked words from it and the image."""
from collections import OrderedDict

from torch import nn

from model import objectives
from model.clip_model import Attention, LayerNorm, QuickGELU, Transformer
from model.heads import Head
from model.heads.agm import mask_attended_tokens
from utils.errors import UserError
from utils.option_types import up_to, weight


class CrossEncoder(nn.Module):
    """Text tokens attend to image tokens once, then to each other. Shared by every head that reads captions against images
    (``model.shared(CrossEncoder, width, depth)``)."""

    def __init__(self, width, depth):
        super().__init__()
        self.cross_attn = Attention(width, width // 64)
        self.cross_modal_transformer = Transformer(width, depth, width // 64)
        self.ln_pre_t = LayerNorm(width)
        self.ln_pre_i = LayerNorm(width)
        self.ln_post = LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self):
        blocks = self.cross_modal_transformer.resblocks
        width = self.ln_post.weight.shape[0]
        out_std = output_std(width, len(blocks))
        for attention in [self.cross_attn] + [block.attn for block in blocks]:
            nn.init.normal_(attention.in_proj_weight, std=width ** -0.5)
            nn.init.normal_(attention.out_proj.weight, std=out_std)
        for block in blocks:
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=out_std)

    def forward(self, text_tokens, image_tokens):
        """[B, L, D], [B, N, D] -> [B, L, D]; the first attention has no residual."""
        image_tokens = self.ln_pre_i(image_tokens)
        x, _ = self.cross_attn(self.ln_pre_t(text_tokens), image_tokens, image_tokens)
        x, _ = self.cross_modal_transformer(x)
        return self.ln_post(x)


def output_std(width, depth):
    """Standard deviation of the weights that write into a residual stream of ``depth`` blocks."""
    return width ** -0.5 * (2 * depth) ** -0.5


class MLM(Head):
    """Masked language modeling with image tokens, the implicit relation reasoning of IRRA."""
    names = ('mlm',)
    needs = ('image_tokens', 'masked_text_tokens')
    fields = ('mlm_labels',)
    uses_all_gather = True
    shared_options = ('MLM', 'mlm_masking', 'masked_token_rate', 'masked_token_unchanged_rate')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--mlm_loss_weight', type=weight, default=1.0, help='weight of mlm')
        parser.add_argument('--cmt_depth', type=up_to(200), default=4, help='blocks of the cross encoder')
        parser.add_argument('--vocab_size', type=up_to(1_000_000), default=49408, help='words that mlm chooses from')

    def __init__(self, args, model):
        super().__init__()
        width = model.embed_dim
        if args.vocab_size < model.vocab_size:
            raise UserError(f'--vocab_size {args.vocab_size} leaves out words of the captions: the text encoder knows '
                            f'{model.vocab_size}')
        self.weight = args.mlm_loss_weight
        self.mask_id, self.rates = model.mask_id, model.masked_token_rates
        # With captions masked in place there is nothing to choose here: the model has done it.
        self.by_attention = args.mlm_masking == 'attention'
        self.chooses = self.by_attention and args.caption_masking == 'clean'
        if self.chooses:
            self.needs = ('image_tokens', 'text_attention')
        self.cross = model.shared(CrossEncoder, width, args.cmt_depth)
        self.mlm_head = nn.Sequential(OrderedDict(
            dense=nn.Linear(width, width), gelu=QuickGELU(), ln=LayerNorm(width), fc=nn.Linear(width, args.vocab_size)))
        nn.init.normal_(self.mlm_head.dense.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlm_head.fc.weight, std=output_std(width, args.cmt_depth))

    def forward(self, encoded, batch):
        text_tokens, labels = self.masked_captions(encoded, batch)              # [B, L, D], [B, L] with 0 = not chosen
        tokens = self.cross(text_tokens, encoded.image_tokens)                  # [B, L, D]
        places = batch['mlm_positions'] if 'mlm_positions' in batch else masked_positions(labels)    # [M] of B*L
        all_labels, labels = labels, labels.flatten().index_select(0, places)
        logits = self.mlm_head(tokens.flatten(0, 1).index_select(0, places))    # [M, V]
        part = word_fraction(labels, encoded.peers.gather(all_labels)) if self.chooses else 1
        return {'mlm_loss': part * self.weight * objectives.masked_language_modeling(logits, labels),
                'mlm_acc': part * objectives.accuracy(logits, labels)}

    def prepare_on_host(self, batch):
        known = 'mlm_labels' in batch and not self.by_attention
        return {'mlm_positions': masked_positions(batch['mlm_labels'])} if known else {}

    def micro_batch_unsupported(self):
        return ('with --mlm_masking attention and clean captions it chooses words in the middle of the step (--caption_masking inplace '
                'does before it)') if self.chooses else None

    def micro_batch_weight(self, piece, batch):
        return 1 if self.chooses else word_fraction(piece['mlm_labels'], batch['mlm_labels'])    # known in forward alone, or here

    def masked_captions(self, encoded, batch):
        """The text tokens of masked captions and their labels: as they came, or masked here by the whole captions'
        attention."""
        if not self.chooses:
            return encoded.masked_text_tokens, batch['mlm_labels']
        ids, labels = mask_attended_tokens(batch['caption_ids'], encoded.text_attention, self.mask_id, *self.rates, encoded.peers)
        with encoded.peers.apart():
            return encoded.encoder.encode_text(ids)[0], labels


def word_fraction(labels, in_all):
    """How many of the chosen words, whose labels are not 0, are these."""
    chosen, in_all = ((words > 0).sum() for words in (labels, in_all))
    return chosen / in_all.clamp(min=1)


def masked_positions(labels):
    """Where [B, L] labels are not 0: int64 [M], counted through all B*L."""
    return labels.flatten().nonzero().squeeze(1)

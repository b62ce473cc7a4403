"""IRRA (Jiang and Ye, CVPR 2023, section 3.2): implicit relation reasoning, masked language modeling with images."""
from collections import OrderedDict

from torch import nn

from model import objectives
from model.clip_model import Attention, LayerNorm, QuickGELU, Transformer
from model.heads import Head, PreparesOnHost, TrainsInMicroBatches, UsesAllGather
from model.heads.agm import mask_attended_tokens
from utils.errors import UserError
from utils.option_types import non_negative_float, positive_int_up_to


class CrossEncoder(nn.Module):
    """Cross-modal encoder: text tokens attend to image tokens once, and then to each other.

    All heads that need it share one: ``model.shared(CrossEncoder, width, depth)``.
    """

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
        """[B, L, D], [B, N, D] -> [B, L, D]. The first attention has no residual connection."""
        image_tokens = self.ln_pre_i(image_tokens)
        x, _ = self.cross_attn(self.ln_pre_t(text_tokens), image_tokens, image_tokens)
        x, _ = self.cross_modal_transformer(x)
        return self.ln_post(x)


def output_std(width, depth):
    """Initial standard deviation of weights that write to the residual stream of ``depth`` blocks."""
    return width ** -0.5 * (2 * depth) ** -0.5


class MLM(TrainsInMicroBatches, UsesAllGather, PreparesOnHost, Head):
    """Masked language modeling with image tokens (IRRA, CVPR 2023).

    A cross-modal encoder reads the masked caption and the image, and predicts the masked words: IRRA's implicit
    relation reasoning. The loss is objectives.masked_language_modeling.
    """
    names = ('mlm',)
    needs = ('image_tokens', 'masked_text_tokens')
    fields = ('mlm_labels',)
    shared_options = ('MLM', 'mlm_masking', 'masked_token_rate', 'masked_token_unchanged_rate')

    @staticmethod
    def add_options(parser):
        parser.add_argument('--mlm_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss mlm')
        parser.add_argument('--cmt_depth', type=positive_int_up_to(200), default=4,
                            help='number of blocks of the cross-modal encoder (IRRA)')
        parser.add_argument('--vocab_size', type=positive_int_up_to(1_000_000), default=49408,
                            help="size of the vocabulary that mlm predicts, at least the text encoder's")

    def __init__(self, args, model):
        super().__init__()
        width = model.embed_dim
        if args.vocab_size < model.vocab_size:
            raise UserError(f'--vocab_size {args.vocab_size} is smaller than the vocabulary of the text encoder: give '
                            f'at least {model.vocab_size}')
        self.weight = args.mlm_loss_weight
        self.mask_id, self.masked_token_rates = model.mask_id, model.masked_token_rates
        self.masks_on_device = args.mlm_masking in ('attention', 'saliency')
        # Otherwise the captions are masked before the encoders read them.
        self.masks_in_forward = args.mlm_masking == 'attention' and args.caption_masking == 'clean'
        if self.masks_in_forward:
            self.needs = ('image_tokens', 'text_attention')
        self.cross = model.shared(CrossEncoder, width, args.cmt_depth)
        self.mlm_head = nn.Sequential(OrderedDict(
            dense=nn.Linear(width, width), gelu=QuickGELU(), ln=LayerNorm(width), fc=nn.Linear(width, args.vocab_size)))
        nn.init.normal_(self.mlm_head.dense.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlm_head.fc.weight, std=output_std(width, args.cmt_depth))

    def forward(self, encoded, batch):
        text_tokens, labels = self.masked_captions(encoded, batch)              # [b, L, D], [b, L], 0 if not masked
        tokens = self.cross(text_tokens, encoded.image_tokens)                  # [b, L, D]
        positions = batch['host_mlm_positions'] if 'host_mlm_positions' in batch else masked_positions(labels)    # [M]
        word_labels = labels.flatten().index_select(0, positions)               # [M]
        logits = self.mlm_head(tokens.flatten(0, 1).index_select(0, positions))    # [M, V]
        fraction = word_fraction(labels, encoded.shard.all_gather(labels)) if self.masks_in_forward else 1
        return {'mlm_loss': fraction * self.weight * objectives.masked_language_modeling(logits, word_labels),
                'mlm_acc': fraction * objectives.accuracy(logits, word_labels)}

    def prepare_on_host(self, batch):
        is_masked = 'mlm_labels' in batch and not self.masks_on_device
        return {'host_mlm_positions': masked_positions(batch['mlm_labels'])} if is_masked else {}

    def micro_batch_unsupported(self):
        if self.masks_in_forward:
            return ('with --mlm_masking attention and --caption_masking clean it masks words after the encoders read '
                    'them (--caption_masking inplace masks them before)')
        return None

    def micro_batch_weight(self, micro_batch, batch):
        # If forward masks the words, only forward knows the fraction, and applies it.
        return 1 if self.masks_in_forward else word_fraction(micro_batch['mlm_labels'], batch['mlm_labels'])

    def masked_captions(self, encoded, batch):
        """Text tokens of masked captions and their labels, [b, L, D] and [b, L].

        They are those of the batch, or are computed here from the attention of the unmasked captions.
        """
        if not self.masks_in_forward:
            return encoded.masked_text_tokens, batch['mlm_labels']
        ids, labels = mask_attended_tokens(batch['caption_ids'], encoded.text_attention, self.mask_id,
                                           *self.masked_token_rates, encoded.shard)
        with encoded.shard.per_rank_rng():
            return encoded.encoder.encode_text(ids)[0], labels


def word_fraction(labels, all_labels):
    """Fraction of all masked words that ``labels`` has. Labels of masked words are positive."""
    count, total = ((words > 0).sum() for words in (labels, all_labels))
    return count / total.clamp(min=1)


def masked_positions(labels):
    """Positions of masked words: [B, L], 0 for other words -> int64 [M], indices into all B*L."""
    return labels.flatten().nonzero().squeeze(1)

"""PHP (Pedestrian-relevant Hierarchical Parsing Network, 2025-26): an embedding of parsed parts, and its loss ``aux``.

CRFM parses the tokens into a few slots. EFP passes the slots through transformer blocks with a mixture of experts. The
mean of the slots is added to the class token or end-of-text token. Images and captions share both modules. The loss
``aux`` keeps the use of the experts even.
"""
from collections import defaultdict

import torch
import torch.nn.functional as F
from prettytable import PrettyTable
from torch import nn

from model import objectives
from model.clip_model import MLP, Attention, LayerNorm
from model.expert_routing import RoutedExperts
from model.heads import (
    BarPanels, DrawsAttentionMaps, EnabledByOptions, HasReport, Head, HeadReport, RefinesEmbedding, UsesAllGather,
)
from utils.errors import UserError
from utils.option_types import non_negative_float, positive_int_up_to

PARTS = ('base', 'crfm', 'efp', 'crfm+efp')
ATTENTIONS = ('slots', 'batch')


class SlotParser(nn.Module):
    """CRFM: learned slots attend to the tokens, [B, N, D] -> [B, slots, D]."""

    def __init__(self, width, slots):
        super().__init__()
        self.part_tokens = nn.Parameter(torch.empty(slots, width))
        self.pos_embeding = nn.Parameter(torch.zeros(162, width))  # in published checkpoints and unused
        self.feed = nn.Sequential(LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.3),
                                  nn.Linear(4 * width, width))
        nn.init.kaiming_normal_(self.part_tokens)

    def attention(self, tokens):
        """Attention of each slot to each token, which sums to 1 per slot: [B, N, D] -> [B, slots, N]."""
        return (self.part_tokens @ tokens.transpose(1, 2)).softmax(dim=-1)

    def forward(self, tokens):
        slots = self.attention(tokens).to(tokens.dtype) @ tokens                      # [B, slots, D]
        return self.feed(slots * tokens.shape[-1] ** -0.5)


class Expert(nn.Module):
    """Parameters of one expert, x + up(GELU(down(norm x))). :class:`ExpertMixture` computes all experts at once."""

    def __init__(self, width, reduction):
        super().__init__()
        self.norm = LayerNorm(width)
        self.down = nn.Linear(width, width // reduction)
        self.up = nn.Linear(width // reduction, width)
        nn.init.kaiming_uniform_(self.down.weight, a=5 ** 0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)


class ExpertMixture(RoutedExperts):
    """PHP's mixture of E experts, of which each token uses ``topk``."""

    def __init__(self, width, num_experts, topk, reduction):
        super().__init__()
        self.topk = topk
        self.experts = nn.ModuleList(Expert(width, reduction) for _ in range(num_experts))
        self.input_gate = nn.Linear(width, num_experts, bias=False)
        self.task_gate = nn.Linear(width, num_experts, bias=False)
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, comb_param):
        """Mix the experts' outputs.

        Args:
            x: [B, S, D].
            comb_param: [D], the learned vector that the gate reads.

        Returns:
            The output [B, S, D], the gate logits [B, S, E], and the selected experts [B, S, E] as 1.0 or 0.0.
        """
        logits, weights, selected = self.route(x, comb_param)
        # The weights sum to 1, so the experts' residual x is added once.
        updates = self.dropout(self.expert_updates(x))                              # [B, S, E, D]
        return x + (weights.to(updates.dtype).unsqueeze(-2) @ updates).squeeze(-2), logits, selected

    def expert_updates(self, x):
        """Compute up(dropout(GELU(down(norm x)))) of every expert: [B, S, D] -> [B, S, E, D].

        All experts read the same normalized x, so the scales and shifts of their norms are folded into one stacked
        ``down``. The experts are narrow, so computing all of them is faster than sorting tokens by expert.
        """
        scale, shift = self.stack_parameters('norm')                                # [E, D] each
        down, down_bias = self.stack_parameters('down')                             # [E, R, D], [E, R]
        up, up_bias = self.stack_parameters('up')                                   # [E, D, R], [E, D]
        with torch.autocast(x.device.type, enabled=False):
            down_bias = down_bias + (down @ shift.unsqueeze(-1)).squeeze(-1)
            down = down * scale.unsqueeze(1)
        normalized = F.layer_norm(x.float(), x.shape[-1:])
        hidden = F.linear(normalized, down.flatten(0, 1), down_bias.flatten())      # [B, S, E * R]
        hidden = self.dropout(F.gelu(hidden)).unflatten(-1, (len(self.experts), -1))
        updates = torch.einsum('bser,edr->bsed', hidden, up)
        return updates + up_bias.to(updates.dtype)


class ExpertBlock(nn.Module):
    """Transformer block with a mixture of experts: x + attn(ln_1 x), then x + mlp(ln_2 x) + feed_forward(ln_3 x).

    Args:
        width: D.
        heads: attention heads.
        num_experts: E.
        topk: experts that a token uses.
        reduction: factor by which an expert is narrower than D.
        across_batch: whether slot i attends to slot i of the other samples, as in the reference implementation, instead
            of the other slots of its own sample.
    """

    def __init__(self, width, heads, num_experts, topk, reduction, across_batch):
        super().__init__()
        self.across_batch = across_batch
        self.comb_param = nn.Parameter(torch.randn(width))
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = LayerNorm(width)
        self.feed_forward = ExpertMixture(width, num_experts, topk, reduction)
        self.ln_3 = LayerNorm(width)

    def forward(self, x):
        """[B, S, D] -> output [B, S, D], and gate logits and selected experts [B, 2, S, E]."""
        x = x + self.attend(self.ln_1(x))
        mixed, logits, selected = self.feed_forward(self.ln_3(x), self.comb_param)
        return x + self.mlp(self.ln_2(x)) + mixed, torch.stack([logits, selected], dim=1)

    def attend(self, x):
        if not self.across_batch:
            return self.attn(x)[0]
        return self.attn(x.transpose(0, 1))[0].transpose(0, 1)      # [S, B, D]: the batch is the sequence


class ExpertTransformer(nn.Module):
    """EFP: ``layers`` blocks of :class:`ExpertBlock` with the same settings."""

    def __init__(self, layers, **block_settings):
        super().__init__()
        self.resblocks = nn.ModuleList(ExpertBlock(**block_settings) for _ in range(layers))

    def forward(self, x):
        """[B, S, D] -> output [B, S, D], and gate logits and selected experts [B, layers, 2, S, E]."""
        gates = []
        for block in self.resblocks:
            x, block_gates = block(x)
            gates.append(block_gates)
        return x, torch.stack(gates, dim=1)


def total_load_balance(gates):
    """Load-balancing loss, the sum over blocks: [B, layers, 2, S, E] -> scalar."""
    return sum(objectives.load_balance(*(part.contiguous() for part in block_gates.unbind(1)))
               for block_gates in gates.unbind(1))


class PHP(RefinesEmbedding, UsesAllGather, EnabledByOptions, DrawsAttentionMaps, HasReport, Head):
    """Even use of the experts in hierarchical parsing (PHP, 2025-26).

    With this loss, the embedding includes the mean of parsed slots (--php_parts). The loss is objectives.load_balance.
    """
    names = ('aux',)
    report_flag = 'moe_report'
    report_help = "report of how often PHP's experts are used: a table, a JSON file and a figure"
    report_needs = 'experts; PHP has them (--php_parts efp or crfm+efp)'

    @staticmethod
    def add_options(parser):
        parser.add_argument('--php_parts', choices=PARTS, default=None,
                            help='modules of PHP in the embedding (default: crfm+efp with the loss aux, else no PHP)')
        parser.add_argument('--php_attention', choices=ATTENTIONS, default=None,
                            help="what a slot attends to in EFP: slots, the sample's other slots; batch, the slots of "
                                 "other samples, as in PHP's reference implementation (default: slots)")
        parser.add_argument('--num_experts', type=positive_int_up_to(256), default=6,
                            help='number of experts of each block')
        parser.add_argument('--topk', type=positive_int_up_to(256), default=2,
                            help='number of experts that a token uses')
        parser.add_argument('--reduction', type=positive_int_up_to(8192), default=8,
                            help='factor by which an expert is narrower than its input')
        parser.add_argument('--moe_layers', type=positive_int_up_to(200), default=6, help='number of blocks of EFP')
        parser.add_argument('--moe_heads', type=positive_int_up_to(1024), default=8,
                            help='number of attention heads of EFP')
        parser.add_argument('--moe_lr_factor', type=non_negative_float, default=10.0,
                            help='factor on --lr for experts and gates')
        parser.add_argument('--transformer_lr_factor', type=non_negative_float, default=2.0,
                            help='factor on --lr for the other parameters of EFP')
        parser.add_argument('--aux_factor', type=non_negative_float, default=0.5, help='weight of the loss aux')
        parser.add_argument('--cnum', type=positive_int_up_to(10_000), default=9, help='number of slots of CRFM')

    @staticmethod
    def is_enabled(args):
        return args.php_parts is not None

    @staticmethod
    def validate_options(args, active):
        if not active:
            if args.php_attention is not None:
                raise UserError(f'--php_attention {args.php_attention} needs PHP, which these options do not enable: '
                                'add the loss aux to --loss_names, or give --php_parts')
            return
        args.php_parts = args.php_parts or 'crfm+efp'
        args.php_attention = args.php_attention or 'slots'
        if args.topk > args.num_experts:
            raise UserError(f'--topk {args.topk} is above --num_experts {args.num_experts}: give a smaller --topk')

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        if 'shared_transformer' not in name or 'bias' in name:
            return lr, weight_decay
        is_expert = 'experts' in name or 'gate' in name
        return args.lr * (args.moe_lr_factor if is_expert else args.transformer_lr_factor), weight_decay

    def __init__(self, args, model):
        super().__init__()
        parts = args.php_parts.split('+')
        if parts != ['base']:
            check_compatibility(args, model)
        self.across_batch = 'efp' in parts and args.php_attention == 'batch'
        self.safl = SlotParser(model.embed_dim, args.cnum) if 'crfm' in parts else None
        self.shared_transformer = None
        if 'efp' in parts:
            self.shared_transformer = ExpertTransformer(
                args.moe_layers, width=model.embed_dim, heads=args.moe_heads, num_experts=args.num_experts,
                topk=args.topk, reduction=args.reduction, across_batch=self.across_batch)
        self.factor = args.aux_factor
        self.has_loss = 'aux' in args.loss_names.replace(' ', '').split('+')

    def refine(self, embedding, tokens, extras):
        """Add the mean of the parsed slots to the embedding."""
        if self.safl is None and self.shared_transformer is None:
            return embedding
        slots = tokens if self.safl is None else self.safl(tokens)                  # [B, S, D]
        if self.shared_transformer is not None:
            slots, extras['gates'] = self.shared_transformer(slots.float())
        return embedding + slots.float().mean(dim=1)

    def attention_maps(self, side, tokens, caption_ids, attention):
        """The attention of each slot of CRFM."""
        if self.safl is None:
            return {}
        maps = self.safl.attention(tokens[:, 1:] if side == 'image' else tokens)    # [B, slots, N]
        return {f'part {number}': slot_map for number, slot_map in enumerate(maps.unbind(dim=1), start=1)}

    def forward(self, encoded, batch):
        if not self.has_loss:
            return {}
        if self.shared_transformer is None:
            return {'aux_loss': encoded.image.new_zeros(())}
        images, captions = (total_load_balance(encoded.shard.all_gather(extras['gates']))
                            for extras in (encoded.image_extras, encoded.text_extras))
        return {'aux_loss': self.factor * (images + captions)}

    def micro_batch_unsupported(self):
        if self.has_loss:
            return "it balances the experts' load over the whole batch"
        return self.distributed_unsupported()

    def distributed_unsupported(self):
        return 'with --php_attention batch its embeddings depend on each other' if self.across_batch else None

    def has_report(self):
        return self.shared_transformer is not None

    def report(self, split):
        """Count how often images and captions of the split use each expert."""
        mixtures = [block.feed_forward for block in self.shared_transformer.resblocks]
        usage = {'image': expert_usage(mixtures, split.embed_images),
                 'text': expert_usage(mixtures, split.embed_captions)}
        blocks = {side: [{'block': number, 'usage': fractions.tolist(), 'entropy': entropy(fractions)}
                         for number, fractions in enumerate(side_usage)] for side, side_usage in usage.items()}
        largest = torch.tensor(float(len(usage['image'][0]))).log2().item()
        text = f'experts: percent of all selections, entropy in bits (at most {largest:.3f})\n{usage_table(blocks)}'
        content = {'usage_is': "each expert's fraction of all selections", 'entropy_is': 'bits',
                   'largest_entropy': largest, **blocks}
        return HeadReport(text, content, usage_figure(usage))


def check_compatibility(args, model):
    """Raise UserError if PHP cannot be added to the model with these options."""
    width = model.embed_dim
    if 'image_tokens' not in model.backbone.provides:
        raise UserError('PHP (the loss aux, --php_parts) needs image tokens, and a ResNet gives one vector per image: '
                        'remove PHP, or give a ViT as --pretrain_choice')
    for flag, divisor in (('moe_heads', args.moe_heads), ('reduction', args.reduction)):
        if width % divisor:
            raise UserError(f'--{flag} {divisor} does not divide the width of the embedding, {width}')


# -- The report of how often experts are used

def expert_usage(mixtures, run_forward):
    """Measure how often each expert is used while ``run_forward()`` runs.

    Args:
        mixtures: list of :class:`ExpertMixture`.
        run_forward: function that passes samples through the model.

    Returns:
        For each mixture, the fraction of its selections that each expert has, [E].
    """
    counts = defaultdict(float)

    def counting_hook(number):
        def count_selected(module, inputs, outputs):
            selected = outputs[2]                                                    # [B, S, E]
            counts[number] = counts[number] + selected.cpu().sum(dim=(0, 1), dtype=torch.float64)  # MPS has no float64
        return count_selected
    hooks = [mixture.register_forward_hook(counting_hook(number)) for number, mixture in enumerate(mixtures)]
    try:
        run_forward()
    finally:
        for hook in hooks:
            hook.remove()
    return [(counts[number] / counts[number].sum()).cpu() for number in sorted(counts)]


def entropy(fractions):
    """Entropy in bits, [E] -> float: 0 if one expert is always used, log2 E if all are used equally often."""
    return torch.special.entr(fractions).sum().item() / torch.tensor(2.0).log().item()


def usage_table(blocks):
    """A text table with a row per side and block."""
    experts = len(blocks['image'][0]['usage'])
    table = PrettyTable(['side', 'block', *(f'expert {number}' for number in range(experts)), 'entropy'])
    for side, rows in blocks.items():
        for row in rows:
            percents = [f'{100 * fraction:.1f}' for fraction in row['usage']]
            table.add_row([side, row['block'], *percents, f"{row['entropy']:.3f}"])
    return table.get_string()


def usage_figure(usage):
    """The figure of :meth:`PHP.report`: a panel for each block, with a line at even use.

    Args:
        usage: {'image': [[E] per block], 'text': [[E] per block]} of fractions.
    """
    percents = {side: [(100 * fractions).tolist() for fractions in blocks] for side, blocks in usage.items()}
    experts = len(usage['image'][0])
    return BarPanels(titles=[f'block {number}' for number in range(len(usage['image']))],
                     series={'images': percents['image'], 'captions': percents['text']},
                     x_label='expert', y_label='% of selections', reference=('even use', 100 / experts))

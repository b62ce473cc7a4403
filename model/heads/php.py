"""PHP's hierarchical parsing (Pedestrian-relevant Hierarchical Parsing Network, 2025-26): an embedding and its loss.

Tokens are parsed into a few slots (CRFM), the slots pass blocks with a mixture of experts (EFP), and their mean is added to
the class or end-of-text token. Images and captions share both modules. ``aux`` keeps the experts evenly used.
"""
from collections import defaultdict

import torch
import torch.nn.functional as F
from prettytable import PrettyTable
from torch import nn

from model import objectives
from model.clip_model import MLP, Attention, LayerNorm
from model.heads import Head, HeadReport
from utils.errors import UserError
from utils.option_types import up_to, weight
from utils.pictures import pyplot

PARTS = ('base', 'crfm', 'efp', 'crfm+efp')
ATTENTIONS = ('slots', 'batch')


class SlotParser(nn.Module):
    """CRFM: ``slots`` learned tokens gather what belongs to them, [B, N, D] -> [B, slots, D]."""

    def __init__(self, width, slots):
        super().__init__()
        self.part_tokens = nn.Parameter(torch.empty(slots, width))
        self.pos_embeding = nn.Parameter(torch.zeros(162, width))  # read by nothing; published checkpoints hold it
        self.feed = nn.Sequential(LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.3), nn.Linear(4 * width, width))
        nn.init.kaiming_normal_(self.part_tokens)

    def weights(self, tokens):
        """What each slot gathers of each token, [B, slots, N]; a slot's add up to 1."""
        return (self.part_tokens @ tokens.transpose(1, 2)).softmax(dim=-1)

    def forward(self, tokens):
        slots = self.weights(tokens).to(tokens.dtype) @ tokens                      # [B, slots, D]
        return self.feed(slots * tokens.shape[-1] ** -0.5)


class Expert(nn.Module):
    """The parameters of x + up(GELU(down(norm x))); :class:`ExpertMixture` computes all experts at once."""

    def __init__(self, width, reduction):
        super().__init__()
        self.norm = LayerNorm(width)
        self.down = nn.Linear(width, width // reduction)
        self.up = nn.Linear(width // reduction, width)
        nn.init.kaiming_uniform_(self.down.weight, a=5 ** 0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)


class ExpertMixture(nn.Module):
    """The ``topk`` experts of each token by a gate on the token and on a learned vector, mixed by the softmax of their logits.

    ``forward(x [B, S, D], comb_param [D])`` gives ``(out [B, S, D], gate logits [B, S, E], chosen [B, S, E], 1. or 0.)``.
    """

    def __init__(self, width, num_experts, topk, reduction):
        super().__init__()
        self.topk = topk
        self.experts = nn.ModuleList(Expert(width, reduction) for _ in range(num_experts))
        self.input_gate = nn.Linear(width, num_experts, bias=False)
        self.task_gate = nn.Linear(width, num_experts, bias=False)
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, comb_param):
        logits, weights, chosen = self.route(x, comb_param)
        # Each expert's output weighed by its share; the shares add up to 1, and so do their x.
        changes = self.dropout(self.changes(x))                                     # [B, S, E, D]
        return x + (weights.to(changes.dtype).unsqueeze(-2) @ changes).squeeze(-2), logits, chosen

    def route(self, x, comb_param):
        """(logits, weights, chosen), each [B, S, E], in float32: half a percent of a logit can change who is chosen."""
        with torch.autocast(x.device.type, enabled=False):
            logits = (1 - self.alpha) * self.input_gate(x.float()) + self.alpha * self.task_gate(comb_param)
            best = logits.topk(self.topk, dim=-1)
            weights = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(dim=-1))
            chosen = torch.zeros_like(logits).scatter(-1, best.indices, 1.0)
        return logits, weights, chosen

    def changes(self, x):
        """up(dropout(GELU(down(norm x)))) of every expert, [B, S, D] -> [B, S, E, D].

        All experts see the same normalised x, so that their norms' scales and shifts go into one stacked ``down``. Computing
        the experts that nobody chose costs less than moving tokens to those that somebody did: they are narrow.
        """
        scale, shift = self.stacked('norm')                                         # [E, D] each
        down, down_bias = self.stacked('down')                                      # [E, R, D], [E, R]
        up, up_bias = self.stacked('up')                                            # [E, D, R], [E, D]
        with torch.autocast(x.device.type, enabled=False):
            down_bias = down_bias + (down @ shift.unsqueeze(-1)).squeeze(-1)
            down = down * scale.unsqueeze(1)
        normalised = F.layer_norm(x.float(), x.shape[-1:])
        hidden = F.linear(normalised, down.flatten(0, 1), down_bias.flatten())      # [B, S, E * R]
        hidden = self.dropout(F.gelu(hidden)).unflatten(-1, (len(self.experts), -1))
        changes = torch.einsum('bser,edr->bsed', hidden, up)
        return changes + up_bias.to(changes.dtype)

    def stacked(self, part):
        """(weights, biases) of all experts' ``part``."""
        parts = [getattr(expert, part) for expert in self.experts]
        return torch.stack([part.weight for part in parts]), torch.stack([part.bias for part in parts])


class ExpertBlock(nn.Module):
    """x + attn(ln_1 x), then x + mlp(ln_2 x) + feed_forward(ln_3 x): [B, S, D] -> ([B, S, D], gate logits and choices
    [B, 2, S, E]).

    ``across_batch``: slot i attends to the slots i of the other samples, as released, and not to the sample's own slots.
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
        x = x + self.attend(self.ln_1(x))
        mixed, logits, chosen = self.feed_forward(self.ln_3(x), self.comb_param)
        return x + self.mlp(self.ln_2(x)) + mixed, torch.stack([logits, chosen], dim=1)

    def attend(self, x):
        if not self.across_batch:
            return self.attn(x)[0]
        return self.attn(x.transpose(0, 1))[0].transpose(0, 1)      # [S, B, D]: the samples of the batch are the sequence


class ExpertTransformer(nn.Module):
    """EFP: ``layers`` blocks, [B, S, D] -> ([B, S, D], the blocks' gate logits and choices [B, layers, 2, S, E])."""

    def __init__(self, layers, **block):
        super().__init__()
        self.resblocks = nn.ModuleList(ExpertBlock(**block) for _ in range(layers))

    def forward(self, x):
        gates = []
        for block in self.resblocks:
            x, of_block = block(x)
            gates.append(of_block)
        return x, torch.stack(gates, dim=1)


def balance(gates):
    """The sum of the blocks' load balance: [B, layers, 2, S, E] -> scalar."""
    return sum(objectives.load_balance(*(part.contiguous() for part in of_block.unbind(1))) for of_block in gates.unbind(1))


class PHP(Head):
    """Even use of the experts in the hierarchical parsing of PHP."""
    names = ('aux',)
    uses_all_gather = True
    report_flag = 'moe_report'
    report_help = "also report how PHP's experts are used: table, JSON and figure"
    report_needs = 'experts; they come with PHP (--php_parts efp or crfm+efp)'

    @staticmethod
    def add_options(parser):
        parser.add_argument('--php_parts', choices=PARTS, default=None,
                            help='what of PHP makes the embedding (default: crfm+efp with the loss aux, otherwise nothing)')
        parser.add_argument('--php_attention', choices=ATTENTIONS, default=None,
                            help="EFP attends across a sample's slots, or across the batch, as PHP's released code does (default: slots)")
        parser.add_argument('--num_experts', type=up_to(256), default=6, help='experts a block')
        parser.add_argument('--topk', type=up_to(256), default=2, help='experts a token')
        parser.add_argument('--reduction', type=up_to(8192), default=8, help="an expert is this much narrower than the embedding")
        parser.add_argument('--moe_layers', type=up_to(200), default=6, help='blocks of EFP')
        parser.add_argument('--moe_heads', type=up_to(1024), default=8, help='attention heads of EFP')
        parser.add_argument('--moe_lr_factor', type=weight, default=10.0, help='on lr for experts and gates')
        parser.add_argument('--transformer_lr_factor', type=weight, default=2.0, help='on lr for the rest of EFP')
        parser.add_argument('--aux_factor', type=weight, default=0.5, help='weight of aux')
        parser.add_argument('--cnum', type=up_to(10_000), default=9, help='slots that CRFM parses tokens into')

    @staticmethod
    def is_enabled(args):
        return args.php_parts is not None

    @staticmethod
    def validate_options(args, active):
        if not active:
            if args.php_attention is not None:
                raise UserError(f'--php_attention {args.php_attention} is of PHP, which these options leave out: '
                                'name the loss aux in --loss_names or give --php_parts')
            return
        args.php_parts = args.php_parts or 'crfm+efp'
        args.php_attention = args.php_attention or 'slots'
        if args.topk > args.num_experts:
            raise UserError(f'--topk {args.topk} experts a token cannot be chosen from --num_experts {args.num_experts}')

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        if 'shared_transformer' not in name or 'bias' in name:
            return lr, weight_decay
        of_experts = 'experts' in name or 'gate' in name
        return args.lr * (args.moe_lr_factor if of_experts else args.transformer_lr_factor), weight_decay

    def __init__(self, args, model):
        super().__init__()
        parts = args.php_parts.split('+')
        if parts != ['base']:
            refuse_misfits(args, model)
        self.across_batch = 'efp' in parts and args.php_attention == 'batch'
        self.safl = SlotParser(model.embed_dim, args.cnum) if 'crfm' in parts else None
        self.shared_transformer = None
        if 'efp' in parts:
            self.shared_transformer = ExpertTransformer(
                args.moe_layers, width=model.embed_dim, heads=args.moe_heads, num_experts=args.num_experts, topk=args.topk,
                reduction=args.reduction, across_batch=self.across_batch)
        self.factor = args.aux_factor
        self.has_loss = 'aux' in args.loss_names.replace(' ', '').split('+')

    def refine(self, embedding, tokens, extras):
        """v' = v + mean of the parsed slots."""
        if self.safl is None and self.shared_transformer is None:
            return embedding
        slots = tokens if self.safl is None else self.safl(tokens)                  # [B, S, D]
        if self.shared_transformer is not None:
            slots, extras['gates'] = self.shared_transformer(slots.float())
        return embedding + slots.float().mean(dim=1)

    def attention_maps(self, side, tokens, caption_ids, attention):
        """Each slot of CRFM: the part that it parses."""
        if self.safl is None:
            return {}
        weights = self.safl.weights(tokens[:, 1:] if side == 'image' else tokens)   # [B, slots, N]
        return {f'part {number}': of_part for number, of_part in enumerate(weights.unbind(dim=1), start=1)}

    def forward(self, encoded, batch):
        if not self.has_loss:
            return {}
        if self.shared_transformer is None:
            return {'aux_loss': encoded.image.new_zeros(())}
        images, captions = (balance(encoded.shard.all_gather(extras['gates'])) for extras in (encoded.image_extras, encoded.text_extras))
        return {'aux_loss': self.factor * (images + captions)}

    def micro_batch_unsupported(self):
        return "it balances the experts' load over the whole batch" if self.has_loss else self.distributed_unsupported()

    def distributed_unsupported(self):
        return 'with --php_attention batch its embeddings depend on each other' if self.across_batch else None

    def has_report(self):
        return self.shared_transformer is not None

    def report(self, split):
        """How often each expert is chosen, over both sides of the split."""
        mixtures = [block.feed_forward for block in self.shared_transformer.resblocks]
        usage = {'image': expert_usage(mixtures, split.embed_images), 'text': expert_usage(mixtures, split.embed_captions)}
        blocks = {side: [{'block': number, 'usage': shares.tolist(), 'entropy': entropy(shares)} for number, shares in enumerate(found)]
                  for side, found in usage.items()}
        most = torch.tensor(float(len(usage['image'][0]))).log2().item()
        text = f'experts: percent of all choices, entropy in bits (at most {most:.3f})\n{usage_table(blocks)}'
        content = {'usage_is': "each expert's share of all choices", 'entropy_is': 'bits', 'largest_entropy': most, **blocks}
        return HeadReport(text, content, lambda: draw_usage(usage))


def refuse_misfits(args, model):
    width = model.embed_dim
    if 'image_tokens' not in model.backbone.gives:
        raise UserError('PHP (the loss aux, --php_parts) parses image tokens and a ResNet gives one vector an image: leave PHP out or '
                        'use a ViT as --pretrain_choice')
    for flag, parts in (('moe_heads', args.moe_heads), ('reduction', args.reduction)):
        if width % parts:
            raise UserError(f"--{flag} {parts} does not divide the embedding's width of {width}")


# -- the report of how experts are used ----------------------------------------------------------------------------------

def expert_usage(mixtures, pass_samples):
    """For each :class:`ExpertMixture` the share of its choices that went to each expert, [E], while ``pass_samples()`` passes samples."""
    counts = defaultdict(float)

    def counting(number):
        def count_chosen(module, inputs, outputs):
            chosen = outputs[2]                                                      # [B, S, E]
            counts[number] = counts[number] + chosen.cpu().sum(dim=(0, 1), dtype=torch.float64)    # MPS has no float64
        return count_chosen
    hooks = [mixture.register_forward_hook(counting(number)) for number, mixture in enumerate(mixtures)]
    try:
        pass_samples()
    finally:
        for hook in hooks:
            hook.remove()
    return [(counts[number] / counts[number].sum()).cpu() for number in sorted(counts)]


def entropy(shares):
    """Bits: 0 where one expert does everything, log2 E where all are used alike."""
    return torch.special.entr(shares).sum().item() / torch.tensor(2.0).log().item()


def usage_table(blocks):
    experts = len(blocks['image'][0]['usage'])
    shown = PrettyTable(['side', 'block', *(f'expert {number}' for number in range(experts)), 'entropy'])
    for side, rows in blocks.items():
        for row in rows:
            shown.add_row([side, row['block'], *(f'{100 * share:.1f}' for share in row['usage']), f"{row['entropy']:.3f}"])
    return shown.get_string()


def draw_usage(usage):
    """Bars for each block: how often each expert is chosen for images and for captions, beside an even use of all."""
    blocks, experts = len(usage['image']), len(usage['image'][0])
    columns = min(blocks, 4)
    rows = -(-blocks // columns)
    width = max(3.2, 0.45 * experts)
    figure, axes = pyplot().subplots(rows, columns, figsize=(max(width * columns, 4), 2.6 * rows + 0.4), squeeze=False, sharey=True)
    for number, axis in enumerate(axes.flat):
        if number >= blocks:
            axis.axis('off')
            continue
        for shift, side in ((-0.2, 'image'), (0.2, 'text')):
            shares = usage[side]
            places = [expert + shift for expert in range(experts)]
            axis.bar(places, (100 * shares[number]).tolist(), width=0.4, label={'image': 'images', 'text': 'captions'}[side])
        axis.axhline(100 / experts, color='grey', linestyle=':', label='even use')
        axis.set_xticks(range(experts))
        axis.set_xlabel('expert', fontsize=8)
        axis.set_title(f'block {number}', fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel('% of choices', fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='lower center', ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.12 / rows, 1, 1))
    return figure

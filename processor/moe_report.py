"""What PHP's experts are used for: ``python test.py --config_file <run>/configs.yaml --moe_report``."""
import json
import logging
from collections import defaultdict

import torch
from prettytable import PrettyTable

from model.heads.php import ExpertMixture
from utils.errors import UserError
from utils.figures import save_figure
from utils.iotools import atomic_write
from utils.metrics import embed

logger = logging.getLogger('Pedestal.test')


def refuse_without_experts(model):
    if not expert_layers(model):
        raise UserError('--moe_report: this run has no experts; they come with PHP (--php_parts efp or crfm+efp)')


def moe_report(model, img_loader, txt_loader, path):
    """Pass both sides of a split through the model, write ``<path>.json`` and the figure ``<path>.png``, and return the table as
    text. Raises :class:`UserError` where the model has no experts; files that cannot be written are a line in the log."""
    refuse_without_experts(model)
    usage = {'image': expert_usage(model, model.encode_image, img_loader), 'text': expert_usage(model, model.encode_text, txt_loader)}
    content = {side: [{'block': number, 'usage': shares.tolist(), 'entropy': entropy(shares)} for number, shares in enumerate(blocks)]
               for side, blocks in usage.items()}
    most = torch.tensor(float(len(usage['image'][0]))).log2().item()
    try:
        with atomic_write(f'{path}.json') as file:
            json.dump({'usage_is': "each expert's share of all choices", 'entropy_is': 'bits', 'largest_entropy': most, **content}, file,
                      indent=1)
        draw(usage, f'{path}.png')
    except UserError as error:
        logger.warning("the experts' report is not saved: %s", error)
    return f'experts: percent of all choices, entropy in bits (at most {most:.3f})\n{table(content)}'


def expert_layers(model):
    """{block number: its experts}"""
    return dict(enumerate(module for module in model.modules() if isinstance(module, ExpertMixture)))


def expert_usage(model, encode, loader):
    """For each block the share of its choices that went to each expert, [E], over all samples and slots of a loader."""
    counts = defaultdict(float)

    def counting(number):
        def count(module, inputs, outputs):
            chosen = outputs[2]                                                      # [B, S, E]
            counts[number] = counts[number] + chosen.sum(dim=(0, 1), dtype=torch.float64)
        return count
    hooks = [layer.register_forward_hook(counting(number)) for number, layer in expert_layers(model).items()]
    try:
        embed(encode, loader, model)
    finally:
        for hook in hooks:
            hook.remove()
    return [(counts[number] / counts[number].sum()).cpu() for number in sorted(counts)]


def entropy(shares):
    """Bits: 0 where one expert does everything, log2 E where all are used alike."""
    return torch.special.entr(shares).sum().item() / torch.tensor(2.0).log().item()


def table(content):
    experts = len(content['image'][0]['usage'])
    shown = PrettyTable(['side', 'block', *(f'expert {number}' for number in range(experts)), 'entropy'])
    for side, blocks in content.items():
        for row in blocks:
            shown.add_row([side, row['block'], *(f'{100 * share:.1f}' for share in row['usage']), f"{row['entropy']:.3f}"])
    return shown.get_string()


def draw(usage, path):
    """A radar for each block: how often each expert is chosen for images and for captions."""
    import matplotlib  # here, for it takes a second that a plain evaluation need not wait
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    blocks, experts = len(usage['image']), len(usage['image'][0])
    angles = [2 * torch.pi * number / experts for number in range(experts)]
    columns = min(blocks, 4)
    rows = -(-blocks // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 3.4 * rows), subplot_kw={'projection': 'polar'}, squeeze=False)
    for number, axis in enumerate(axes.flat):
        if number >= blocks:
            axis.axis('off')
            continue
        for side, shares in usage.items():
            closed = [*(100 * shares[number]).tolist(), 100 * shares[number][0].item()]
            axis.plot([*angles, angles[0]], closed, label=side)
            axis.fill([*angles, angles[0]], closed, alpha=0.2)
        axis.set_xticks(angles, [str(expert) for expert in range(experts)])
        axis.set_ylim(bottom=0)
        axis.set_title(f'block {number}: % of choices', fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='lower center', ncols=2)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    try:
        save_figure(figure, path, dpi=100)
    finally:
        plt.close(figure)

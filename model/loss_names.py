"""``--loss_names``: which heads a run has."""
import re

from model.head_registry import (
    NAME_CONFLICTS, aliases, head_classes, heads_by_backbone, heads_for_backbone, reference_loss_names,
)
from model.heads.mixins import EnabledByOptions
from model.tunings import registry as tunings
from utils.errors import UserError, suggest_name

# Losses of IRRA's forks that fail in the reference implementation.
REFUSED = {
    'fuse': "the loss 'fuse' never worked: SEN's reference implementation fails with it, and the results of SEN's "
            'paper do not use it; remove it from --loss_names',
    'mim': "the loss 'mim' never worked: AGM's reference implementation fails with it, and AGM's results do not use "
           'it; remove it from --loss_names',
}


def active_heads(args):
    """The Head classes that ``args`` select: those of ``--loss_names`` in its order, then those that options enable."""
    named = parse_loss_names(args.loss_names, args.backbone, args.tuning)
    return named + [head for head in head_classes()
                    if head not in named and head.backbone in ('', args.backbone)
                    and issubclass(head, EnabledByOptions) and head.is_enabled(args)]


def split_loss_names(loss_names):
    """Split ``--loss_names`` at + and ignore spaces."""
    return str(loss_names).replace(' ', '').split('+')


def parse_loss_names(loss_names, backbone='clip', tuning='none'):
    """Parse ``--loss_names``.

    A loss that an alias stands for may be named next to the alias; it counts once.

    Args:
        loss_names: names joined by +, such as ``'sdm+mlm+id'``.
        backbone: the name of the backbone.
        tuning: the name of the tuning, whose own losses replace others of the same name.

    Returns:
        The Head classes, in the same order.

    Raises:
        UserError: a name is unknown or repeated.
    """
    heads, seen, supported = [], set(), {**heads_for_backbone(backbone), **tunings()[tuning].losses}
    known, names = {**supported, **aliases()}, split_loss_names(loss_names)
    reference_name = next((name for name in names if name in reference_loss_names()), None)
    if reference_name:
        raise UserError(f"--loss_names '{loss_names}' {reference_loss_names()[reference_name]}")
    for name in names:
        if name in REFUSED or name in NAME_CONFLICTS:
            raise UserError(REFUSED.get(name) or NAME_CONFLICTS[name])
        other_backbones = [other for other, by_name in heads_by_backbone().items() if name in by_name]
        if name not in known and other_backbones:
            raise UserError(f"unknown loss '{name}' for --backbone {backbone}: it needs --backbone "
                            f"{' or '.join(other_backbones)}; remove it from --loss_names, or change --backbone")
        if name not in known:
            words = re.split(r'[+,;&\s]+', loss_names)
            has_other_separators = len(words) > len(names)
            raise UserError(f"unknown loss '{name}' in --loss_names '{loss_names}'" + (
                f"; losses are joined by +: --loss_names {'+'.join(words)}" if has_other_separators else
                suggest_name(name, known)))
        if name in seen:
            raise UserError(f"the loss '{name}' is named twice in --loss_names '{loss_names}'; remove one")
        seen.add(name)
        for loss in aliases().get(name, name).split('+'):
            if loss not in supported:
                raise UserError(f"the loss '{name}' stands for '{aliases()[name]}', and '{loss}' is unknown for "
                                f'--backbone {backbone}')
            heads.append(supported[loss])
    return list(dict.fromkeys(heads))

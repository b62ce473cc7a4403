"""Which losses run on which backbone, as a table for docs/backbones.md: ``python -m model.backbones``."""
from model.backbones import registry
from model.head_registry import heads_for_backbone
from model.heads import RefinesEmbedding


def runs(head, backbone):
    """Whether a head runs on a backbone with all that it can give."""
    reads_tokens = bool(head.needs) or issubclass(head, RefinesEmbedding)
    fits_width = backbone.joint_tokens or head.accepts_any_width or not reads_tokens
    return fits_width and set(head.needs) <= backbone.provides


def cell(name, backbone):
    head = heads_for_backbone(backbone.name).get(name)
    if head is None or not runs(head, backbone):
        return ''
    return 'its own' if head.backbone else 'yes'


def table():
    """The table in Markdown."""
    backbones = list(registry().values())
    names = sorted({name for backbone in backbones for name in heads_for_backbone(backbone.name)})
    rows = [['loss', *(backbone.name for backbone in backbones)], ['---'] * (1 + len(backbones))]
    rows += [[f'`{name}`', *(cell(name, backbone) for backbone in backbones)] for name in names]
    return '\n'.join(f"| {' | '.join(row)} |".replace('|  |', '| |').replace('|  |', '| |') for row in rows)


if __name__ == '__main__':
    print(table())

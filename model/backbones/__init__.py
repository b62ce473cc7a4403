"""Backbones: one family of encoders each, one file each, found by name through ``--backbone``.

A backbone owns what its family takes for granted: widths of tokens and embeddings, pooling, tokenizer, image
statistics, the source of its weights, parameter names in checkpoints, and learning rates. ``docs/backbones.md``
explains how to add one. Importing this package does not import PyTorch (:mod:`utils.declarations`).
"""
from utils import options
from utils.declarations import PluginRegistry, lazy_attributes
from utils.errors import UserError, unknown_name_error
from utils.help_pages import Topic, first_sentence, own_docstring

EXPORTED = {'Backbone': 'model.backbones.backbone'}
__getattr__ = lazy_attributes(__name__, EXPORTED)     # such as Backbone, which needs PyTorch
registry = PluginRegistry(__name__, 'model.backbones.backbone.Backbone')


def backbone_class(args):
    """Return the class that ``--backbone`` names."""
    if args.backbone not in registry():
        raise unknown_name_error('--backbone', args.backbone, registry())
    return registry()[args.backbone]


def refuse_other_family(backbone, state_dict, source):
    """Raise UserError if a trained model's parameters belong to another backbone than the options name."""
    if backbone.matches_state_dict(state_dict):
        return
    for other in registry().values():
        if other is not backbone and other.matches_state_dict(state_dict):
            raise UserError(f'{source} holds a model with --backbone {other.name}, and the options have --backbone '
                            f'{backbone.name}: give --backbone {other.name}, or another checkpoint')


class BackboneOptions(options.OptionProvider):
    """The options of the backbones."""

    def add_options(self, parser):
        group = parser.add_argument_group('backbone')
        group.add_argument('--backbone', default='clip', choices=sorted(registry()),
                           help='family of the image and text encoders')
        for backbone in registry().values():
            before = set(parser.actions())
            title = f'backbone {backbone.name}: {first_sentence(backbone)}'.removesuffix(': ')
            backbone.add_options(parser.add_argument_group(title))
            own = set(parser.actions()) - before
            for name in own:
                parser.readers[name] = [backbone]
            read = frozenset({'backbone', 'pretrain_choice', *own, *backbone.shared_options})
            parser.topics[backbone.name] = Topic('backbone', own_docstring(backbone), read)

        for backbone in registry().values():
            for name in backbone.shared_options:
                parser.readers[name].append(backbone)

    def active_readers(self, args):
        return [backbone_class(args)]

    def validate_options(self, args):
        backbone_class(args).validate_options(args)

    def method_key(self, args):
        return args.backbone

    def published_options(self, name, checkpoint):
        """Return {option: value} of a published checkpoint of the backbone ``name``."""
        if name not in registry():
            raise unknown_name_error('--backbone', name, registry())
        from utils.checkpoint import read_checkpoint    # imports PyTorch
        published = registry()[name].published_options(read_checkpoint(checkpoint)['model'])
        if published is None:
            raise UserError(f'--backbone {name}: test its checkpoints with --config_file, the configs.yaml of their '
                            'run')
        return {'backbone': name, **published}


options.register_options(__name__, BackboneOptions())

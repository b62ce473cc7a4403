"""Backbones: one family of encoders each, one file each, chosen by ``--backbone`` and found by itself.

A backbone owns what its family takes for granted: widths of tokens and embeddings, how tokens become an embedding, its tokenizer and its
images, where weights come from, the names of parameters in checkpoints, and learning rates. ``docs/adding_a_method.md`` walks through one.
Importing this package does not import PyTorch (:mod:`utils.declarations`).
"""
import functools
import importlib
import pkgutil

from utils import options
from utils.declarations import is_pytorch_loaded, load_plugin
from utils.errors import UserError, unknown
from utils.help_pages import Topic, own_docstring

EXPORTED = {'Backbone': 'model.backbones.backbone'}


def __getattr__(name):
    """``from model.backbones import Backbone``, which needs PyTorch."""
    if name in EXPORTED:
        return getattr(importlib.import_module(EXPORTED[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def registry():
    """{name: Backbone class} of every file in this folder. Before PyTorch is imported, classes are declarations
    (:func:`~utils.declarations.declare`)."""
    return collect_backbones(is_pytorch_loaded())


@functools.lru_cache(maxsize=1)
def collect_backbones(imported):
    """:func:`registry`, once for declarations and once more after PyTorch is imported."""
    backbones, base = {}, load_plugin('model.backbones.backbone').Backbone
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        for backbone in vars(load_plugin(f'{__name__}.{info.name}')).values():
            if isinstance(backbone, type) and issubclass(backbone, base) and backbone.name:
                backbones[backbone.name] = backbone
    return backbones


registry.cache_clear = collect_backbones.cache_clear


def backbone_class(args):
    """The class that ``--backbone`` names; CLIP for options without one, such as older runs'."""
    name = getattr(args, 'backbone', 'clip')
    if name not in registry():
        raise unknown('--backbone', name, registry())
    return registry()[name]


def refuse_other_family(backbone, state_dict, source):
    """Raise UserError where a trained model's parameters are of another backbone than the options name."""
    for other in registry().values():
        if other is not backbone and other.is_of(state_dict) and not backbone.is_of(state_dict):
            raise UserError(f"{source} is of the backbone {other.name}, and the options name {backbone.name}: give --backbone "
                            f'{other.name}, or another checkpoint')


class BackboneOptions(options.Room):
    """What the backbones bring to the options."""

    def add_options(self, parser):
        group = parser.add_argument_group('backbone')
        group.add_argument('--backbone', default='clip', choices=sorted(registry()), help='the family of encoders')
        for backbone in registry().values():
            before = set(parser.actions())
            backbone.add_options(group)
            own = set(parser.actions()) - before
            for name in own:
                parser.readers[name] = [backbone]
            parser.topics[backbone.name] = Topic('backbone', own_docstring(backbone), frozenset({'backbone', 'pretrain_choice', *own}))

    def active(self, args):
        return [backbone_class(args)]

    def validate_options(self, args):
        backbone_class(args).validate_options(args)

    def method(self, args):
        return args.backbone

    def released(self, name, checkpoint):
        """{option: value} of a released checkpoint of the backbone ``name``."""
        if name not in registry():
            raise unknown('--backbone', name, registry())
        from utils.checkpoint import read_checkpoint    # imports PyTorch
        options_of = registry()[name].released_options(read_checkpoint(checkpoint)['model'])
        if options_of is None:
            raise UserError(f'--backbone {name}: its checkpoints are tested with --config_file, the configs.yaml of their run')
        return {'backbone': name, **options_of}

    def of(self, args):
        """The class that ``args`` name, for what tokenises captions and prepares images."""
        return backbone_class(args)


options.register(__name__, BackboneOptions())

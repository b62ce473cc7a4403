"""Tunings: what ``--tuning`` adds to frozen encoders and trains, one file each, found by name.

A tuning owns its parameters with their initial values, options and learning rates, the choice of parameters that train,
its losses, and the backbones that it fits. ``docs/adding_a_tuning.md`` explains how to add one. Importing this package
does not import PyTorch (:mod:`utils.declarations`).
"""
import functools
import importlib

from utils import options
from utils.declarations import find_named_classes, is_pytorch_loaded, load_plugin
from utils.errors import UserError, unknown_name_error
from utils.help_pages import Topic, first_sentence, own_docstring
from utils.plugins import qualify

EXPORTED = dict.fromkeys(('Tuning', 'apply_tuning'), 'model.tunings.tuning')


def __getattr__(name):
    """Import what needs PyTorch on first use: ``from model.tunings import Tuning``."""
    if name in EXPORTED:
        return getattr(importlib.import_module(qualify(EXPORTED[name])), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def registry():
    """Return {name: Tuning class} of every file in this folder.

    Before PyTorch is imported, the classes are declarations (:func:`~utils.declarations.load_declarations`).
    """
    return collect_tunings(is_pytorch_loaded())


@functools.lru_cache(maxsize=1)
def collect_tunings(imported):
    """Collect the classes for :func:`registry`: declarations at first, and once more after PyTorch is imported."""
    return find_named_classes(__name__, __path__, load_plugin('model.tunings.tuning').Tuning)


registry.cache_clear = collect_tunings.cache_clear


def tuning_class(args):
    """Return the class that ``--tuning`` names."""
    if args.tuning not in registry():
        raise unknown_name_error('--tuning', args.tuning, registry())
    return registry()[args.tuning]


class TuningOptions(options.OptionProvider):
    """The options of the tunings."""

    def add_options(self, parser):
        group = parser.add_argument_group('parameter-efficient tuning')
        group.add_argument('--tuning', default='none', choices=sorted(registry()),
                           help='parameter-efficient tuning of frozen encoders; none: all parameters train')
        for tuning in registry().values():
            before = set(parser.actions())
            tuning.add_options(parser.add_argument_group(f'tuning {tuning.name}: {first_sentence(tuning)}'))
            for name in set(parser.actions()) - before:
                parser.readers[name] = [tuning]
        for tuning in registry().values():
            for name in tuning.shared_options:
                if name in parser.readers:
                    parser.readers[name].append(tuning)
            read = {name for name, readers in parser.readers.items() if tuning in readers}
            parser.topics[tuning.name] = Topic('tuning', own_docstring(tuning), frozenset({'tuning', *read}))
        parser.catalogs['tunings for --tuning'] = {name: first_sentence(cls) for name, cls in registry().items()}

    def active_readers(self, args):
        return [tuning_class(args)]

    def validate_options(self, args):
        tuning = tuning_class(args)
        if tuning.backbones and args.backbone not in tuning.backbones:
            raise UserError(f'--tuning {args.tuning} does not fit --backbone {args.backbone}: give --backbone '
                            f"{' or '.join(tuning.backbones)}, or another --tuning")
        tuning.validate_options(args)

    def method_key(self, args):
        return args.tuning


options.register_options(__name__, TuningOptions())

"""Tunings: what ``--tuning`` adds to frozen encoders and trains, one file each, found by name.

A tuning owns its parameters with their initial values, options and learning rates, the choice of parameters that train,
its losses, and the backbones that it fits. ``docs/adding_a_tuning.md`` explains how to add one. Importing this package
does not import PyTorch (:mod:`utils.declarations`).
"""
from utils import options
from utils.declarations import PluginRegistry, lazy_attributes
from utils.errors import UserError, unknown_name_error
from utils.help_pages import Topic, first_sentence, own_docstring

EXPORTED = dict.fromkeys(('Tuning', 'apply_tuning'), 'model.tunings.tuning')
__getattr__ = lazy_attributes(__name__, EXPORTED)     # such as Tuning, which needs PyTorch
registry = PluginRegistry(__name__, 'model.tunings.tuning.Tuning')


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

"""Options of other packages: heads, backbones and datasets declare, check and explain theirs in a provider."""
import importlib


class OptionProvider:
    """Base class of a package's options: heads, backbones, datasets. The package calls :func:`register_options`."""

    def add_options(self, parser):
        """Add options to a parser, and the classes that read them to ``parser.readers``."""

    def active_readers(self, args):
        """The classes in ``parser.readers`` that ``args`` select."""
        return []

    def batch_fields(self, args):
        """The names of the batch's fields that training with ``args`` needs."""
        return ()

    def validate_options(self, args):
        """Check options that depend on each other and fill in missing ones.

        Raises:
            UserError: options contradict each other.
        """

    def method_key(self, args):
        """The part of ``args`` that identifies a method. A run is compared with the published recipe of equal keys."""

    def log_notes(self, args):
        """Lines for the start of the log."""
        return []


# Modules that register options. They are imported by name, because a script of IRRA's users imports only get_args.
DEFAULT_PROVIDERS = ('model.backbones', 'model.heads', 'datasets.registry')
OPTION_PROVIDERS = {}


def register_options(name, provider):
    """Register an :class:`OptionProvider` under the name of its module."""
    OPTION_PROVIDERS[name] = provider


def option_provider(name):
    """The :class:`OptionProvider` of a module; imports the module if necessary."""
    importlib.import_module(name)
    return OPTION_PROVIDERS[name]


def option_providers():
    """All providers in a fixed order: the default ones first."""
    for name in DEFAULT_PROVIDERS:
        importlib.import_module(name)
    others = sorted(name for name in OPTION_PROVIDERS if name not in DEFAULT_PROVIDERS)
    return [OPTION_PROVIDERS[name] for name in (*DEFAULT_PROVIDERS, *others)]

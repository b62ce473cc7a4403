"""Options of other packages: heads, backbones and datasets declare, check and explain theirs in a provider."""
import importlib

from utils.plugins import OPTION_MODULES


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

    def loss_names(self):
        """The names that ``--loss_names`` accepts, for any backbone."""
        return set()

    def published_options(self, backbone, checkpoint):
        """Return {option: value} of a published checkpoint of a backbone; None if the backbone is not the provider's.

        Raises:
            UserError: the backbone is unknown, or the checkpoint is not one of its published ones.
        """

    def log_notes(self, args):
        """Lines for the start of the log."""
        return []


OPTION_PROVIDERS = {}       # {name of a module: its provider}


def register_options(name, provider):
    """Register an :class:`OptionProvider` under the name of its module."""
    OPTION_PROVIDERS[name] = provider


def unread_options(args, parser):
    """The names of the options that nothing in a run reads: those of other heads, backbones and tunings.

    Args:
        args: the completed options.
        parser: train.py's parser.
    """
    active = {reader for provider in option_providers() for reader in provider.active_readers(args)}
    return {name for name, readers in parser.readers.items() if not active & set(readers)}


def option_providers():
    """All providers in a fixed order: those of :data:`~utils.plugins.OPTION_MODULES` first."""
    for name in OPTION_MODULES:
        importlib.import_module(name)
    others = sorted(name for name in OPTION_PROVIDERS if name not in OPTION_MODULES)
    return [OPTION_PROVIDERS[name] for name in (*OPTION_MODULES, *others)]

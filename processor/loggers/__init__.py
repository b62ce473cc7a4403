"""Loggers: where a run writes its metrics besides ``metrics.jsonl``, one file each, found by name (``--logger``).

``docs/training_tools.md`` explains how to add one. Importing this package does not import PyTorch
(:mod:`utils.declarations`).
"""
import importlib.util

from utils import options
from utils.declarations import PluginRegistry, lazy_attributes
from utils.errors import UserError
from utils.help_pages import first_sentence
from utils.option_types import Effect

EXPORTED = {'MetricsLogger': 'processor.loggers.logger'}
__getattr__ = lazy_attributes(__name__, EXPORTED)     # such as MetricsLogger, which needs PyTorch
registry = PluginRegistry(__name__, 'processor.loggers.logger.MetricsLogger')


def require_packages(names):
    """Raise :class:`~utils.errors.UserError` if a package that a logger needs is not installed."""
    for name in names:
        package = registry()[name].package
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f'--logger {name} needs the package {package}, which is not installed: pip install '
                            f'{package}, or leave {name} out')


class LoggerOptions(options.OptionProvider):
    """The option that names the loggers."""

    def add_options(self, parser):
        group = parser.add_argument_group('loggers')
        group.add_argument('--logger', type=str, nargs='+', default=('tensorboard',), choices=sorted(registry()),
                           effect=Effect.NONE,
                           help='destinations of the metrics besides metrics.jsonl; several are allowed')
        parser.unabbreviated_flags |= {'--logger'}      # --log is --log_period
        parser.catalogs['loggers for --logger'] = {name: first_sentence(cls) for name, cls in registry().items()}

    def validate_options(self, args):
        args.logger = tuple(dict.fromkeys(args.logger))
        if 'none' in args.logger and len(args.logger) > 1:
            raise UserError(f"--logger {' '.join(args.logger)}: none excludes all others; leave it out")


options.register_options(__name__, LoggerOptions())

"""The names of the packages above ``utils`` that add options, losses, backbones, tunings, datasets and loggers.

A script of IRRA's users imports only ``utils.options.get_args``, which must know the options of all packages. This is
therefore the only place in ``utils`` that names modules of other packages, like a list of entry points.
"""
# The packages and modules at the top of the repository. The installed package ``pedestal`` holds them.
TOP_LEVEL_NAMES = ('datasets', 'model', 'processor', 'run_scripts', 'solver', 'test', 'train', 'utils')
# The start of their names: '' in the repository, 'pedestal.' in the installed package.
PREFIX = __name__.removesuffix('utils.plugins')


def qualify(name):
    """Return the full name of a module of Pedestal, for ``importlib``. Names of other modules stay as they are.

    Import statements need it not: the installed package translates them.

    Example:
        >>> qualify('model.heads.sdm').removeprefix(PREFIX)
        'model.heads.sdm'
    """
    return PREFIX + name if name.split('.')[0] in TOP_LEVEL_NAMES else name


# Modules that register their options (:func:`utils.option_providers.register_options`), in the order of the help.
OPTION_MODULES = tuple(map(qualify, ('model.backbones', 'model.head_options', 'model.tunings', 'datasets.registry',
                                     'processor.loggers')))
# Packages whose files are plug-ins. They can be read without PyTorch (:mod:`utils.declarations`).
PLUGIN_PACKAGES = ('model', 'model.heads', 'model.backbones', 'model.tunings', 'datasets', 'processor',
                   'processor.loggers')
# Modules of these packages that import no PyTorch.
LIGHT_PLUGIN_MODULES = ('model.heads.mixins',)

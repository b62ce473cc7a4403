"""The names of the packages above ``utils`` that add options, losses, backbones, tunings, datasets and loggers.

A script of IRRA's users imports only ``utils.options.get_args``, which must know the options of all packages. This is
therefore the only place in ``utils`` that names modules of other packages, like a list of entry points.
"""
# Modules that register their options (:func:`utils.option_providers.register_options`), in the order of the help.
OPTION_MODULES = ('model.backbones', 'model.head_options', 'model.tunings', 'datasets.registry', 'processor.loggers')
# Packages whose files are plug-ins. They can be read without PyTorch (:mod:`utils.declarations`).
PLUGIN_PACKAGES = ('model', 'model.heads', 'model.backbones', 'model.tunings', 'datasets', 'processor',
                   'processor.loggers')
# Modules of these packages that import no PyTorch.
LIGHT_PLUGIN_MODULES = ('model.heads.mixins',)

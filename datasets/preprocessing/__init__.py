"""Preprocessing of images and captions: one file a family, found by its name through ``--preparation``.

``docs/adding_a_preprocessing.md`` explains how to add one. Importing this package does not import PyTorch.
"""
import importlib
import pkgutil

from utils.errors import unknown_name_error


def preprocessing_names():
    """The names of the families: those of the files in this folder, without the base class's."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != 'base')


def build_preprocessing(args, backbone=None):
    """Build the :class:`~datasets.preprocessing.base.Preprocessing` that ``args.preparation`` names.

    Args:
        args: the options.
        backbone: the class of the backbone that ``args`` name (:func:`model.backbones.backbone_class`), which brings
            tokenizer and image statistics. None: CLIP's.

    Raises:
        UserError: the name is unknown, or there is no ``backbone`` and ``args`` name another one than CLIP.
    """
    name, base = args.preparation, importlib.import_module(f'{__name__}.base').Preprocessing
    if name not in preprocessing_names():
        raise unknown_name_error('--preparation', name, preprocessing_names())
    module = importlib.import_module(f'{__name__}.{name}')
    family, = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)
               and value.__module__ == module.__name__)
    return family(args, backbone)

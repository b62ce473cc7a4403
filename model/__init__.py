"""``from model import build_model``, as IRRA's scripts have it. Importing the package alone does not import PyTorch."""
import importlib


def __getattr__(name):
    if name == 'build_model':
        return importlib.import_module('model.build').build_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

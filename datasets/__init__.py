"""Datasets. ``from datasets import build_dataloader`` works as in IRRA; the package itself does not import PyTorch."""
import importlib

from utils.plugins import qualify


def __getattr__(name):
    if name == 'build_dataloader':
        return importlib.import_module(qualify('datasets.build')).build_dataloader
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

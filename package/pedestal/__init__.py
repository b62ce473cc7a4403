"""Pedestal: train and evaluate text-to-image person retrieval models.

import pedestal
people = pedestal.load('logs/CUHK-PEDES/<run>')
people.search('a man with a backpack', images='photos/', top=10)     # [(path, cosine similarity)], the best first

This file exists in the installed package only. There the packages of the repository are ``pedestal.datasets``,
``pedestal.model`` and so on, and :mod:`pedestal.isolation` says how they import each other. In the repository,
``import pedestal`` imports pedestal.py, which the installed package has as ``pedestal.pedestal``.
"""
import importlib
import os

_FOLDER = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_FOLDER, 'utils')):    # an editable installation: the packages are in the repository
    __path__.append(os.path.dirname(os.path.dirname(_FOLDER)))

from pedestal.isolation import install_finder

install_finder()

from pedestal.utils.plugins import TOP_LEVEL_NAMES
from pedestal.utils.version import __version__

__all__ = ['People', 'UserError', '__version__', 'load', 'load_options']


def __getattr__(name):
    """Import the library, which needs PyTorch, when one of its names is asked for."""
    if name.startswith('__') or name in TOP_LEVEL_NAMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module('pedestal.pedestal'), name)


def __dir__():
    return sorted({*globals(), *__all__})

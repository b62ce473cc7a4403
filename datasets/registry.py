"""The datasets that there are: each file of this folder with a :class:`~datasets.bases.BaseDataset` in it."""
import functools
import importlib
import logging
import os
import pkgutil

from datasets.bases import BaseDataset
from utils import options
from utils.errors import unknown

logger = logging.getLogger('Pedestal.dataset')


@functools.lru_cache(maxsize=None)
def datasets():
    """``{name: class}`` of all datasets. A file that cannot be imported is named in the log, and only its dataset is missing."""
    for module in pkgutil.iter_modules([os.path.dirname(__file__)], 'datasets.'):
        if module.ispkg:   # synthpedes writes datasets and defines none
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            logger.warning('%s cannot be imported, and what it defines is missing: %s: %s', module.name, type(error).__name__, error)
    return {cls.name: cls for cls in sorted(subclasses(BaseDataset), key=lambda cls: cls.name.lower()) if cls.name}


def subclasses(cls):
    return {found for direct in cls.__subclasses__() for found in (direct, *subclasses(direct)) if found.__module__.startswith('datasets.')}


def names():
    """The datasets' names in a sentence."""
    *first, last = datasets()
    return f'{", ".join(first)} or {last}'


def dataset_class(name):
    """The class of the dataset that ``--dataset_name`` names."""
    if name not in datasets():
        raise unknown('dataset', name, datasets())
    return datasets()[name]


class DatasetOptions(options.Room):
    """What datasets bring to the options: their names."""

    def add_options(self, parser):
        parser.actions()['dataset_name'].help = names()


options.register(__name__, DatasetOptions())

"""The datasets that there are: each file of this folder with a :class:`~datasets.bases.BaseDataset` in it."""
import argparse
import functools
import importlib
import logging
import os
import pkgutil

from datasets.bases import BaseDataset
from datasets.joined import joined_class
from datasets.published_splits import split_note
from datasets.table import COLUMNS, UFINE, as_a_table, is_table, is_ufine, table_class
from utils import options
from utils.errors import UserError, unknown
from utils.option_types import amount, up_to

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
    return f'{", ".join(datasets())} or a table of your own; several joined with +'


def dataset_class(name, columns=None, split_seed=1):
    """The class of the dataset that ``--dataset_name`` names. ``columns``, ``split_seed``: of a table (:mod:`datasets.table`)."""
    if '+' in name:
        return joined_class(name, lambda part: dataset_class(part, columns, split_seed))
    if is_table(name):
        return table_class(name, columns, split_seed)
    if name not in datasets() and is_ufine(name):
        raise as_a_table(UFINE)
    if name not in datasets():
        raise unknown('dataset', name, datasets())
    return datasets()[name]


def published_split_note(name, counts, split='test'):
    """:func:`datasets.published_splits.split_note` of a dataset by its name; '' for a table and for one that is not known."""
    try:
        return '' if not isinstance(name, str) or is_table(name) else split_note(dataset_class(name), split, counts)
    except UserError:
        return ''


class DatasetOptions(options.Room):
    """What datasets bring to the options: their names, and how a table is read."""

    def add_options(self, parser):
        parser.actions()['dataset_name'].help = names()
        parser.add_argument('--dataset_shares', type=amount, nargs='+', default=None,
                            help="of the captions of an epoch, for each of several datasets joined with +; without it: as many as it has")
        parser.uncut |= {'--dataset_shares'}     # --dataset is --dataset_name in released commands
        add_table_options(parser.add_argument_group('own data', 'with --dataset_name <table>.json, .jsonl, .csv or .tsv'))


def add_table_options(group):
    group.add_argument('--columns', nargs='+', type=column, default=None, metavar='WHAT=COLUMN',
                       help="what a table's columns are called: image=.. caption=.. id=.. split=..")
    group.add_argument('--split_seed', type=up_to(10 ** 9), default=1, help='divides the identities of a table that has no splits')


def column(word):
    """A word of ``--columns``."""
    what, equals, name = word.partition('=')
    if what not in COLUMNS or not name:
        raise argparse.ArgumentTypeError(f"'{word}' must be one of {', '.join(f'{what}=<column>' for what in COLUMNS)}")
    return word


options.register(__name__, DatasetOptions())

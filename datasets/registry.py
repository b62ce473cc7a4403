"""The datasets that there are: each file of this folder with a :class:`~datasets.bases.BaseDataset` in it."""
import argparse
import functools
import logging
import os
import pkgutil

from datasets.published_splits import split_note
from utils import options
from utils.declarations import is_pytorch_loaded, load_plugin
from utils.errors import UserError, unknown
from utils.help_pages import Topic, first_sentence, own_docstring
from utils.option_types import amount, up_to

logger = logging.getLogger('Pedestal.dataset')


def datasets():
    """``{name: class}`` of all datasets. A file that cannot be imported is named in the log, and only its dataset is missing. Before
    PyTorch is imported, classes are declarations (:func:`~utils.declarations.declare`)."""
    return collect_datasets(is_pytorch_loaded())


@functools.lru_cache(maxsize=1)
def collect_datasets(imported):
    """:func:`datasets`, once for declarations and once more after PyTorch is imported."""
    classes, base = [], load_plugin('datasets.bases').BaseDataset
    for module in pkgutil.iter_modules([os.path.dirname(__file__)], 'datasets.'):
        if module.ispkg or module.name == __name__:   # synthpedes writes datasets and defines none
            continue
        try:
            found = vars(load_plugin(module.name)).values()
        except Exception as error:
            logger.warning('%s cannot be imported, and what it defines is missing: %s: %s', module.name, type(error).__name__, error)
            continue
        classes += [cls for cls in found if isinstance(cls, type) and issubclass(cls, base) and cls.name and cls.__module__ == module.name]
    return {cls.name: cls for cls in sorted(classes, key=lambda cls: cls.name.lower())}


datasets.cache_clear = collect_datasets.cache_clear


def describe_names():
    """The datasets' names in a sentence."""
    return f'{", ".join(datasets())} or a table of your own; several joined with +'


def dataset_class(name, columns=None, split_seed=1):
    """The class of the dataset that ``--dataset_name`` names. ``columns``, ``split_seed``: of a table (:mod:`datasets.table`)."""
    tables = load_plugin('datasets.table')
    if '+' in name:
        return load_plugin('datasets.joined').joined_class(name, lambda part: dataset_class(part, columns, split_seed))
    if tables.is_table(name):
        return tables.table_class(name, columns, split_seed)
    if name not in datasets() and tables.is_ufine(name):
        raise tables.table_usage_error(tables.UFINE)
    if name not in datasets():
        raise unknown('dataset', name, datasets())
    return datasets()[name]


def published_split_note(name, counts, split='test'):
    """:func:`datasets.published_splits.split_note` of a dataset by its name; '' for a table and for one that is not known."""
    try:
        known = isinstance(name, str) and not load_plugin('datasets.table').is_table(name)
        return split_note(dataset_class(name), split, counts) if known else ''
    except UserError:
        return ''


class DatasetOptions(options.Room):
    """What datasets bring to the options: their names, and how a table is read."""

    def add_options(self, parser):
        parser.actions()['dataset_name'].help = describe_names()
        joined = parser.add_argument_group('several datasets', 'with --dataset_name <one>+<another>')
        joined.add_argument('--dataset_shares', type=amount, nargs='+', default=None,
                            help="of the captions of an epoch, for each of several datasets joined with +; without it: as many as it has")
        parser.uncut |= {'--dataset_shares'}     # --dataset is --dataset_name in released commands
        add_table_options(parser.add_argument_group('own data', 'with --dataset_name <table>.json, .jsonl, .csv or .tsv'))
        parser.catalogs['datasets for --dataset_name'] = {name: first_sentence(cls) for name, cls in datasets().items()}
        parser.completions['dataset_name'] = list(datasets())
        for name, cls in datasets().items():
            parser.topics[name] = Topic('dataset', own_docstring(cls), frozenset({'dataset_name', 'root_dir', 'dataset_shares',
                                                                                        'val_dataset', 'eval_dataset'}))


def add_table_options(group):
    group.add_argument('--columns', nargs='+', type=parse_column, default=None, metavar='WHAT=COLUMN',
                       help="what a table's columns are called: image=.. caption=.. id=.. split=..")
    group.add_argument('--split_seed', type=up_to(10 ** 9), default=1, help='divides the identities of a table that has no splits')


def parse_column(word):
    """A word of ``--columns``."""
    what, equals, name = word.partition('=')
    columns = load_plugin('datasets.table').COLUMNS
    if what not in columns or not name:
        raise argparse.ArgumentTypeError(f"'{word}' must be one of {', '.join(f'{what}=<column>' for what in columns)}")
    return word


options.register(__name__, DatasetOptions())

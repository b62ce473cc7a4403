"""Registry of datasets: every file of this folder that defines a :class:`~datasets.annotation.BaseDataset`."""
import argparse
import functools
import logging
import os
import pkgutil

from datasets.preprocessing import preprocessing_names
from datasets.published_splits import split_note
from utils import options
from utils.declarations import is_pytorch_loaded, load_plugin
from utils.errors import UserError, suggest_name
from utils.help_pages import Topic, first_sentence, own_docstring
from utils.option_types import positive_float, positive_int_up_to

logger = logging.getLogger('Pedestal.dataset')


def datasets():
    """``{name: class}`` of all datasets. A file that cannot be imported is named in the log and skipped.

    Before PyTorch is imported, classes are declarations (:func:`~utils.declarations.load_declarations`).
    """
    return collect_datasets(is_pytorch_loaded())


@functools.lru_cache(maxsize=1)
def collect_datasets(imported):
    """Collect the classes of :func:`datasets`. ``imported`` is the cache's key for declarations or imported classes."""
    classes, base = [], load_plugin('datasets.annotation').BaseDataset
    for module in pkgutil.iter_modules([os.path.dirname(__file__)], f'{__package__}.'):
        if module.ispkg or module.name == __name__:   # synthpedes writes datasets and defines none
            continue
        try:
            members = vars(load_plugin(module.name)).values()
        except Exception as error:
            logger.warning('%s cannot be imported, and what it defines is missing: %s: %s',
                           module.name, type(error).__name__, error)
            continue
        classes += [cls for cls in members if isinstance(cls, type) and issubclass(cls, base)
                    and cls.name and cls.__module__ == module.name]
    return {cls.name: cls for cls in sorted(classes, key=lambda cls: cls.name.lower())}


datasets.cache_clear = collect_datasets.cache_clear


def describe_names():
    """The names of the datasets, for a help text."""
    return f'dataset: {", ".join(datasets())}, or the path of a table; several are joined by +'


def dataset_class(name, columns=None, split_seed=1):
    """The class of the dataset that ``--dataset_name`` names.

    ``columns`` and ``split_seed`` are for a table (:mod:`datasets.table`).

    Raises:
        UserError: the name is unknown, or ``columns`` are given and it names no table.
    """
    tables = load_plugin('datasets.table')
    if columns and not any(map(tables.is_table, name.split('+'))):
        raise UserError(f"--columns {' '.join(columns)}: it names the columns of a table, and {name} has an annotation "
                        'of its own form; leave --columns out')
    if '+' in name:
        return load_plugin('datasets.joined').joined_class(
            name, lambda component: dataset_class(component, columns if tables.is_table(component) else None,
                                                  split_seed))
    if tables.is_table(name):
        return tables.table_class(name, columns, split_seed)
    if name not in datasets() and tables.is_ufine(name):
        raise tables.table_usage_error(tables.UFINE)
    if name not in datasets():
        suggestion = suggest_name(name, datasets())
        own_data = ('' if suggestion.startswith('; did you mean') else
                    '; own photos need a table (image, caption, id), such as --dataset_name people.csv')
        raise UserError(f'unknown dataset {name!r}{suggestion}{own_data}')
    return datasets()[name]


def published_split_note(name, counts, split='test'):
    """:func:`datasets.published_splits.split_note` of a dataset by its name; '' for a table or an unknown dataset."""
    try:
        is_named = isinstance(name, str) and not load_plugin('datasets.table').is_table(name)
        return split_note(dataset_class(name), split, counts) if is_named else ''
    except UserError:
        return ''


class DatasetOptions(options.OptionProvider):
    """The options of datasets: their names, and how a table is read."""

    def add_options(self, parser):
        parser.actions()['dataset_name'].help = describe_names()
        parser.actions()['preparation'].choices = preprocessing_names()
        group = parser.add_argument_group('several datasets', 'For --dataset_name <one>+<another>.')
        group.add_argument('--dataset_shares', type=positive_float, nargs='+', default=None,
                           help='weight of each dataset in an epoch, in the order of --dataset_name (default: its '
                                'number of captions)')
        parser.unabbreviated_flags |= {'--dataset_shares'}     # --dataset is --dataset_name in published commands
        add_table_options(parser.add_argument_group('tables', 'For --dataset_name <path>.json, .jsonl, .csv or .tsv.'))
        parser.catalogs['datasets for --dataset_name'] = {name: first_sentence(cls) for name, cls in datasets().items()}
        parser.completions['dataset_name'] = list(datasets())
        for name, cls in datasets().items():
            flags = frozenset({'dataset_name', 'root_dir', 'dataset_shares', 'val_dataset', 'eval_dataset'})
            parser.topics[name] = Topic('dataset', own_docstring(cls), flags, dataset_facts(cls))


def dataset_facts(cls):
    """The expected files and the published counts of a dataset, for ``--help <dataset>``: {title: {name: text}}."""
    facts, folder = {}, f'<root_dir>/{cls.name}'
    if cls.annotations:
        facts['files'] = {'annotation': f"{folder}/{' or '.join(cls.annotations)}", 'images': f'{folder}/imgs/'}
    if cls.annotations and cls.released_stem:
        facts["files in APTM's layout"] = {'annotation': f'<root_dir>/finetune/{cls.released_stem}_<split>.json',
                                           'images': f'<root_dir>/images/{cls.name}/'}
    if cls.published:
        facts['published counts'] = {
            split: f'{identities:,} identities, {images:,} images, {captions:,} captions' if images else 'none'
            for split, (identities, images, captions) in cls.published.items()}
    return facts


def add_table_options(group):
    group.add_argument('--columns', nargs='+', type=parse_column, default=None, metavar='ROLE=COLUMN',
                       help="names of a table's columns: image=... caption=... id=... split=... back_translation=... "
                            'second_caption=... (default: usual names)')
    group.add_argument('--split_seed', type=positive_int_up_to(10 ** 9), default=1,
                       help='seed of the random split of a table without splits')


def parse_column(text):
    """Validate a value of ``--columns``, such as 'caption=text'."""
    role, equals, name = text.partition('=')
    roles = load_plugin('datasets.table').COLUMNS
    if role not in roles or not name:
        raise argparse.ArgumentTypeError(f"'{text}' must be one of {', '.join(f'{role}=<column>' for role in roles)}")
    return text


options.register_options(__name__, DatasetOptions())

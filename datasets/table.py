"""One's own dataset, from a table: ``--dataset_name people.csv --root_dir <folder>`` (.json, .jsonl, .csv or .tsv), without code.

A row has a photo's path, a caption (or a list of captions), whom it shows and, where the division is given, its split. Rows of one photo
are one entry with several captions. See docs/desk.md.
"""
import logging
import math
import os
import random
import re

from datasets.bases import SPLITS, BaseDataset, path_problem
from datasets.captions import caption_problem, looks_like_list, parse_caption_list
from datasets.identities import JUNK, canonical_identity, number_identities, spelling_variants
from datasets.released_lists import report_oddities
from datasets.table_files import read_rows
from utils.errors import UserError, nearest

logger = logging.getLogger('Pedestal.dataset')

# What the columns may be called, where --columns does not say.
COLUMNS = {
    'image': ('image', 'file_path', 'img_path', 'image_path', 'path', 'file', 'filename', 'img'),
    'caption': ('caption', 'captions', 'text', 'sentence', 'description'),
    'id': ('id', 'person_id', 'pid', 'person', 'identity'),
    'split': ('split', 'part', 'subset'),
}
SPLIT_NAMES = {'training': 'train', 'valid': 'val', 'validation': 'val', 'dev': 'val', 'testing': 'test', **{name: name for name in SPLITS}}
SPLIT_FRACTIONS = {'val': 0.1, 'test': 0.2}      # of the identities, where no split is given; the rest trains
UNREADABLE_LIST = 'a list as text that is neither JSON nor Python'
WINDOWS_DRIVE = re.compile(r'[A-Za-z]:[\\/]')
UFINE = 'UFine6926'
CUHK_FOLDERS = {'CUHK01', 'CUHK03', 'Market', 'test_query', 'train_query'}


def is_ufine(name):
    """Whether a dataset, a file or its folder is called UFine6926 (Zuo et al., CVPR 2024), whose form is not known here."""
    return 'ufine' in name.lower()


def table_usage_error(name):
    """What to do with a dataset that is read as a table alone."""
    return UserError(f"{name} is read as a table: --root_dir names the folder with its annotation, --dataset_name the annotation's file, "
                     'and --columns image=<column> caption=<column> id=<column> split=<column> what its columns are called (docs/desk.md)')


def is_table(name):
    return name.lower().endswith(('.json', '.jsonl', '.csv', '.tsv'))


def table_class(name, columns=None, split_seed=1):
    """The :class:`~datasets.bases.BaseDataset` of a table. ``columns``: of ``--columns``, words like ``caption=text``."""
    if os.path.basename(name) != name:
        raise UserError(f'--dataset_name {name} is the path of a table: tables that are joined with + lie in one '
                        f'folder, --root_dir {os.path.dirname(name)}, and are named by their files alone')
    given = dict(word.split('=', 1) for word in columns or ())
    settings = {'name': name, 'annotations': (name,), 'columns': given, 'split_seed': split_seed}
    return type('Table', (Table,), {'__module__': 'table', **settings})   # of another module: it is not one of those that find themselves


class Table(BaseDataset):
    """A dataset whose annotation is a table in ``--root_dir``; photos are below ``imgs/`` beside it, or below ``--root_dir`` itself."""
    columns, split_seed = {}, 1

    @classmethod
    def locate(cls, root):
        path = os.path.join(root, cls.name)
        if not os.path.isfile(path):
            raise UserError(f'there is no table {path}: --root_dir names the folder that holds {cls.name}')
        return root, path

    @classmethod
    def image_folder(cls, folder):
        images = os.path.join(folder, 'imgs')
        return images if os.path.isdir(images) else folder

    @classmethod
    def files(cls, path):
        return [path]

    @classmethod
    def read(cls, path, wrong=None):
        rows, images = read_rows(path), cls.image_folder(os.path.dirname(path))
        names = find_columns(rows, cls.columns, path)
        for number, row in enumerate(rows):
            if problem := row_problem(row, names, images):
                raise UserError(f'{path}: row {number} (counted from 0) {problem}')
        people = {number: row for number, row in enumerate(rows) if canonical_identity(row[names['id']]) != JUNK}
        meaning = f"in the column '{names['id']}', which stands for an image of nobody"
        if not people:
            raise UserError(f'{path}: every row has {JUNK} {meaning}')
        junk = [f'{len(rows) - len(people)} rows have {JUNK} {meaning}: they are skipped'] * (len(people) < len(rows))
        lists = sum(looks_like_list(row[names['caption']]) for row in people.values()
                    if isinstance(row[names['caption']], str))
        if lists:
            logger.info('%s: the captions of %d rows are lists written as text, and are read as lists', path, lists)
        report_oddities(junk + spelling_variants(row[names['id']] for row in people.values()), path, wrong)
        entries = merge_rows(people, names, path, images)
        if 'split' not in names:
            assign_splits(entries, cls.split_seed, path)
        return entries


def find_columns(rows, given, path):
    """``{what: column}`` of what there is."""
    there = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    names = {}
    for what, usual in COLUMNS.items():
        if what in given:
            if given[what] not in there:
                raise UserError(f"{path} has no column '{given[what]}', which --columns gives as its {what}{nearest(given[what], there)}; "
                                f'its columns are {", ".join(there)}')
            names[what] = given[what]
        elif found := [name for name in usual if name in there]:
            names[what] = found[0]
        elif what != 'split':
            raise UserError(f'{path} has no column {usual[0]!r}: say which it is with --columns {what}=<column>; '
                            f'its columns are {", ".join(there)}')
    return names


def row_problem(row, names, images):
    """Describe the problem of a row in words of the table's columns; None if there is none."""
    for what, column in names.items():
        if row.get(column) in (None, '', []) or isinstance(row[column], float) and math.isnan(row[column]):
            return f"has no '{column}', its {what}"
    for caption in row_captions(row, names):
        if not isinstance(caption, str):
            return f"has a '{names['caption']}' that is a {type(caption).__name__} instead of text"
        if problem := caption_problem(caption) or looks_like_list(caption) and UNREADABLE_LIST:
            return f"has {problem} in its column '{names['caption']}': {caption[:50]!r}"
    path = image_path_below(str(row[names['image']]), images)
    if os.path.isabs(path) or WINDOWS_DRIVE.match(path):
        return f"has an absolute path in its column '{names['image']}': {path}; photos are below {images}"
    if 'split' in names and split_name(row, names) not in SPLIT_NAMES:
        return f"has the unknown split {row[names['split']]!r}{nearest(split_name(row, names), SPLIT_NAMES)}"
    return path_problem(path, names['image'], images)


def split_name(row, names):
    return str(row[names['split']]).strip().lower()


def row_captions(row, names):
    """A row's captions: a list of JSON, a list that was written as text, or one caption."""
    caption = row[names['caption']]
    if isinstance(caption, str) and looks_like_list(caption):
        caption = parse_caption_list(caption) or caption
    return caption if isinstance(caption, list) else [caption]


def image_path_below(path, images):
    """A photo's path as a table has it -> the path below the folder ``images``.

    Backslashes of Windows become slashes unless a file has such a name. An absolute path into the folder becomes relative.
    """
    if '\\' in path and not os.path.lexists(os.path.join(images, path)):
        path = path.replace('\\', '/')
    if not os.path.isabs(path):
        return path
    inside = os.path.relpath(path, os.path.abspath(images))
    return path if inside.split(os.sep)[0] == os.pardir else inside


def merge_rows(rows, names, path, images):
    """Merge ``{number: row}`` into entries ``{id, split, captions, file_path}``, one for each photo."""
    entries, numbers = {}, number_identities([row[names['id']] for row in rows.values()])
    for number, row in rows.items():
        photo = image_path_below(str(row[names['image']]), images)
        entry = {'id': numbers[str(row[names['id']])], 'captions': [], 'file_path': photo}
        if 'split' in names:
            entry['split'] = SPLIT_NAMES[split_name(row, names)]
        known = entries.setdefault(os.path.normpath(photo), entry)
        for what in ('id', 'split'):
            if known.get(what) != entry.get(what):
                raise UserError(f"{path}: row {number} (counted from 0) gives {photo} another {names[what]} than a row before it")
        known['captions'] += row_captions(row, names)
    return list(entries.values())


def assign_splits(entries, seed, path):
    """Give the entries splits by identity, at random by ``seed``: a tenth of the identities for val, a fifth for test."""
    pids = sorted({entry['id'] for entry in entries})
    if len(pids) < 3:
        raise UserError(f'{path} has no splits and {len(pids)} identities; three are needed to divide them into train, val and test')
    random.Random(seed).shuffle(pids)
    val, test = (max(1, round(share * len(pids))) for share in SPLIT_FRACTIONS.values())
    split_of = {pid: 'val' if place < val else 'test' if place < val + test else 'train' for place, pid in enumerate(pids)}
    for entry in entries:
        entry['split'] = split_of[entry['id']]
    logger.info('%s has no splits: its %d identities are divided by --split_seed %d', path, len(pids), seed)
    if {entry['file_path'].split('/')[0] for entry in entries} <= CUHK_FOLDERS:
        logger.warning("%s is CUHK-PEDES's annotation without its published splits: figures compare with nobody's; reid_raw.json, which "
                       'comes with it, has them (--dataset_name CUHK-PEDES)', path)
    elif is_ufine(os.path.join(*os.path.abspath(path).split(os.sep)[-2:])):
        logger.warning("%s is %s without its published splits: figures compare with nobody's; give each row its split, and name the column "
                       'with --columns split=<column>', path, UFINE)

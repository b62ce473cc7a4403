"""One's own dataset, from a table: ``--dataset_name people.csv --root_dir <folder>`` (.json, .jsonl, .csv or .tsv), without code.

A row has a photo's path, a caption (or a list of captions), whom it shows and, where the division is given, its split. Rows of one photo
are one entry with several captions. See docs/desk.md.
"""
import csv
import logging
import os
import random
import re

from datasets.bases import SPLITS, BaseDataset, read_entries
from utils.errors import UserError, nearest
from utils.iotools import MOST_JSON, parse_json, refuse_irregular

logger = logging.getLogger('Pedestal.dataset')

# What the columns may be called, where --columns does not say.
COLUMNS = {
    'image': ('image', 'file_path', 'img_path', 'image_path', 'path', 'file', 'filename', 'img'),
    'caption': ('caption', 'captions', 'text', 'sentence', 'description'),
    'id': ('id', 'person_id', 'pid', 'person', 'identity'),
    'split': ('split', 'part', 'subset'),
}
SPLIT_NAMES = {'training': 'train', 'valid': 'val', 'validation': 'val', 'dev': 'val', 'testing': 'test', **{name: name for name in SPLITS}}
SHARES = {'val': 0.1, 'test': 0.2}      # of the identities, where no split is given; the rest trains
UFINE = 'UFine6926'
CUHK_FOLDERS = {'CUHK01', 'CUHK03', 'Market', 'test_query', 'train_query'}


def is_ufine(name):
    """Whether a dataset, a file or its folder is called UFine6926 (Zuo et al., CVPR 2024), whose form is not known here."""
    return 'ufine' in name.lower()


def as_a_table(name):
    """What to do with a dataset that is read as a table alone."""
    return UserError(f"{name} is read as a table: --root_dir names the folder with its annotation, --dataset_name the annotation's file, "
                     'and --columns image=<column> caption=<column> id=<column> split=<column> what its columns are called (docs/desk.md)')


def is_table(name):
    return name.lower().endswith(('.json', '.jsonl', '.csv', '.tsv'))


def table_class(name, columns=None, split_seed=1):
    """The :class:`~datasets.bases.BaseDataset` of a table. ``columns``: of ``--columns``, words like ``caption=text``."""
    if os.path.basename(name) != name:
        folder, file = os.path.split(name)
        raise UserError(f'--dataset_name names a table by its file alone: --root_dir {folder} --dataset_name {file}')
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
    def read(cls, path):
        rows = read_rows(path)
        names = columns_of(rows, cls.columns, path)
        for number, row in enumerate(rows):
            for what, column in names.items():
                if row.get(column) in (None, '', []):
                    raise UserError(f"{path}: row {number} (counted from 0) has no '{column}', its {what}")
        entries = merged(rows, names, path)
        if 'split' not in names:
            divide(entries, cls.split_seed, path)
        return entries


def read_rows(path):
    """The rows of a table: a list of mappings."""
    refuse_irregular(path, MOST_JSON)
    ending = os.path.splitext(path)[1].lower()
    try:
        if ending == '.json':
            rows = read_entries(path)
        else:
            with open(path, encoding='utf-8-sig', newline='') as file:
                rows = json_lines(file, path) if ending == '.jsonl' else table_lines(file, path, '\t' if ending == '.tsv' else ',')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} is no table in UTF-8: {error}') from None
    wrong = [number for number, row in enumerate(rows) if not isinstance(row, dict)]
    if wrong:
        raise UserError(f'{path}: row {wrong[0]} (counted from 0) is a {type(rows[wrong[0]]).__name__} instead of a mapping')
    if not rows:
        raise UserError(f'{path} has no rows')
    return rows


def json_lines(file, path):
    rows = []
    for number, line in enumerate(file, start=1):
        try:
            rows += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f'{path}, line {number} is not JSON: {error}') from None
    return rows


def table_lines(file, path, delimiter):
    reader = csv.DictReader(file, delimiter=delimiter)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise UserError(f'{path} has the column {next(name for name in names if names.count(name) > 1)!r} more than once')
    rows = list(reader)
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise UserError(f'{path}: row {number} (counted from 0) has not as many cells as there are columns; put quotes around commas')
    return rows


def columns_of(rows, given, path):
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


def merged(rows, names, path):
    """Entries ``{id, split, captions, file_path}`` of the rows; those of one photo are one entry."""
    entries, numbers = {}, numbered([row[names['id']] for row in rows])
    for number, row in enumerate(rows):
        photo, captions = str(row[names['image']]), row[names['caption']]
        entry = {'id': numbers[str(row[names['id']])], 'captions': [], 'file_path': photo}
        if 'split' in names:
            split = str(row[names['split']]).strip().lower()
            if split not in SPLIT_NAMES:
                raise UserError(f'{path}: row {number} (counted from 0) has the unknown split {row[names["split"]]!r}'
                                f'{nearest(split, SPLIT_NAMES)}')
            entry['split'] = SPLIT_NAMES[split]
        known = entries.setdefault(photo, entry)
        for what in ('id', 'split'):
            if known.get(what) != entry.get(what):
                raise UserError(f"{path}: row {number} (counted from 0) gives {photo} another {names[what]} than a row before it")
        known['captions'] += captions if isinstance(captions, list) else [captions]
    return list(entries.values())


def numbered(ids):
    """``{id as text: number}``: whole numbers as they are, names in their order."""
    texts = {str(one) for one in ids}
    if all(re.fullmatch(r'\d{1,9}', text) for text in texts):
        return {text: int(text) for text in texts}
    return {text: number for number, text in enumerate(sorted(texts))}


def divide(entries, seed, path):
    """Give the entries splits by identity, at random by ``seed``: a tenth of the identities for val, a fifth for test."""
    pids = sorted({entry['id'] for entry in entries})
    if len(pids) < 3:
        raise UserError(f'{path} has no splits and {len(pids)} identities; three are needed to divide them into train, val and test')
    random.Random(seed).shuffle(pids)
    val, test = (max(1, round(share * len(pids))) for share in SHARES.values())
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

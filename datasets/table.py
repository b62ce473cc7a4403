"""Read a user's dataset from a table (.json, .jsonl, .csv, .tsv): ``--dataset_name people.csv --root_dir <folder>``.

A row has the path of an image, a caption or a list of captions, an identity, and optionally a split and side texts of
the captions. Rows of the same image become one entry with several captions. An image of val or test can lack captions,
and then also an identity: it is in the gallery only. See docs/own_data.md.
"""
import logging
import math
import os
import random
import re

from datasets.annotation import BaseDataset
from datasets.annotation_checks import SPLITS, path_problem
from datasets.captions import caption_problem, looks_like_list, parse_caption_list
from datasets.distractors import DISTRACTOR_PID
from datasets.identities import JUNK, canonical_identity, number_identities, spelling_variants
from datasets.released_lists import report_oddities
from datasets.side_texts import BACK_TRANSLATIONS, SECOND_CAPTIONS, append_captions, list_problem, read_side_texts
from datasets.table_files import read_rows
from utils.errors import UserError, describe_type, suggest_name
from utils.paths import relative_path

logger = logging.getLogger('Pedestal.dataset')

# The accepted names of each column, unless --columns names it.
COLUMNS = {
    'image': ('image', 'file_path', 'img_path', 'image_path', 'path', 'file', 'filename', 'img'),
    'caption': ('caption', 'captions', 'text', 'sentence', 'description'),
    'id': ('id', 'person_id', 'pid', 'person', 'identity'),
    'split': ('split', 'part', 'subset'),
    'back_translation': (BACK_TRANSLATIONS, 'back_translation', 'back_translations'),
    'second_caption': (SECOND_CAPTIONS, 'second_caption', 'second_captions'),
}
SIDE_TEXT_ROLES = {'back_translation': BACK_TRANSLATIONS, 'second_caption': SECOND_CAPTIONS}
OPTIONAL_ROLES = 'split', *SIDE_TEXT_ROLES
UNCAPTIONED_SPLITS = 'val', 'test'
SPLIT_NAMES = {'training': 'train', 'valid': 'val', 'validation': 'val', 'dev': 'val', 'testing': 'test',
               **{name: name for name in SPLITS}}
SPLIT_FRACTIONS = {'val': 0.1, 'test': 0.2}      # of the identities of a table without splits; the rest is for training
UNREADABLE_LIST = 'a list as text that is neither JSON nor Python'
WINDOWS_DRIVE = re.compile(r'[A-Za-z]:[\\/]')
UFINE = 'UFine6926'
CUHK_FOLDERS = {'CUHK01', 'CUHK03', 'Market', 'test_query', 'train_query'}


def is_ufine(name):
    """Whether a dataset, a file or its folder is named UFine6926 (Zuo et al., CVPR 2024), which is read as a table."""
    return 'ufine' in name.lower()


def table_usage_error(name):
    """The error for a dataset that can be read only as a table."""
    return UserError(f"{name} is read as a table: --root_dir is the folder with its annotation, --dataset_name the "
                     "annotation's file, and --columns image=<column> caption=<column> id=<column> split=<column> "
                     'names its columns (docs/own_data.md)')


def is_table(name):
    return name.lower().endswith(('.json', '.jsonl', '.csv', '.tsv'))


def table_class(name, columns=None, split_seed=1):
    """Build the :class:`~datasets.annotation.BaseDataset` of a table.

    Args:
        name: the table's file name in ``--root_dir``.
        columns: the values of ``--columns``, such as ``caption=text``.
        split_seed: the seed that splits the identities of a table without splits.
    """
    if os.path.basename(name) != name:
        raise UserError(f'--dataset_name {name} is the path of a table: tables that are joined with + must be in one '
                        f'folder; give --root_dir {os.path.dirname(name)} and file names without a folder')
    given_columns = dict(text.split('=', 1) for text in columns or ())
    settings = {'name': name, 'annotations': (name,), 'columns': given_columns, 'split_seed': split_seed}
    # Another __module__ keeps the class out of the registry.
    return type('Table', (Table,), {'__module__': 'table', **settings})


class Table(BaseDataset):
    """A dataset whose annotation is a table in ``--root_dir``.

    Images are in ``imgs/`` next to the table, or in ``--root_dir`` itself.
    """
    columns, split_seed = {}, 1
    uncaptioned_splits = UNCAPTIONED_SPLITS

    @classmethod
    def locate(cls, root):
        path = os.path.join(root, cls.name)
        if not os.path.isfile(path):
            raise UserError(f'there is no table {path}: --root_dir must be the folder that holds {cls.name}')
        return root, path

    @classmethod
    def reading_options(cls):
        columns = [f'{role}={column}' for role, column in cls.columns.items()]
        seed = ['--split_seed', str(cls.split_seed)] if cls.split_seed != Table.split_seed else []
        return [*(['--columns', *columns] if columns else []), *seed]

    @classmethod
    def image_folder(cls, folder):
        images = os.path.join(folder, 'imgs')
        return images if os.path.isdir(images) else folder

    @classmethod
    def files(cls, path):
        return [path]

    @classmethod
    def read(cls, path, problems=None):
        rows, images = read_rows(path), cls.image_folder(os.path.dirname(path))
        names = find_columns(rows, cls.columns, path)
        for number, row in enumerate(rows):
            if problem := row_problem(row, names, images):
                raise UserError(f'{path}: row {number} (counted from 0) {problem}')
        people = {number: row for number, row in enumerate(rows) if canonical_identity(row.get(names['id'])) != JUNK}
        meaning = f"in the column '{names['id']}', which means that an image shows nobody"
        if not people:
            raise UserError(f'{path}: every row has {JUNK} {meaning}')
        junk = [f'{len(rows) - len(people)} rows have {JUNK} {meaning}: they are skipped'] * (len(people) < len(rows))
        lists = sum(looks_like_list(caption) for row in people.values()
                    if isinstance(caption := row.get(names['caption']), str))
        if lists:
            logger.info('%s: the captions of %d rows are lists written as text, and are read as lists', path, lists)
        identities = (row[names['id']] for row in people.values() if not is_missing(row.get(names['id'])))
        report_oddities(junk + spelling_variants(identities), path, problems)
        entries = merge_rows(people, names, path, images)
        if 'split' not in names:
            assign_splits(entries, cls.split_seed, path)
        return entries


def find_columns(rows, given_columns, path):
    """Find the column of each role of :data:`COLUMNS` that the table has: ``{role: column}``.

    Args:
        rows: the rows of the table.
        given_columns: ``{role: column}`` of ``--columns``.
        path: the table's path, for errors.
    """
    existing = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    columns = {}
    for role, candidates in COLUMNS.items():
        if role in given_columns:
            if given_columns[role] not in existing:
                raise UserError(f"{path} has no column '{given_columns[role]}', which --columns gives as its {role}"
                                f"{suggest_name(given_columns[role], existing)}; its columns are {', '.join(existing)}")
            columns[role] = given_columns[role]
        elif matches := [name for name in candidates if name in existing]:
            columns[role] = matches[0]
        elif role not in OPTIONAL_ROLES:
            raise UserError(f'{path} has no column {candidates[0]!r}: name it with --columns {role}=<column>; '
                            f'its columns are {", ".join(existing)}')
    return columns


def row_problem(row, names, images):
    """Describe the problem of a row, with the names of the table's columns; None if there is none."""
    lacks_caption = is_missing(row.get(names['caption']))
    can_lack_caption = 'split' in names and SPLIT_NAMES.get(split_name(row, names)) in UNCAPTIONED_SPLITS
    optional = {*SIDE_TEXT_ROLES, *(['caption', 'id'] if lacks_caption and can_lack_caption else [])}
    for role, column in names.items():
        if role not in optional and is_missing(row.get(column)):
            return f"has no '{column}', its {role}{uncaptioned_hint(names) if role == 'caption' else ''}"
    for caption in row_captions(row, names):
        if not isinstance(caption, str):
            return f"has a '{names['caption']}' that is {describe_type(caption)} instead of text"
        if problem := caption_problem(caption) or looks_like_list(caption) and UNREADABLE_LIST:
            return f"has {problem} in its column '{names['caption']}': {caption[:50]!r}"
    for key, side_texts in row_side_texts(row, names).items():
        if problem := list_problem(side_texts, key, len(row_captions(row, names))):
            return f"has '{key}' {problem}"
    path = relative_image_path(str(row[names['image']]), images)
    if os.path.isabs(path) or WINDOWS_DRIVE.match(path):
        return f"has an absolute path in its column '{names['image']}': {path}; images are below {images}"
    if 'split' in names and split_name(row, names) not in SPLIT_NAMES:
        return f"has the unknown split {row[names['split']]!r}{suggest_name(split_name(row, names), SPLIT_NAMES)}"
    return path_problem(path, names['image'], images)


def is_missing(value):
    """Whether a cell is empty. pandas writes an empty list as ``[]`` into a CSV file."""
    if isinstance(value, str):
        return value.strip() in ('', '[]')
    return value in (None, []) or isinstance(value, float) and math.isnan(value)


def uncaptioned_hint(names):
    if 'split' in names:
        return f": only photos of the splits {' and '.join(UNCAPTIONED_SPLITS)} can lack one"
    return (f": photos without captions need a column of splits that gives them {' or '.join(UNCAPTIONED_SPLITS)}; or "
            'leave them out, and give their folder to test.py --distractors')


def split_name(row, names):
    return str(row.get(names['split'])).strip().lower()


def row_captions(row, names):
    """A row's captions, a list. The column holds a JSON list, a list written as text, one caption, or nothing."""
    caption = row.get(names['caption'])
    if is_missing(caption):
        return []
    if isinstance(caption, str) and looks_like_list(caption):
        caption = parse_caption_list(caption) or caption
    return caption if isinstance(caption, list) else [caption]


def row_side_texts(row, names):
    """The side texts of a row's captions: ``{key: list}`` (:mod:`datasets.side_texts`)."""
    columns = {key: names[role] for role, key in SIDE_TEXT_ROLES.items() if role in names}
    caption = row.get(names['caption'])
    has_list = not is_missing(caption) and (isinstance(caption, list) or looks_like_list(caption))
    return read_side_texts(row, columns, has_list)


def relative_image_path(path, images):
    """Convert the path in a table to the path below the folder ``images``.

    Backslashes of Windows become slashes unless a file has such a name. An absolute path into the folder becomes
    relative.
    """
    if '\\' in path and not os.path.lexists(os.path.join(images, path)):
        path = path.replace('\\', '/')
    if not os.path.isabs(path):
        return path
    relative = relative_path(path, os.path.abspath(images))
    return path if relative.split(os.sep)[0] == os.pardir else relative


def merge_rows(rows, names, path, images):
    """Merge ``{number: row}`` into entries ``{id, split, captions, file_path}``, one for each image."""
    identities = {number: str(row[names['id']]) for number, row in rows.items() if not is_missing(row.get(names['id']))}
    entries, numbers = {}, number_identities(identities.values())
    for number, row in rows.items():
        image = relative_image_path(str(row[names['image']]), images)
        pid = numbers[identities[number]] if number in identities else DISTRACTOR_PID
        entry = {'id': pid, 'captions': [], 'file_path': image}
        if 'split' in names:
            entry['split'] = SPLIT_NAMES[split_name(row, names)]
        merged = entries.setdefault(os.path.normpath(image), entry)
        for role in ('id', 'split'):
            if merged.get(role) != entry.get(role):
                raise UserError(f"{path}: row {number} (counted from 0) gives {image} another {names[role]} "
                                'than a row before it')
        append_captions(merged, row_captions(row, names), row_side_texts(row, names))
    return list(entries.values())


def assign_splits(entries, seed, path):
    """Assign random splits by identity: a tenth of the identities to val, a fifth to test, the others to train."""
    pids = sorted({entry['id'] for entry in entries})
    if len(pids) < 3:
        raise UserError(f'{path} has no splits and {len(pids)} identities; three are needed to divide them into train, '
                        'val and test')
    random.Random(seed).shuffle(pids)
    val, test = (max(1, round(fraction * len(pids))) for fraction in SPLIT_FRACTIONS.values())
    split_of = {pid: 'val' if index < val else 'test' if index < val + test else 'train'
                for index, pid in enumerate(pids)}
    for entry in entries:
        entry['split'] = split_of[entry['id']]
    logger.info('%s has no splits: its %d identities are divided by --split_seed %d', path, len(pids), seed)
    if {entry['file_path'].split('/')[0] for entry in entries} <= CUHK_FOLDERS:
        logger.warning("%s is CUHK-PEDES's annotation without its published splits: results are not comparable with "
                       'published ones; reid_raw.json, which comes with it, has the splits (--dataset_name CUHK-PEDES)',
                       path)
    elif is_ufine(os.path.join(*os.path.abspath(path).split(os.sep)[-2:])):
        logger.warning('%s is %s without its published splits: results are not comparable with published ones; give '
                       'each row its split, and name the column with --columns split=<column>', path, UFINE)

"""Annotations that methods released as a JSON list for each split.

APTM's are of rows ``{"image", "caption", "image_id", "label"}``, a row a caption or a row an image. TBPS-CLIP's are of rows ``{"file_path",
"id", "captions"}``, with ``"captions_bt"``, a back-translation of each caption, where it has them. What comes out are entries as of the
other annotations: ``{id, split, captions, file_path}``, and ``label`` or ``captions_bt`` where there is one.
"""
import glob
import logging
import os

from datasets.captions import is_empty_caption
from datasets.identities import JUNK, canonical_identity, number_identities, spelling_variants
from utils.errors import UserError
from utils.iotools import read_json

logger = logging.getLogger('Pedestal.dataset')

VALUES = frozenset((1, 0, -1))


def aptm_list_files(root, stem):
    """``{split: path}`` of APTM's lists ``<root>/finetune/<stem>_<split>.json`` that are there."""
    return existing_split_files(os.path.join(root, 'finetune', f'{stem}_%s.json'))


def tbps_list_files(folder):
    """``{split: path}`` of TBPS-CLIP's lists ``<folder>/<split>_reid.json`` that are there."""
    return existing_split_files(os.path.join(folder, '%s_reid.json'))


def existing_split_files(pattern):
    head, tail = pattern.rsplit('%s', 1)
    return {split: head + split + tail for split in ('train', 'val', 'test') if os.path.isfile(head + split + tail)}


def read_tbps_list(path, split):
    """The entries of one of TBPS-CLIP's lists, yet unchecked but for being mappings."""
    rows = read_rows(path, '{"file_path": .., "id": .., "captions": [..]}')
    return [{**row, 'split': split} if isinstance(row, dict) else row for row in rows]


def read_rows(path, like):
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f'{path} must hold a list of rows like {like}')
    return rows


def read_aptm_list(path, split, count=None, has_captions=True, wrong=None):
    """The entries of one of APTM's lists; neighbouring rows of one image are one entry with several captions.

    Args:
        split: what the entries are said to be of.
        count: how many labels an image must have; None: none are read.
        has_captions: whether rows have captions; PA-100K's don't, and get an empty one.
        wrong: a list that takes what is wrong with rows; they are left out then.

    Raises:
        UserError: the first row that isn't as it should be, with its number.
    """
    rows = read_rows(path, '{"image": .., "caption": .., "image_id": ..}')
    entries = []
    for number, row in enumerate(rows):
        problem = row_problem(row, count, has_captions)
        if problem and wrong is None:
            raise UserError(f'{path}: row {number} (counted from 0) {problem}')
        if problem:
            wrong.append(f'{path}: row {number} (counted from 0) {problem}')
            continue
        captions = row['caption'] if isinstance(row.get('caption'), list) else [row.get('caption', '')]
        pid = row.get('image_id', number)
        label = {'label': row['label']} if count is not None else {}
        last = entries[-1] if entries else None
        if last and last['file_path'] == row['image'] and last['id'] == pid:
            last['captions'] += captions
        else:
            entries.append({'id': pid, 'split': split, 'captions': captions, 'file_path': row['image'], **label})
    number_named_identities(entries, path, wrong)
    return entries


def number_named_identities(entries, path, wrong):
    """Give entries whose ids are names, such as 'c_g_a_0_0', numbers instead."""
    ids = [entry['id'] for entry in entries]
    if all(isinstance(pid, int) for pid in ids):
        return
    report_oddities(spelling_variants(ids), path, wrong)
    numbers = number_identities(ids)
    for entry in entries:
        entry['id'] = int(JUNK) if canonical_identity(entry['id']) == JUNK else numbers[str(entry['id'])]


def report_oddities(lines, path, wrong):
    """Report oddities of an annotation: in the list ``wrong`` of :mod:`datasets.check`, or without it in the log."""
    for line in lines:
        if wrong is None:
            logger.warning('%s: %s', path, line)
        else:
            wrong.append(f'{path}: {line}')


def row_problem(row, count, has_captions):
    """What is wrong with a row, or None."""
    if not isinstance(row, dict) or not isinstance(row.get('image'), str):
        return "has no 'image', the path of a picture"
    caption = row.get('caption')
    texts = caption if isinstance(caption, list) else [caption]
    if has_captions and not (texts and all(isinstance(text, str) and not is_empty_caption(text) for text in texts)):
        return "has no 'caption', a sentence or a list of sentences"
    if not isinstance(row.get('image_id', 0), (int, str)) or isinstance(row.get('image_id'), bool):
        return "has an 'image_id' that is neither a number nor a name"
    return None if count is None else label_problem(row.get('label'), count)


def label_problem(label, count):
    """What is wrong with an image's labels, or None."""
    if not isinstance(label, list) or len(label) != count:
        return f"has a 'label' that is no list of {count} numbers"
    wrong = [value for value in label if not isinstance(value, (int, float)) or isinstance(value, bool) or value not in VALUES]
    return f"has the label {wrong[0]!r}: labels are 1, 0, or -1 for unknown" if wrong else None


def mals_list_files(root):
    """MALS's lists below ``<root>/gene_attrs``, in a fixed order."""
    return sorted(glob.glob(os.path.join(glob.escape(root), 'gene_attrs', '*_attrs.json')))

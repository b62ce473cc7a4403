"""Read annotations that methods released as one JSON list per split.

APTM's lists hold rows ``{"image", "caption", "image_id", "label"}``, one row per caption or per image. TBPS-CLIP's
lists hold rows ``{"file_path", "id", "captions"}``, some with ``"captions_bt"``, a back-translation of each caption.
The results are entries like those of other annotations: ``{id, split, captions, file_path}``, with ``label`` or
``captions_bt`` if the row has one.
"""
import glob
import logging
import os

from datasets.captions import is_empty_caption
from datasets.identities import JUNK, canonical_identity, number_identities, spelling_variants
from datasets.side_texts import DESCRIPTIONS, append_captions, list_problem, read_side_texts
from utils.errors import UserError
from utils.iotools import read_json

logger = logging.getLogger('Pedestal.dataset')

LABEL_VALUES = frozenset((1, 0, -1))


def aptm_list_files(root, stem):
    """``{split: path}`` of APTM's existing lists ``<root>/finetune/<stem>_<split>.json``."""
    return existing_split_files(os.path.join(root, 'finetune', f'{stem}_%s.json'))


def tbps_list_files(folder):
    """``{split: path}`` of TBPS-CLIP's existing lists ``<folder>/<split>_reid.json``."""
    return existing_split_files(os.path.join(folder, '%s_reid.json'))


def existing_split_files(pattern):
    """``{split: path}`` of the files that exist; ``pattern`` is a path with ``%s`` for the split."""
    head, tail = pattern.rsplit('%s', 1)
    return {split: head + split + tail for split in ('train', 'val', 'test') if os.path.isfile(head + split + tail)}


def read_tbps_list(path, split):
    """Read the entries of one of TBPS-CLIP's lists. Their fields are not validated yet."""
    rows = read_rows(path, '{"file_path": .., "id": .., "captions": [..]}')
    return [{**row, 'split': split} if isinstance(row, dict) else row for row in rows]


def read_rows(path, example):
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f'{path} must hold a list of rows like {example}')
    return rows


def read_aptm_list(path, split, label_count=None, has_captions=True, problems=None):
    """Read the entries of one of APTM's lists. Neighboring rows of one image become one entry with several captions.

    Args:
        path: the list's path.
        split: the split of the entries.
        label_count: the number of labels that each image must have. None: labels are not read.
        has_captions: whether rows have captions. PA-100K's rows don't; their caption is empty.
        problems: a list that collects the problems of rows, which are then skipped.

    Raises:
        UserError: a row has a problem and ``problems`` is None. The message names the row.
    """
    rows = read_rows(path, '{"image": .., "caption": .., "image_id": ..}')
    entries = []
    for number, row in enumerate(rows):
        problem = row_problem(row, label_count, has_captions)
        if problem and problems is None:
            raise UserError(f'{path}: row {number} (counted from 0) {problem}')
        if problem:
            problems.append(f'{path}: row {number} (counted from 0) {problem}')
            continue
        captions = row['caption'] if isinstance(row.get('caption'), list) else [row.get('caption', '')]
        side_texts = side_texts_of(row)
        pid = row.get('image_id', number)
        label = {'label': row['label']} if label_count is not None else {}
        last = entries[-1] if entries else None
        if last and last['file_path'] == row['image'] and last['id'] == pid:
            append_captions(last, captions, side_texts)
        else:
            entries.append({'id': pid, 'split': split, 'captions': captions, 'file_path': row['image'], **label,
                            **side_texts})
    number_named_identities(entries, path, problems)
    return entries


def side_texts_of(row):
    """The side texts of the captions of a row of APTM's lists: ``{key: list}`` (:mod:`datasets.side_texts`)."""
    return read_side_texts(row, {key: key for key in DESCRIPTIONS}, isinstance(row.get('caption'), list))


def number_named_identities(entries, path, problems):
    """Replace ids that are names, such as 'c_g_a_0_0', by numbers, in place."""
    ids = [entry['id'] for entry in entries]
    if all(isinstance(pid, int) for pid in ids):
        return
    report_oddities(spelling_variants(ids), path, problems)
    numbers = number_identities(ids)
    for entry in entries:
        entry['id'] = int(JUNK) if canonical_identity(entry['id']) == JUNK else numbers[str(entry['id'])]


def report_oddities(lines, path, problems):
    """Append oddities of an annotation to the list ``problems``, or log them if it is None."""
    for line in lines:
        if problems is None:
            logger.warning('%s: %s', path, line)
        else:
            problems.append(f'{path}: {line}')


def row_problem(row, label_count, has_captions):
    """Describe the problem of a row; None if there is none."""
    if not isinstance(row, dict) or not isinstance(row.get('image'), str):
        return "has no 'image', the path of an image"
    caption = row.get('caption')
    texts = caption if isinstance(caption, list) else [caption]
    if has_captions and not (texts and all(isinstance(text, str) and not is_empty_caption(text) for text in texts)):
        return "has no 'caption', a sentence or a list of sentences"
    if not isinstance(row.get('image_id', 0), (int, str)) or isinstance(row.get('image_id'), bool):
        return "has an 'image_id' that is neither a number nor a name"
    for key, side_texts in side_texts_of(row).items():
        if problem := list_problem(side_texts, key, len(texts)):
            return f"has '{key}' {problem}"
    return None if label_count is None else label_problem(row.get('label'), label_count)


def label_problem(label, count):
    """Describe the problem of an image's labels; None if there is none."""
    if not isinstance(label, list) or len(label) != count:
        return f"has a 'label' that is no list of {count} numbers"
    invalid = [value for value in label
               if not isinstance(value, (int, float)) or isinstance(value, bool) or value not in LABEL_VALUES]
    return f"has the label {invalid[0]!r}: labels are 1, 0, or -1 for unknown" if invalid else None


def mals_list_files(root):
    """MALS's lists in ``<root>/gene_attrs``, in a fixed order."""
    return sorted(glob.glob(os.path.join(glob.escape(root), 'gene_attrs', '*_attrs.json')))

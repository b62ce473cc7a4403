"""Find invalid and unusual entries of annotations, and missing images."""
import functools
import os
from collections import Counter, defaultdict

from datasets.captions import caption_problem, is_encodable, looks_like_list
from datasets.distractors import DISTRACTOR_PID
from datasets.side_texts import side_text_problem
from utils.errors import UserError, add_article, describe_type, unknown_name_error
from utils.simple_tokenizer import END, MASK, START, clean_text

SPLITS = ('train', 'val', 'test')


def validate_entries(entries, path, image_key, has_captions=True, uncaptioned_splits=()):
    """Return the entries, or raise :class:`UserError` that describes the first invalid entry."""
    problems = [(number, problem) for number, entry in enumerate(entries)
                if (problem := entry_problem(entry, image_key, has_captions, uncaptioned_splits))]
    if problems:
        number, problem = problems[0]
        more = f' (and {len(problems) - 1} other entries are invalid)' if problems[1:] else ''
        raise UserError(f'{path}: entry {number} (counted from 0) {problem}{more}')
    return entries


def entry_problem(entry, image_key, has_captions=True, uncaptioned_splits=()):
    """Describe the problem of an annotation's entry; None if there is none.

    Args:
        entry: the entry.
        image_key: the field of the image's path.
        has_captions: whether captions must not be empty.
        uncaptioned_splits: the splits whose entries can have an empty list of captions, and then also the identity
            :data:`~datasets.distractors.DISTRACTOR_PID`.
    """
    if not isinstance(entry, dict):
        return f'is {describe_type(entry)} instead of a mapping'
    for field, kind in (('id', int), ('split', str), ('captions', list), (image_key, str)):
        if field not in entry:
            return f"has no field '{field}'"
        if not isinstance(entry[field], kind) or isinstance(entry[field], bool):
            return f"has a '{field}' that is {describe_type(entry[field])} instead of {add_article(kind.__name__)}"
    can_lack_captions = not entry['captions'] and entry['split'] in uncaptioned_splits
    if not 0 <= entry['id'] < 2 ** 31 and not (can_lack_captions and entry['id'] == DISTRACTOR_PID):
        return f"has the impossible id {entry['id']}"
    if entry['split'] not in SPLITS:
        return f"has the {unknown_name_error('split', entry['split'], SPLITS)}"
    if not entry['captions'] and not can_lack_captions:
        return 'has no captions'
    for number, caption in enumerate(entry['captions'], start=1):
        if not isinstance(caption, str):
            return f'has a caption {number} that is {describe_type(caption)} instead of text'
        if looks_like_list(caption):
            return f'has a caption {number} that is a list written as one text: write a JSON list, without quote marks'
        if has_captions and (problem := caption_problem(caption)):
            return f'has {problem} (number {number})'
    return side_text_problem(entry) or path_problem(entry[image_key], image_key)


def special_tokens(caption):
    """The special tokens that a caption contains as text, a list of names. The tokenizer would encode them as such."""
    if '<' not in caption and '&' not in caption:   # fast path of nearly all captions
        return []
    text = clean_text(caption)
    return [token for token in (START, MASK, END) if token in text]


def special_captions(entries):
    """``[(number of the entry, token), ...]`` of captions that contain a special token as text."""
    return [(number, token) for number, entry in enumerate(entries) for caption in entry['captions']
            for token in special_tokens(caption)]


def path_problem(path, image_key, folder='imgs/'):
    """Describe the problem of an image's path; None if there is none.

    Args:
        path: the path below ``folder``.
        image_key: the field or column of the path.
        folder: the images' folder, for the error message.
    """
    if not path.strip() or '\0' in path or not is_encodable(path):
        return f"has an empty or impossible '{image_key}': {path!r}"
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        return f"has a '{image_key}' outside of {folder}: {path}"
    return None


def shared_identities(entries):
    """``{pid: [its splits]}`` of the identities in more than one split."""
    if len({entry['split'] for entry in entries}) < 2:
        return {}       # millions of sets would need gigabytes
    splits_of = defaultdict(set)
    for entry in entries:
        splits_of[entry['id']].add(entry['split'])
    splits_of.pop(DISTRACTOR_PID, None)
    return {pid: [split for split in SPLITS if split in splits] for pid, splits in splits_of.items() if len(splits) > 1}


def repeated_images(entries, image_key):
    """``{normalized path: count}`` of the images that are listed more than once."""
    counts = Counter(os.path.normpath(entry[image_key]) for entry in entries)
    return {path: count for path, count in counts.items() if count > 1}


def missing_files(paths):
    """The ``paths`` that do not exist, in order. Each folder is listed only once, which is fast on network disks."""
    @functools.lru_cache(maxsize=None)
    def list_folder(folder):
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()

    def exists(path):
        folder, name = os.path.split(path)
        return name in list_folder(folder) or os.path.exists(path)
    return [path for path in paths if not exists(path)]


def count_entries(entries):
    """Count ``(identities, images, captions)`` of entries. An image counts once for each entry.

    Identities are those of entries with captions.
    """
    identities = {entry['id'] for entry in entries if entry['captions']}
    return len(identities), len(entries), sum(len(entry['captions']) for entry in entries)


def gallery_notes(counts):
    """Describe the images without captions of each split: a list of lines.

    Args:
        counts: ``{split: number of images without captions}``.

    Example:
        >>> gallery_notes({'val': 0, 'test': 5})
        ['test: 5 images without captions in the gallery']
    """
    return [f'{split}: {count} images without captions in the gallery' for split, count in counts.items() if count]

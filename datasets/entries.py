"""The annotated images of a split as arrays, and a large annotation kept in them for the next start."""
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence

import numpy as np

from datasets.array_cache import Samples, Strings, compute_key, cache_arrays, array_folder, read_cached_arrays
from datasets.released_lists import label_problem
from utils.iotools import refuse_irregular

logger = logging.getLogger('Pedestal.dataset')

TEXTS = 'paths', 'captions', 'rest'
CHECKS = 'datasets.entries', 'datasets.released_lists'   # code that checks an annotation, beside the datasets' own
BLOCK = 2 ** 20    # bytes of an annotation that are hashed at a time


class Entries(Sequence):
    """A split's annotated images, out of arrays. ``entries[i]`` is the dict that the annotation has there: a list of dicts in all but what
    it takes of memory.

    Args:
        arrays: of :func:`entries_to_arrays`.
        split: what the entries are of.
        image_key: what they call an image's path.
        rows: which of the arrays' images these are, all without it.

    Attributes:
        rows: int64 [N].
        ids: int64 [N], the pids as annotated.
        counts: int64 [N], captions of each.
        labels: int8 [N, A]; A is 0 where there are none.
    """

    def __init__(self, arrays, split, image_key, rows=None):
        self.arrays, self.split, self.image_key = arrays, split, image_key
        self.strings = {what: strings(arrays, what) for what in TEXTS if f'{what}_ends' in arrays}
        self.has_all_rows = rows is None
        self.rows = np.arange(len(arrays['ids'])) if self.has_all_rows else rows
        self.counts = self.select_rows(np.diff(arrays['ends'], prepend=0))
        self.ids, self.labels = self.select_rows(arrays['ids']), self.select_rows(arrays['labels'])

    def select_rows(self, array):
        return array if self.has_all_rows else array[self.rows]

    def filter(self, mask):
        """Those of the entries for which ``keep`` [N] is true."""
        return self if all(keep) else Entries(self.arrays, self.split, self.image_key, self.rows[np.array(keep, dtype=bool)])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self.rows[index])
        first, end = int(self.arrays['ends'][row - 1]) if row else 0, int(self.arrays['ends'][row])
        label = {'label': self.arrays['labels'][row].tolist()} if self.arrays['labels'].shape[1] else {}
        rest = self.strings['rest'][row] if 'rest' in self.strings else ''
        return {'id': int(self.arrays['ids'][row]), 'split': self.split, 'captions': self.strings['captions'][first:end],
                self.image_key: self.strings['paths'][row], **label, **(json.loads(rest) if rest else {})}

    def may_have_field(self, field):
        """False where no entry has a further field of this name."""
        return f'"{field}"'.encode() in bytes(self.strings['rest'].blob)

    def paths(self, folder):
        """The images' paths, in order, as an iterator."""
        paths = self.strings['paths']
        return (os.path.join(folder, path) for path in (paths if self.has_all_rows else map(paths.__getitem__, self.rows.tolist())))

    def captions(self):
        """All captions, in order: :class:`datasets.array_cache.Strings`."""
        if self.has_all_rows:
            return self.strings['captions']
        ends = self.arrays['ends'][self.rows]
        captions = self.strings['captions']
        return Strings.from_texts(caption for first, end in zip((ends - self.counts).tolist(), ends.tolist()) for caption in captions[first:end])

    def samples(self, pids, folder):
        """The training pairs with these ``pids`` [N] in place of the annotation's: :class:`datasets.array_cache.Samples`."""
        images = np.repeat(self.rows.astype(np.int32), self.counts)
        return Samples(np.repeat(pids.astype(np.int32), self.counts), images, images, self.strings['paths'], self.captions(), folder)


def entries_to_arrays(entries, image_key):
    """The arrays of a list of entries, all but their other fields (:func:`extra_fields_array`)."""
    width = next((len(label) for entry in entries[:1] if isinstance(label := entry.get('label'), list)), 0)
    if any(label_problem(entry.get('label'), width) for entry in entries):
        width = 0
    labels = [entry['label'] if width else [] for entry in entries]
    return {'ids': np.array([entry['id'] for entry in entries], np.int64), 'labels': np.array(labels, np.int8).reshape(len(entries), width),
            'ends': np.cumsum([len(entry['captions']) for entry in entries], dtype=np.int64),
            **texts('paths', (entry[image_key] for entry in entries)),
            **texts('captions', (caption for entry in entries for caption in entry['captions']))}


def extra_fields_array(entries, image_key, labelled):
    """The array of the entries' other fields, as JSON. Raises TypeError where one cannot be written."""
    known = {'id', 'split', 'captions', image_key, *(['label'] if labelled else [])}
    rest = ({name: value for name, value in entry.items() if name not in known} for entry in entries)
    return texts('rest', (json.dumps(fields) if fields else '' for fields in rest))


def texts(what, values):
    """The arrays of texts, and of their digest, which takes a reading of all of them."""
    values = Strings.from_texts(values)
    return {f'{what}_blob': values.blob, f'{what}_ends': values.ends, f'{what}_digest': np.frombuffer(values.digest().encode(), np.uint8)}


def strings(arrays, what):
    """What :func:`texts` made arrays of."""
    return Strings(arrays[f'{what}_blob'], arrays[f'{what}_ends'], bytes(arrays[f'{what}_digest']).decode())


def open_entries(dataset, path, splits, many):
    """``({split: Entries}, {split: the same as dicts})`` of an annotation.

    One of ``many`` captions and more is kept beside it, in ``listing_cache``, and read from there at the next start. What was said of it in
    the log is said again then. Another one is made where the annotation's files, the dataset's settings or its code are others.

    Args:
        dataset: a class of :mod:`datasets.bases`.
        path: the annotation's.
        splits: the names of the splits.
        many: captions in all splits together.
    """
    key, folder = annotation_key(dataset, path), os.path.join(os.path.dirname(path), 'listing_cache')
    kept = key and read_cached_arrays(array_folder(folder, dataset.name, key))
    if kept:
        for line in strings(kept, 'said'):
            level, text = json.loads(line)
            logger.log(level, '%s', text.replace('\0', path))
    else:
        with capture_log() as lines:
            entries = dataset.load_entries(path)
        entries = {split: [entry for entry in entries if entry['split'] == split] for split in splits}
        arrays = {split: entries_to_arrays(entries[split], dataset.image_key) for split in splits}
        if key is None or sum(len(of['captions_ends']) for of in arrays.values()) < many:
            return {split: Entries(arrays[split], split, dataset.image_key) for split in splits}, entries
        said = [json.dumps([level, text.replace(path, '\0')]) for level, text in lines]
        try:
            kept = {f'{split}.{what}': array for split in splits for what, array in
                    {**arrays[split], **extra_fields_array(entries[split], dataset.image_key, arrays[split]['labels'].shape[1])}.items()}
        except TypeError as error:
            logger.warning('%s is read anew at every start, for an entry of it cannot be kept: %s', path, error)
            return {split: Entries(arrays[split], split, dataset.image_key) for split in splits}, entries
        kept = cache_arrays(folder, dataset.name, key, {**kept, **texts('said', said)})
    found = {split: Entries({name.partition('.')[2]: array for name, array in kept.items() if name.startswith(f'{split}.')}, split,
                            dataset.image_key) for split in splits}
    return found, dict(found)


def annotation_key(dataset, path):
    """What the kept arrays of an annotation follow from, as 16 hexadecimal digits; None where nobody knows which files are read."""
    reads = next(cls for cls in dataset.__mro__ if 'read' in vars(cls))
    if 'files' not in vars(reads):
        return None
    settings = {name: value for name in dir(dataset) if not name.startswith('__') and plain(value := getattr(dataset, name))}
    modules = dict.fromkeys([*(cls.__module__ for cls in dataset.__mro__[:-1]), *CHECKS])    # all but object's
    code = [getattr(sys.modules.get(module), '__file__', None) for module in modules]
    return compute_key(settings, [hash_file(file) for file in code if file],
                     [(os.path.basename(file), hash_file(file)) for file in dataset.files(path)])


def plain(value):
    """Whether a class's attribute is a setting that can be written down, such as the ``columns`` of a table."""
    return isinstance(value, (str, int)) or isinstance(value, dict) and all(isinstance(part, str) for part in (*value, *value.values()))


def hash_file(path):
    """Of a file's bytes, by content rather than by time: a copy of a dataset is the same dataset."""
    refuse_irregular(path)
    digest = hashlib.sha256()
    with contextlib.suppress(OSError), open(path, 'rb') as file:      # who reads it says what is wrong with it
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def capture_log():
    """``with capture_log() as lines:`` collects ``(level, text)`` of what this room says in the log meanwhile."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append((record.levelno, record.getMessage()))
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)

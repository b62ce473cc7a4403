"""The entries of an annotation as arrays, and the cache of large annotations."""
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence

import numpy as np

from datasets.array_cache import Samples, Strings, array_folder, cache_arrays, compute_key, read_cached_arrays
from datasets.released_lists import label_problem
from utils.iotools import check_regular_file
from utils.plugins import qualify

logger = logging.getLogger('Pedestal.dataset')

TEXT_ARRAYS = 'paths', 'captions', 'rest'
# They check annotations, as datasets do.
CHECKING_MODULES = 'datasets.annotation_checks', 'datasets.entries', 'datasets.released_lists', 'datasets.side_texts'
HASH_BLOCK = 2 ** 20    # bytes of an annotation that are hashed at a time


class Entries(Sequence):
    """A memory-efficient list of a split's entries. ``entries[i]`` is the dict of the annotation.

    Args:
        arrays: the arrays of :func:`entries_to_arrays`.
        split: the split of the entries.
        image_key: the field of an image's path.
        rows: the rows of ``arrays`` that belong to this list; by default all.

    Attributes:
        rows: int64 [N].
        ids: int64 [N], the pids of the annotation.
        counts: int64 [N], the number of captions of each entry.
        labels: int8 [N, A]; A is 0 if there are no labels.
    """

    def __init__(self, arrays, split, image_key, rows=None):
        self.arrays, self.split, self.image_key = arrays, split, image_key
        self.strings = {name: arrays_to_strings(arrays, name) for name in TEXT_ARRAYS if f'{name}_ends' in arrays}
        self.has_all_rows = rows is None
        self.rows = np.arange(len(arrays['ids'])) if self.has_all_rows else rows
        self.counts = self.select_rows(np.diff(arrays['ends'], prepend=0))
        self.ids, self.labels = self.select_rows(arrays['ids']), self.select_rows(arrays['labels'])

    def select_rows(self, array):
        return array if self.has_all_rows else array[self.rows]

    def filter(self, mask):
        """The entries for which ``mask`` [N] is true."""
        if all(mask):
            return self
        return Entries(self.arrays, self.split, self.image_key, self.rows[np.array(mask, dtype=bool)])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self.rows[index])
        start, end = int(self.arrays['ends'][row - 1]) if row else 0, int(self.arrays['ends'][row])
        label = {'label': self.arrays['labels'][row].tolist()} if self.arrays['labels'].shape[1] else {}
        extra_fields = self.strings['rest'][row] if 'rest' in self.strings else ''
        return {'id': int(self.arrays['ids'][row]), 'split': self.split,
                'captions': self.strings['captions'][start:end], self.image_key: self.strings['paths'][row],
                **label, **(json.loads(extra_fields) if extra_fields else {})}

    def may_have_field(self, field):
        """Whether an entry can have an extra field of this name. False is certain, True is not."""
        return f'"{field}"'.encode() in bytes(self.strings['rest'].blob)

    def paths(self, folder):
        """The images' paths, in order, as an iterator."""
        paths = self.strings['paths']
        selected = paths if self.has_all_rows else map(paths.__getitem__, self.rows.tolist())
        return (os.path.join(folder, path) for path in selected)

    def captions(self):
        """All captions, in order: :class:`datasets.array_cache.Strings`."""
        captions = self.strings['captions']
        if self.has_all_rows:
            return captions
        ends = self.arrays['ends'][self.rows]
        starts = ends - self.counts
        return Strings.from_texts(caption for start, end in zip(starts.tolist(), ends.tolist())
                                  for caption in captions[start:end])

    def samples(self, pids, folder):
        """The training pairs, with ``pids`` [N] instead of the annotation's: :class:`datasets.array_cache.Samples`."""
        images = np.repeat(self.rows.astype(np.int32), self.counts)
        pids = np.repeat(pids.astype(np.int32), self.counts)
        return Samples(pids, images, images, self.strings['paths'], self.captions(), folder)


def entries_to_arrays(entries, image_key):
    """Convert a list of entries to ``{name: array}``, without their extra fields (:func:`extra_fields_array`)."""
    width = next((len(label) for entry in entries[:1] if isinstance(label := entry.get('label'), list)), 0)
    if any(label_problem(entry.get('label'), width) for entry in entries):
        width = 0
    labels = [entry['label'] if width else [] for entry in entries]
    return {'ids': np.array([entry['id'] for entry in entries], np.int64),
            'labels': np.array(labels, np.int8).reshape(len(entries), width),
            'ends': np.cumsum([len(entry['captions']) for entry in entries], dtype=np.int64),
            **texts_to_arrays('paths', (entry[image_key] for entry in entries)),
            **texts_to_arrays('captions', (caption for entry in entries for caption in entry['captions']))}


def extra_fields_array(entries, image_key, has_labels):
    """Convert the entries' extra fields to arrays, as JSON. Raises TypeError if JSON cannot hold a field."""
    known = {'id', 'split', 'captions', image_key, *(['label'] if has_labels else [])}
    extra_fields = ({name: value for name, value in entry.items() if name not in known} for entry in entries)
    return texts_to_arrays('rest', (json.dumps(fields) if fields else '' for fields in extra_fields))


def texts_to_arrays(name, texts):
    """Convert texts to arrays, with their digest, so that it need not be computed at the next start."""
    strings = Strings.from_texts(texts)
    digest = np.frombuffer(strings.digest().encode(), np.uint8)
    return {f'{name}_blob': strings.blob, f'{name}_ends': strings.ends, f'{name}_digest': digest}


def arrays_to_strings(arrays, name):
    """The texts that :func:`texts_to_arrays` converted."""
    return Strings(arrays[f'{name}_blob'], arrays[f'{name}_ends'], bytes(arrays[f'{name}_digest']).decode())


def open_entries(dataset, path, splits, min_cached_captions):
    """Read an annotation, from its cache if it is large.

    An annotation of at least ``min_cached_captions`` captions is cached next to it, in ``listing_cache``, with the
    lines that its checks logged. A start that reads the cache logs them again. The cache is made again if the
    annotation's files, the dataset's settings or the code that reads them change.

    Args:
        dataset: a subclass of :class:`datasets.annotation.BaseDataset`.
        path: the annotation's path.
        splits: the names of the splits.
        min_cached_captions: the smallest number of captions, in all splits together, that is cached.

    Returns:
        ``({split: Entries}, {split: sequence of dicts})``. The two are the same object if the annotation is cached.
    """
    key, folder = annotation_key(dataset, path), os.path.join(os.path.dirname(path), 'listing_cache')
    cached = key and read_cached_arrays(array_folder(folder, dataset.name, key))
    if cached:
        for line in arrays_to_strings(cached, 'said'):
            level, text = json.loads(line)
            logger.log(level, '%s', text.replace('\0', path))
    else:
        with capture_log() as lines:
            entries = dataset.load_entries(path)
        entries = {split: [entry for entry in entries if entry['split'] == split] for split in splits}
        arrays = {split: entries_to_arrays(entries[split], dataset.image_key) for split in splits}
        uncached = {split: Entries(arrays[split], split, dataset.image_key) for split in splits}, entries
        caption_count = sum(len(split_arrays['captions_ends']) for split_arrays in arrays.values())
        if key is None or caption_count < min_cached_captions:
            return uncached
        log_lines = [json.dumps([level, text.replace(path, '\0')]) for level, text in lines]
        try:
            for split in splits:
                has_labels = arrays[split]['labels'].shape[1]
                arrays[split].update(extra_fields_array(entries[split], dataset.image_key, has_labels))
        except TypeError as error:
            logger.warning('%s is read at every start, because an entry cannot be cached: %s', path, error)
            return uncached
        named = {f'{split}.{name}': array for split in splits for name, array in arrays[split].items()}
        cached = cache_arrays(folder, dataset.name, key, {**named, **texts_to_arrays('said', log_lines)})
    by_split = {split: {name.partition('.')[2]: array for name, array in cached.items() if name.startswith(f'{split}.')}
                for split in splits}
    entries = {split: Entries(by_split[split], split, dataset.image_key) for split in splits}
    return entries, dict(entries)


def annotation_key(dataset, path):
    """The cache key of an annotation, 16 hexadecimal digits; None if the dataset does not declare its ``files``."""
    reader = next(cls for cls in dataset.__mro__ if 'read' in vars(cls))
    if 'files' not in vars(reader):
        return None
    settings = {name: value for name in dir(dataset)
                if not name.startswith('__') and is_plain_setting(value := getattr(dataset, name))}
    dataset_modules = (cls.__module__ for cls in dataset.__mro__[:-1])    # without object's
    modules = dict.fromkeys([*dataset_modules, *map(qualify, CHECKING_MODULES)])
    code_files = [getattr(sys.modules.get(module), '__file__', None) for module in modules]
    return compute_key(settings, [hash_file(file) for file in code_files if file],
                       [(os.path.basename(file), hash_file(file)) for file in dataset.files(path)])


def is_plain_setting(value):
    """Whether a class attribute is a setting that JSON can hold, such as the ``columns`` of a table."""
    if isinstance(value, dict):
        return all(isinstance(text, str) for text in (*value, *value.values()))
    return isinstance(value, (str, int))


def hash_file(path):
    """The SHA-256 of a file's content. It ignores the file's time, because a copy of a dataset is the same dataset."""
    check_regular_file(path)
    digest = hashlib.sha256()
    with contextlib.suppress(OSError), open(path, 'rb') as file:      # the dataset's reader reports the error
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def capture_log():
    """Context manager that collects ``(level, text)`` of the lines that datasets log in the block."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append((record.levelno, record.getMessage()))
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)

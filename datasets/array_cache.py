"""Cache large annotations and their tokens in memory-mapped arrays.

The next start neither parses nor tokenizes a million captions again.
"""
import glob
import hashlib
import json
import itertools
import logging
import os
import shutil
import zlib
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError
from utils.iotools import read_json, check_regular_file
from utils.temporary import temporary_sibling

logger = logging.getLogger('Pedestal.dataset')

MIN_CACHED_CAPTIONS = 50_000   # the smallest number of captions whose entries and tokens are cached
VERSION = 2           # of the file format and of how annotations are read; files of other versions are not used
MANIFEST = 'whole.json'  # written last: the arrays' names, sizes and checksums
CHECKSUM_BLOCK = 2 ** 20   # bytes that are read at a time for a checksum
DAMAGE_ERRORS = OSError, ValueError, TypeError, EOFError, UserError
DECODE_BLOCK = 2 ** 14     # texts that are decoded at a time


class Strings(Sequence):
    """A sequence of texts in one array of bytes.

    It can be memory-mapped and sent to other processes without a copy.

    Args:
        blob: uint8, the UTF-8 bytes of all texts.
        ends: int64 [N], the offset of each text's end.
        known_digest: its :meth:`digest`, if it is known.
    """

    def __init__(self, blob, ends, known_digest=''):
        self.known_digest = known_digest
        self.blob, self.ends = np.asarray(blob), np.asarray(ends)     # not np.memmap, which is slow to index

    @classmethod
    def from_texts(cls, texts):
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b''.join(encoded), np.uint8), ends)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return bytes(self.blob[self.ends[index - 1] if index else 0:self.ends[index]]).decode()

    def __iter__(self):
        block_start = 0
        for first in range(0, len(self), DECODE_BLOCK):
            ends = self.ends[first:first + DECODE_BLOCK].tolist()
            block = self.blob[block_start:ends[-1]].tobytes()
            offsets = [end - block_start for end in ends]
            yield from (block[start:end].decode() for start, end in zip([0, *offsets], offsets))
            block_start = ends[-1]

    def digest(self):
        """16 hexadecimal digits that identify the texts."""
        if self.known_digest:
            return self.known_digest
        digest = hashlib.sha256(np.ascontiguousarray(self.ends).tobytes())
        digest.update(np.ascontiguousarray(self.blob))
        return digest.hexdigest()[:16]


class Samples(Sequence):
    """A memory-efficient list of training pairs ``(pid, image_id, image path, caption)``.

    Args:
        pids: int [S], the identity of each pair.
        image_ids: int [S], the image id of each pair.
        images: int [S], the index in ``paths`` of each pair's image.
        paths: the images' paths below ``folder``.
        captions: :class:`Strings`, the S captions.
        folder: the folder of the images.
    """

    def __init__(self, pids, image_ids, images, paths, captions, folder):
        self.pids, self.image_ids, self.images = pids, image_ids, images
        self.paths, self.captions, self.folder = paths, captions, folder

    def __len__(self):
        return len(self.pids)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = os.path.join(self.folder, self.paths[int(self.images[index])])
        return int(self.pids[index]), int(self.image_ids[index]), path, self.captions[index]

    def __iter__(self):
        rows = zip(self.pids.tolist(), self.image_ids.tolist(), self.images.tolist(), self.captions)
        for image, pairs in itertools.groupby(rows, key=lambda row: row[2]):
            path = os.path.join(self.folder, self.paths[image])
            yield from ((pid, image_id, path, caption) for pid, image_id, _, caption in pairs)

    def permute_captions(self, permutation):
        """Return the same pairs, in which pair i has the caption of pair ``permutation[i]``."""
        captions = Strings.from_texts(map(self.captions.__getitem__, permutation.tolist()))
        return Samples(self.pids, self.image_ids, self.images, self.paths, captions, self.folder)


def get_pids(samples):
    """The pids of training pairs, a list."""
    return samples.pids.tolist() if isinstance(samples, Samples) else [pid for pid, *_ in samples]


def get_image_ids(samples):
    """The image ids of training pairs, an integer array [S]."""
    if isinstance(samples, Samples):
        return samples.image_ids
    return np.array([image_id for _, image_id, *_ in samples], np.int64)


def get_captions(samples):
    """The captions of training pairs, a sequence."""
    return samples.captions if isinstance(samples, Samples) else [caption for *_, caption in samples]


def load_or_make_arrays(folder, name, key, make):
    """Load the memory-mapped arrays of ``<folder>/<name>_<key>/``. If they are missing or damaged, make and cache them.

    Args:
        folder: the cache's folder. If it cannot be written, the arrays are made at each start, and the log says so.
        name: the start of the folder's name. The log names folders with this name and another key.
        key: a key of everything that the arrays are made from (:func:`compute_key`).
        make: a function without arguments that returns ``{name: array}``.

    Returns:
        ``{name: array}``.
    """
    arrays = read_cached_arrays(array_folder(folder, name, key))
    return cache_arrays(folder, name, key, make()) if arrays is None else arrays


def array_folder(folder, name, key):
    return os.path.join(folder, f'{name}_{key}')


def cache_arrays(folder, name, key, arrays):
    """Write ``arrays`` and return them memory-mapped; see :func:`load_or_make_arrays`."""
    path = array_folder(folder, name, key)
    outdated = sorted(set(glob.glob(f'{glob.escape(os.path.join(folder, name))}_*')) - {path})
    outdated = [other for other in outdated if not other.endswith('.tmp')]
    if outdated:
        logger.warning('the sources of %s have changed; it can be deleted unless another copy of the dataset uses it',
                       ', '.join(outdated))
    try:
        write_arrays(path, arrays)
    except OSError as error:
        logger.warning('%s cannot be written (%s): it is computed at every start', path, error.strerror or error)
        return arrays
    return read_cached_arrays(path) or arrays


def read_cached_arrays(path):
    """Load the arrays of a folder; None if they are missing, or damaged, which the log says."""
    if not os.path.lexists(os.path.join(path, MANIFEST)):
        return None
    try:
        return load_arrays(path)
    except DAMAGE_ERRORS as error:
        logger.warning('%s is damaged (%s) and is written again', path, error)
        return None


def load_arrays(path):
    """Load the arrays of a folder, memory-mapped. If it is damaged, this raises one of :data:`DAMAGE_ERRORS`.

    All files are compared with their checksums at the start, because they are read at random and by many processes
    later.
    """
    content = read_json(os.path.join(path, MANIFEST))
    if not isinstance(content, dict) or set(content) != {'arrays', 'crc32'}:
        raise ValueError(f'{MANIFEST} holds no checksums')
    checksums = content['arrays']
    if content['crc32'] != zlib.crc32(json.dumps(checksums).encode()):
        raise ValueError(f'{MANIFEST} has another checksum')
    for name, checksum in checksums.items():
        if file_checksum(array_file(path, name)) != checksum:
            raise ValueError(f'{name}.npy has another checksum')
    # Mode 'c' keeps changes within this process, and PyTorch accepts such arrays without a warning.
    return {name: np.load(array_file(path, name), mmap_mode='c', allow_pickle=False) for name in checksums}


def file_checksum(path):
    """``[size in bytes, CRC-32]`` of a file."""
    check_regular_file(path)
    size = checksum = 0
    with open(path, 'rb', buffering=0) as file:
        while block := file.read(CHECKSUM_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


def write_arrays(path, arrays):
    """Write a folder of arrays with their checksums, atomically."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with temporary_sibling(path, folder=True) as temporary:
        for name, array in arrays.items():
            np.save(array_file(temporary, name), array, allow_pickle=False)
        with open(os.path.join(temporary, MANIFEST), 'w', encoding='utf-8') as file:
            checksums = {name: file_checksum(array_file(temporary, name)) for name in arrays}
            json.dump({'arrays': checksums, 'crc32': zlib.crc32(json.dumps(checksums).encode())}, file)
        for file in os.listdir(temporary):
            with open(os.path.join(temporary, file), 'rb+') as written:
                os.fsync(written.fileno())
        if os.path.isdir(path) and not is_intact(path):
            shutil.rmtree(path)
        try:
            os.rename(temporary, path)
        except OSError:
            if not is_intact(path):     # otherwise another process has written it
                raise


def is_intact(path):
    try:
        load_arrays(path)
    except DAMAGE_ERRORS:
        return False
    return True


def array_file(path, name):
    return os.path.join(path, f'{name}.npy')


def compute_key(*values):
    """16 hexadecimal digits that identify values which JSON can hold."""
    return hashlib.sha256(json.dumps([VERSION, *values]).encode()).hexdigest()[:16]

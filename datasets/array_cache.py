"""What a start needs of a large annotation, kept in memory-mapped arrays beside it, so that a million captions are neither read nor
tokenised again."""
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
from utils.iotools import read_json, refuse_irregular
from utils.temporary import temporary_sibling

logger = logging.getLogger('Pedestal.dataset')

VERSION = 2           # of the files: another one's are not read. Raise it when annotations are read differently
MANIFEST = 'whole.json'  # written last: what arrays there are, with their sizes and checksums
CHECKED = 2 ** 20     # bytes of a file that are read at a time for its checksum
DAMAGE = OSError, ValueError, TypeError, EOFError, UserError
BLOCK = 2 ** 14       # texts that are decoded at a time


class Strings(Sequence):
    """Texts in one array of bytes: ``strings[i]``. Goes to other processes as it is, and takes no memory beside the map's.

    Args:
        known: its :meth:`digest`, where somebody has it already.
    """

    def __init__(self, blob, ends, known=''):
        self.known = known
        # uint8 [bytes], int64 [N]: where each text ends. A map's own class is slow to index.
        self.blob, self.ends = np.asarray(blob), np.asarray(ends)

    @classmethod
    def from_texts(cls, texts):
        parts = [text.encode() for text in texts]
        return cls(np.frombuffer(b''.join(parts), np.uint8), np.cumsum([len(part) for part in parts], dtype=np.int64))

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
        start = 0
        for first in range(0, len(self), BLOCK):
            ends = self.ends[first:first + BLOCK].tolist()
            block = self.blob[start:ends[-1]].tobytes()
            places = [end - start for end in ends]
            yield from (block[begin:end].decode() for begin, end in zip([0, *places], places))
            start = ends[-1]

    def digest(self):
        """16 hexadecimal digits that differ when a text does."""
        if self.known:
            return self.known
        found = hashlib.sha256(np.ascontiguousarray(self.ends).tobytes())
        found.update(np.ascontiguousarray(self.blob))
        return found.hexdigest()[:16]


class Samples(Sequence):
    """Training pairs ``(pid, image_id, image path, caption)`` out of arrays; a list of tuples in all but what it takes of memory.

    Args:
        pids, image_ids: int [S] of each pair.
        paths: the images' paths below ``folder``, and ``images`` [S] which of them is each pair's.
        captions: :class:`Strings`, [S].
    """

    def __init__(self, pids, image_ids, images, paths, captions, folder):
        self.pids, self.image_ids, self.images, self.paths, self.captions, self.folder = pids, image_ids, images, paths, captions, folder

    def __len__(self):
        return len(self.pids)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return (int(self.pids[index]), int(self.image_ids[index]), os.path.join(self.folder, self.paths[int(self.images[index])]),
                self.captions[index])

    def __iter__(self):
        rows = zip(self.pids.tolist(), self.image_ids.tolist(), self.images.tolist(), self.captions)
        for image, pairs in itertools.groupby(rows, key=lambda row: row[2]):
            path = os.path.join(self.folder, self.paths[image])
            yield from ((pid, image_id, path, caption) for pid, image_id, _, caption in pairs)

    def permute_captions(self, permutation):
        """The same pairs, each with the caption of the pair that ``permutation`` [S] gives it."""
        captions = Strings.from_texts(map(self.captions.__getitem__, permutation.tolist()))
        return Samples(self.pids, self.image_ids, self.images, self.paths, captions, self.folder)


def get_pids(samples):
    """The pids of training pairs, a list."""
    return samples.pids.tolist() if isinstance(samples, Samples) else [pid for pid, *_ in samples]


def get_image_ids(samples):
    """The image_ids of training pairs, int64 [S] or the like."""
    return samples.image_ids if isinstance(samples, Samples) else np.array([image_id for _, image_id, *_ in samples], np.int64)


def get_captions(samples):
    """The captions of training pairs, a sequence."""
    return samples.captions if isinstance(samples, Samples) else [caption for *_, caption in samples]


def load_or_make_arrays(folder, name, key, make):
    """``{what: array}`` of ``<folder>/<name>_<key>/``, memory-mapped; ``make()`` gives them where they are not there whole.

    ``key`` follows from everything that they are made of: when that changes, others are made, and the old ones are named in the log. A
    folder that cannot be written to is no error: the arrays are made anew at each start then, which the log says.
    """
    found = read_cached_arrays(array_folder(folder, name, key))
    return cache_arrays(folder, name, key, make()) if found is None else found


def array_folder(folder, name, key):
    return os.path.join(folder, f'{name}_{key}')


def cache_arrays(folder, name, key, arrays):
    """``arrays``, out of the files that they are written into; see :func:`load_or_make_arrays`."""
    place = array_folder(folder, name, key)
    others = sorted(set(glob.glob(f'{glob.escape(os.path.join(folder, name))}_*')) - {place})
    others = [other for other in others if not other.endswith('.tmp')]
    if others:
        logger.warning('what %s was made of has changed; unless another copy of the dataset uses it, it can be deleted', ', '.join(others))
    try:
        write_arrays(place, arrays)
    except OSError as error:
        logger.warning('%s cannot be written (%s): it is made anew at every start', place, error.strerror or error)
        return arrays
    return read_cached_arrays(place) or arrays


def read_cached_arrays(place):
    """The arrays in a folder, each compared with its checksum; None if they aren't there, or not whole, which the log says."""
    if not os.path.lexists(os.path.join(place, MANIFEST)):
        return None
    try:
        return load_arrays(place)
    except DAMAGE as error:
        logger.warning('%s is damaged (%s) and is made anew', place, error)
        return None


def load_arrays(place):
    """The arrays in a folder, memory-mapped. If it is damaged, this raises one of :data:`DAMAGE`.

    All of each file is compared with its checksum, once at the start: the arrays are then read at random and in many processes.
    """
    content = read_json(os.path.join(place, MANIFEST))
    if not isinstance(content, dict) or set(content) != {'arrays', 'crc32'}:
        raise ValueError(f'{MANIFEST} holds no checksums')
    checksums = content['arrays']
    if content['crc32'] != zlib.crc32(json.dumps(checksums).encode()):
        raise ValueError(f'{MANIFEST} has another checksum')
    for what, checksum in checksums.items():
        if file_checksum(array_file(place, what)) != checksum:
            raise ValueError(f'{what}.npy has another checksum')
    # 'c': what is written into an array stays in this process, and PyTorch takes it without a warning.
    return {what: np.load(array_file(place, what), mmap_mode='c', allow_pickle=False) for what in checksums}


def file_checksum(path):
    """``[bytes, CRC-32]`` of a file."""
    refuse_irregular(path)
    size = checksum = 0
    with open(path, 'rb', buffering=0) as file:
        while block := file.read(CHECKED):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


def write_arrays(place, arrays):
    """Write a folder of arrays with their checksums, whole or not at all."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with temporary_sibling(place, folder=True) as temporary:
        for what, array in arrays.items():
            np.save(array_file(temporary, what), array, allow_pickle=False)
        with open(os.path.join(temporary, MANIFEST), 'w', encoding='utf-8') as file:
            checksums = {what: file_checksum(array_file(temporary, what)) for what in arrays}
            json.dump({'arrays': checksums, 'crc32': zlib.crc32(json.dumps(checksums).encode())}, file)
        for file in os.listdir(temporary):
            with open(os.path.join(temporary, file), 'rb+') as written:
                os.fsync(written.fileno())
        if os.path.isdir(place) and not is_intact(place):
            shutil.rmtree(place)
        try:
            os.rename(temporary, place)
        except OSError:
            if not is_intact(place):     # else another process was quicker
                raise


def is_intact(place):
    try:
        load_arrays(place)
    except DAMAGE:
        return False
    return True


def array_file(place, what):
    return os.path.join(place, f'{what}.npy')


def compute_key(*parts):
    """16 hexadecimal digits that follow from plain values."""
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()[:16]

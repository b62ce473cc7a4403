"""What a start needs of a large annotation, kept in memory-mapped arrays beside it, so that a million captions are neither read nor
tokenised again."""
import contextlib
import glob
import hashlib
import json
import itertools
import logging
import os
import shutil
import socket
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger('Pedestal.dataset')

VERSION = 2           # of the files: another one's are not read. Raise it when annotations are read differently
WHOLE = 'whole.json'  # written last: what arrays there are, with their sizes
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
    def of(cls, texts):
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

    def exchanged(self, permutation):
        """The same pairs, each with the caption of the pair that ``permutation`` [S] gives it."""
        captions = Strings.of(map(self.captions.__getitem__, permutation.tolist()))
        return Samples(self.pids, self.image_ids, self.images, self.paths, captions, self.folder)


def pids_of(samples):
    """The pids of training pairs, a list."""
    return samples.pids.tolist() if isinstance(samples, Samples) else [pid for pid, *_ in samples]


def image_ids_of(samples):
    """The image_ids of training pairs, int64 [S] or the like."""
    return samples.image_ids if isinstance(samples, Samples) else np.array([image_id for _, image_id, *_ in samples], np.int64)


def captions_of(samples):
    """The captions of training pairs, a sequence."""
    return samples.captions if isinstance(samples, Samples) else [caption for *_, caption in samples]


def open_arrays(folder, name, key, make):
    """``{what: array}`` of ``<folder>/<name>_<key>/``, memory-mapped; ``make()`` gives them where they are not there whole.

    ``key`` follows from everything that they are made of: when that changes, others are made, and the old ones are named in the log. A
    folder that cannot be written to is no error: the arrays are made anew at each start then, which the log says.
    """
    found = read_arrays(place_of(folder, name, key))
    return keep_arrays(folder, name, key, make()) if found is None else found


def place_of(folder, name, key):
    return os.path.join(folder, f'{name}_{key}')


def keep_arrays(folder, name, key, arrays):
    """``arrays``, out of the files that they are written into; see :func:`open_arrays`."""
    place = place_of(folder, name, key)
    others = sorted(set(glob.glob(f'{glob.escape(os.path.join(folder, name))}_*')) - {place})
    others = [other for other in others if not other.endswith('.tmp')]
    if others:
        logger.warning('what %s was made of has changed; unless another copy of the dataset uses it, it can be deleted', ', '.join(others))
    try:
        write_arrays(place, arrays)
    except OSError as error:
        logger.warning('%s cannot be written (%s): it is made anew at every start', place, error.strerror or error)
        return arrays
    return read_arrays(place) or arrays


def read_arrays(place):
    """The arrays in a folder; None if they aren't there, or not whole."""
    try:
        with open(os.path.join(place, WHOLE), encoding='utf-8') as file:
            sizes = json.load(file)
        if not isinstance(sizes, dict) or any(os.path.getsize(file_of(place, what)) != size for what, size in sizes.items()):
            raise ValueError('another size')
        # 'c': what is written into an array stays in this process, and PyTorch takes it without a warning.
        return {what: np.load(file_of(place, what), mmap_mode='c', allow_pickle=False) for what in sizes}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, EOFError) as error:
        logger.warning('%s is damaged (%s) and is made anew', place, error)
        return None


def write_arrays(place, arrays):
    """Write a folder of arrays, whole or not at all."""
    folder = os.path.dirname(place)
    os.makedirs(folder, exist_ok=True)
    remove_leftovers(folder)
    temporary = f'{place}.{socket.gethostname()}.{os.getpid()}.tmp'
    try:
        os.mkdir(temporary)
        for what, array in arrays.items():
            np.save(file_of(temporary, what), array, allow_pickle=False)
        with open(os.path.join(temporary, WHOLE), 'w', encoding='utf-8') as file:
            json.dump({what: os.path.getsize(file_of(temporary, what)) for what in arrays}, file)
        for file in os.listdir(temporary):
            with open(os.path.join(temporary, file), 'rb+') as written:
                os.fsync(written.fileno())
        if os.path.isdir(place) and read_arrays(place) is None:
            shutil.rmtree(place)
        with contextlib.suppress(FileExistsError):     # another process was quicker
            os.rename(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_of(place, what):
    return os.path.join(place, f'{what}.npy')


def remove_leftovers(folder):
    """Remove what processes of this machine left when they were killed."""
    for path in glob.glob(f'{glob.escape(folder)}/*.{glob.escape(socket.gethostname())}.*.tmp'):
        pid = path.split('.')[-2]
        if pid.isdecimal() and os.name == 'posix' and not os.path.exists(f'/proc/{pid}') and os.path.isdir('/proc/self'):
            shutil.rmtree(path, ignore_errors=True)


def digest_of(*parts):
    """16 hexadecimal digits that follow from plain values."""
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()[:16]

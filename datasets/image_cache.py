"""The image cache: the images of a split, decoded and resized once, in one memory-mapped file."""
import contextlib
import glob
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torchvision import transforms as T
from tqdm import tqdm

from utils.errors import UserError
from utils.images import READER_VERSION
from utils.iotools import atomic_write, read_image, read_json

logger = logging.getLogger('Pedestal.dataset')

VERSION = 1           # of the files: another one's are not read
RESERVE = 250e6       # bytes that a cache leaves free on its disk


class ImageStore:
    """A cache file's images: ``store[path]`` is a uint8 tensor [3, H, W] of its own, resized as
    :func:`datasets.transforms.build_transforms` does it. Goes to other processes as the file's name.

    Args:
        file: what :func:`open_store` wrote.
        paths: the images in it, in order.
        img_size: (H, W).

    Raises:
        UserError: the file is not whole; at indexing, an image that could not be read when the file was made.
    """

    def __init__(self, file, paths, img_size):
        self.file, self.img_size = file, tuple(img_size)
        self.rows = {path: row for row, path in enumerate(paths)}
        self.images = load(file, self.shape)   # uint8 [N, 3, H, W]
        self.broken = frozenset(paths[row] for row in broken_rows(file, len(paths)))

    @property
    def shape(self):
        return (len(self.rows), 3, *self.img_size)

    def __getitem__(self, path):
        if path in self.broken:
            raise UserError(f'image {path} could not be read when the image cache {self.file} was made')
        if self.images is None:
            self.images = load(self.file, self.shape)
        return torch.from_numpy(np.array(self.images[self.rows[path]]))

    def __getstate__(self):
        return {**self.__dict__, 'images': None}  # pickled, they would be read whole


def load(file, shape):
    """A cache file's images, uint8 of this shape, memory-mapped; one that isn't whole raises :class:`UserError`."""
    try:
        images = np.load(file, mmap_mode='r', allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers make NumPy raise nearly anything
        raise UserError(f'image cache {file} cannot be read: {getattr(error, "strerror", None) or error}') from None
    whole = (isinstance(images, np.memmap) and images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous
             and os.path.getsize(file) == images.offset + images.nbytes)
    if not whole:
        raise UserError(f'image cache {file} is damaged')
    return images


def broken_file(file):
    """Where a cache keeps the rows of images that could not be read; there only if there are any."""
    return file.removesuffix('.npy') + '.broken.json'


def broken_rows(file, count):
    if not os.path.exists(broken_file(file)):
        return []
    rows = read_json(broken_file(file))
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < count for row in rows):
        raise UserError(f'{broken_file(file)} is damaged')
    return rows


def open_store(folder, name, paths, root, img_size, workers=1, skip_broken=False, interpolation='bilinear'):
    """The :class:`ImageStore` of the images at ``paths`` in ``<folder>/<name>_<H>x<W>_<key>.npy``, which is made where it is not
    there whole. The key follows from the images' names, sizes and times: when one changes, another file is made.

    Args:
        folder: made if it is not there.
        name: begins the file's name: the dataset and the split.
        paths: the images; each is stored once.
        root: the folder that they are in; the key knows them by their path below it.
        img_size: (H, W).
        workers: how many threads decode images.
        interpolation: how images are resized.
        skip_broken: note images that cannot be read, for the store to raise when they are asked for, instead of raising now.

    Raises:
        UserError: an image cannot be read, the disk is too small, the folder cannot be written.
    """
    remove_leftovers(folder)
    paths = sorted(set(paths))
    resized = '' if interpolation == 'bilinear' else f'{interpolation}_'
    kind = os.path.join(folder, f'{name}_{resized}{img_size[0]}x{img_size[1]}')
    file = f'{kind}_{key_of(paths, root, img_size, interpolation)}.npy'
    others = sorted(set(glob.glob(f'{glob.escape(kind)}_*.npy')) - {file})
    if others:
        logger.warning('the images have changed since %s was made (%s), or an older version made it; unless another copy of '
                       'the dataset uses it, it can be deleted', ', '.join(others), in_words(sum(map(os.path.getsize, others))))
    store = found(file, paths, img_size, skip_broken)
    if store is None:
        make(file, paths, img_size, workers, skip_broken, interpolation)
        store = ImageStore(file, paths, img_size)
    return store


def key_of(paths, root, img_size, interpolation='bilinear'):
    """16 hexadecimal digits that differ when the images do."""
    images = [(os.path.relpath(path, root), *size_and_time(path)) for path in paths]
    resized = [] if interpolation == 'bilinear' else [interpolation]
    return hashlib.sha256(json.dumps([VERSION, READER_VERSION, *img_size, *resized, images]).encode()).hexdigest()[:16]


def size_and_time(path):
    try:
        status = os.stat(path)
    except OSError:  # a broken image: that is for who reads it to say
        return 0, 0
    return status.st_size, status.st_mtime_ns


def found(file, paths, img_size, skip_broken):
    """The store in a file that is there; None if it is to be made."""
    if not os.path.exists(file):
        return None
    try:
        store = ImageStore(file, paths, img_size)
    except UserError as error:
        logger.warning('%s; it is made anew', error)
        return None
    if store.broken and not skip_broken:
        for path in sorted(store.broken):
            read_image(path)   # raises, as it would without a cache
        logger.warning('image cache %s lacks images that can be read now; it is made anew', file)
        return None
    logger.info('image cache %s is used: %s', file, contents(paths, img_size))
    if store.broken:
        logger.warning('%d images could not be read when it was made; they are left out', len(store.broken))
    return store


def make(file, paths, img_size, workers, skip_broken, interpolation='bilinear'):
    """Write a cache file, whole or not at all."""
    logger.info('image cache %s: %s', file, contents(paths, img_size))
    folder, began = os.path.dirname(file), time.perf_counter()
    temporary = f'{file}.{socket.gethostname()}.{os.getpid()}.tmp'   # another process may be at it, too
    try:
        os.makedirs(folder, exist_ok=True)
        refuse_small_disk(folder, size_of(paths, img_size))
        broken = fill(temporary, paths, img_size, workers, skip_broken, interpolation)
        if broken:
            with atomic_write(broken_file(file)) as record:   # first: there must be no file with empty rows and no record of them
                json.dump(broken, record)
        os.replace(temporary, file)
        if not broken and os.path.exists(broken_file(file)):
            os.remove(broken_file(file))
    except OSError as error:
        raise UserError(f'cannot write the image cache into {folder}: {error.strerror or error}; '
                        'choose another folder with --image_cache <folder>') from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)
    seconds = time.perf_counter() - began
    logger.info('image cache written in %.1f s, %.0f images a second', seconds, len(paths) / seconds)


def fill(file, paths, img_size, workers, skip_broken, interpolation='bilinear'):
    """Write the images into a new file and wait until they are on the disk; returns the rows of those that cannot be read."""
    images = np.lib.format.open_memmap(file, 'w+', np.uint8, (len(paths), 3, *img_size))
    if hasattr(os, 'posix_fallocate'):  # a full disk shows now: on writing into a map, it would end the process
        with open(file, 'r+b') as whole:
            os.posix_fallocate(whole.fileno(), 0, os.path.getsize(file))
    resize = T.Resize(tuple(img_size), T.InterpolationMode(interpolation))

    def store(row):
        """Whether the image could be read."""
        try:
            image = read_image(paths[row])
        except UserError as error:
            if not skip_broken:
                raise
            logger.warning('left out: %s', error)
            return False
        images[row] = np.asarray(resize(image)).transpose(2, 0, 1)
        return True

    pool = ThreadPoolExecutor(max(1, workers))  # decoding and resizing leave Python's lock to others
    try:
        bar = tqdm(pool.map(store, range(len(paths))), total=len(paths), unit='image', desc='image cache', disable=None)
        broken = [row for row, whole in enumerate(bar) if not whole]
    finally:
        pool.shutdown(cancel_futures=True)
    images.flush()
    with open(file, 'r+b') as whole:
        os.fsync(whole.fileno())
    return broken


def remove_leftovers(folder):
    """Remove what processes of this machine left when they were killed."""
    for path in glob.glob(f'{glob.escape(folder)}/*.npy.{glob.escape(socket.gethostname())}.*.tmp'):
        pid = path.split('.')[-2]
        if pid.isdecimal() and not others_run(int(pid)):
            with contextlib.suppress(OSError):
                os.remove(path)


def others_run(pid):
    """Whether another process of this number is there."""
    if pid == os.getpid() or os.name != 'posix':   # elsewhere os.kill ends the process
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def refuse_small_disk(folder, size):
    free = shutil.disk_usage(folder).free
    if size + RESERVE > free:
        raise UserError(f'the image cache needs {in_words(size)} and {in_words(RESERVE)} to spare, and {folder} has {in_words(free)}: '
                        'choose another folder with --image_cache <folder>')


def size_of(paths, img_size):
    return len(paths) * 3 * img_size[0] * img_size[1]


def contents(paths, img_size):
    return f'{len(paths):,} images of {img_size[0]}x{img_size[1]}, {in_words(size_of(paths, img_size))}'


def in_words(size):
    """Bytes as ``5.0 GB`` or ``12.3 MB``."""
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'

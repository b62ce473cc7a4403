"""The image cache: the images of a split, decoded and resized once, in one file with a checksum for each image."""
import contextlib
import glob
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torchvision import transforms as T
from tqdm import tqdm

from utils.errors import UserError
from utils.images import READER_VERSION
from utils.iotools import RandomReader, atomic_write, read_image, read_json
from utils.temporary import remove_abandoned, temporary_sibling

logger = logging.getLogger('Pedestal.dataset')

VERSION = 1           # of the files: another one's are not read
RESERVE = 250e6       # bytes that a cache leaves free on its disk


class ImageStore:
    """A cache file's images: ``store[path]`` is a uint8 tensor [3, H, W] of its own, resized as
    :func:`datasets.transforms.build_transforms` does it. Goes to other processes as the file's name.

    Each read compares the image with its checksum. A damaged image is decoded again from its own file, and the cache is repaired.

    Args:
        file: what :func:`open_store` wrote.
        paths: the images in it, in order.
        img_size: (H, W).
        interpolation: how the images were resized.

    Raises:
        UserError: the file is not whole; at indexing, an image that could not be read when the file was made, or one that is
            damaged in the cache and cannot be read now.
    """

    def __init__(self, file, paths, img_size, interpolation='bilinear'):
        self.file, self.img_size, self.interpolation = file, tuple(img_size), interpolation
        self.rows = {path: row for row, path in enumerate(paths)}
        self.reader, self.reported = open_reader(file), False
        rows = read_broken_rows(file, len(paths))
        self.offset, self.checksums = read_checksums(self.reader, file, (len(paths), *self.shape), rows)   # uint32 [N]
        self.broken = frozenset(paths[row] for row in rows)

    @property
    def shape(self):
        return (3, *self.img_size)

    def __getitem__(self, path):
        if path in self.broken:
            raise UserError(f'image {path} could not be read when the image cache {self.file} was made')
        if self.reader is None:
            self.reader = open_reader(self.file)
        row, image = self.rows[path], np.empty(self.shape, np.uint8)
        count = self.reader.read_into(image, self.offset + row * image.nbytes)
        if count < image.nbytes or zlib.crc32(image) != self.checksums[row]:
            image = self.decode_again(row, path)
        return torch.from_numpy(image)

    def decode_again(self, row, path):
        """uint8 [3, H, W]: an image that is damaged in the cache, from its own file; also written back into the cache."""
        if not self.reported:
            logger.warning('image cache %s is damaged at %s: this image and other damaged ones are made again from their files',
                           self.file, path)
            self.reported = True     # once in each process
        try:
            image = load_resized(path, resize_to(self.img_size, self.interpolation))
        except UserError as error:
            raise UserError(f'image cache {self.file} is damaged at {path}, which cannot be made again: {error}') from None
        if zlib.crc32(image) == self.checksums[row]:
            self.write_back(row, image)
        return image

    def write_back(self, row, image):
        """Repair the file unless it is read-only, has been cut, or another one has taken its place."""
        with contextlib.suppress(OSError), open(self.file, 'r+b') as file:
            status = os.fstat(file.fileno())
            if os.path.samestat(status, self.reader.status()) and status.st_size > self.offset + len(self.rows) * image.nbytes:
                file.seek(self.offset + row * image.nbytes)
                file.write(image.tobytes())

    def __getstate__(self):
        return {**self.__dict__, 'reader': None}


def open_reader(file):
    try:
        return RandomReader(file)
    except OSError as error:
        raise UserError(f'image cache {file} cannot be read: {error.strerror or error}') from None


def read_checksums(reader, file, shape, broken):
    """``(offset of the first image, uint32 [N] checksum of each image)`` of a cache file; :class:`UserError` if it is not whole.

    The file is a .npy array with a trailer of little-endian uint32: a CRC-32 for each image, one of the list of ``broken`` rows, and
    one of the header and all that is before it in the trailer.
    """
    try:
        images = np.load(file, mmap_mode='r', allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers make NumPy raise nearly anything
        raise UserError(f'image cache {file} cannot be read: {getattr(error, "strerror", None) or error}') from None
    if not (isinstance(images, np.memmap) and images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous):
        raise UserError(f'image cache {file} is damaged')
    offset, end = images.offset, images.offset + images.nbytes
    header, trailer, size = bytearray(offset), np.empty(shape[0] + 2, '<u4'), reader.status().st_size
    if size == end:
        raise UserError(f'image cache {file} has no checksums, for an older version wrote it')
    whole = (size == end + trailer.nbytes and reader.read_into(header, 0) == offset and reader.read_into(trailer, end) == trailer.nbytes
             and trailer[-1] == zlib.crc32(trailer[:-1], zlib.crc32(header)) and trailer[-2] == rows_checksum(broken))
    if not whole:
        raise UserError(f'image cache {file} is damaged')
    return offset, trailer[:-2].copy()


def rows_checksum(rows):
    return zlib.crc32(json.dumps(rows).encode())


def broken_rows_file(file):
    """Where a cache keeps the rows of images that could not be read; there only if there are any."""
    return file.removesuffix('.npy') + '.broken.json'


def read_broken_rows(file, count):
    if not os.path.exists(broken_rows_file(file)):
        return []
    rows = read_json(broken_rows_file(file))
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < count for row in rows):
        raise UserError(f'{broken_rows_file(file)} is damaged')
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
    remove_abandoned(folder)
    paths = sorted(set(paths))
    resized = '' if interpolation == 'bilinear' else f'{interpolation}_'
    kind = os.path.join(folder, f'{name}_{resized}{img_size[0]}x{img_size[1]}')
    file = f'{kind}_{cache_key(paths, root, img_size, interpolation)}.npy'
    others = sorted(set(glob.glob(f'{glob.escape(kind)}_*.npy')) - {file})
    if others:
        logger.warning('the images have changed since %s was made (%s), or an older version made it; unless another copy of '
                       'the dataset uses it, it can be deleted', ', '.join(others), format_bytes(sum(map(os.path.getsize, others))))
    store = open_existing_store(file, paths, img_size, skip_broken, interpolation)
    if store is None:
        write_store(file, paths, img_size, workers, skip_broken, interpolation)
        store = ImageStore(file, paths, img_size, interpolation)
    return store


def cache_key(paths, root, img_size, interpolation='bilinear'):
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


def open_existing_store(file, paths, img_size, skip_broken, interpolation='bilinear'):
    """The store in a file that is there; None if it is to be made."""
    if not os.path.exists(file):
        return None
    try:
        store = ImageStore(file, paths, img_size, interpolation)
    except UserError as error:
        logger.warning('%s; it is made anew', error)
        return None
    if store.broken and not skip_broken:
        for path in sorted(store.broken):
            read_image(path)   # raises, as it would without a cache
        logger.warning('image cache %s lacks images that can be read now; it is made anew', file)
        return None
    logger.info('image cache %s is used: %s', file, describe_contents(paths, img_size))
    if store.broken:
        logger.warning('%d images could not be read when it was made; they are left out', len(store.broken))
    return store


def write_store(file, paths, img_size, workers, skip_broken, interpolation='bilinear'):
    """Write a cache file, whole or not at all."""
    logger.info('image cache %s: %s', file, describe_contents(paths, img_size))
    folder, began = os.path.dirname(file), time.perf_counter()
    try:
        os.makedirs(folder, exist_ok=True)
        check_disk_space(folder, images_size(paths, img_size))
        with temporary_sibling(file) as temporary:   # another process may write this cache, too
            broken = write_images(temporary, paths, img_size, workers, skip_broken, interpolation)
            if broken:
                with atomic_write(broken_rows_file(file)) as record:   # first: there must be no file with empty rows and no record of them
                    json.dump(broken, record)
            os.replace(temporary, file)
        if not broken and os.path.exists(broken_rows_file(file)):
            os.remove(broken_rows_file(file))
    except OSError as error:
        raise UserError(f'cannot write the image cache into {folder}: {error.strerror or error}; '
                        'choose another folder with --image_cache <folder>') from None
    seconds = time.perf_counter() - began
    logger.info('image cache written in %.1f s, %.0f images a second', seconds, len(paths) / seconds)


def write_images(file, paths, img_size, workers, skip_broken, interpolation='bilinear'):
    """Write the images and their checksums into a new file and wait until they are on the disk; returns the rows of those that cannot be
    read."""
    images = np.lib.format.open_memmap(file, 'w+', np.uint8, (len(paths), 3, *img_size))
    trailer, end = np.zeros(len(paths) + 2, '<u4'), images.offset + images.nbytes
    if hasattr(os, 'posix_fallocate'):  # a full disk shows now: on writing into a map, it would end the process
        with open(file, 'r+b') as whole:
            os.posix_fallocate(whole.fileno(), 0, end + trailer.nbytes)
    resize = resize_to(img_size, interpolation)

    def store(row):
        """Whether the image could be read."""
        try:
            image = load_resized(paths[row], resize)
        except UserError as error:
            if not skip_broken:
                raise
            logger.warning('left out: %s', error)
            return False
        images[row], trailer[row] = image, zlib.crc32(image)
        return True

    pool = ThreadPoolExecutor(max(1, workers))  # decoding and resizing leave Python's lock to others
    try:
        bar = tqdm(pool.map(store, range(len(paths))), total=len(paths), unit='image', desc='image cache', disable=None)
        broken = [row for row, whole in enumerate(bar) if not whole]
    finally:
        pool.shutdown(cancel_futures=True)
    images.flush()
    with open(file, 'r+b') as whole:
        header = whole.read(images.offset)
        trailer[-2] = rows_checksum(broken)
        trailer[-1] = zlib.crc32(trailer[:-1], zlib.crc32(header))
        whole.seek(end)
        whole.write(trailer.tobytes())
        whole.flush()
        os.fsync(whole.fileno())
    return broken


def resize_to(img_size, interpolation):
    return T.Resize(tuple(img_size), T.InterpolationMode(interpolation))


def load_resized(path, resize):
    """uint8 [3, H, W]: an image file as a cache holds it."""
    return np.ascontiguousarray(np.asarray(resize(read_image(path))).transpose(2, 0, 1))


def check_disk_space(folder, size):
    free = shutil.disk_usage(folder).free
    if size + RESERVE > free:
        raise UserError(f'the image cache needs {format_bytes(size)} and {format_bytes(RESERVE)} to spare, and {folder} has {format_bytes(free)}: '
                        'choose another folder with --image_cache <folder>')


def images_size(paths, img_size):
    return len(paths) * 3 * img_size[0] * img_size[1]


def describe_contents(paths, img_size):
    return f'{len(paths):,} images of {img_size[0]}x{img_size[1]}, {format_bytes(images_size(paths, img_size))}'


def format_bytes(size):
    """Bytes as ``5.0 GB`` or ``12.3 MB``."""
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'

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
from tqdm import tqdm

from datasets.transforms import build_resize
from utils.errors import UserError, is_out_of_files
from utils.images import READER_VERSION
from utils.iotools import RandomReader, atomic_write, read_image, read_json
from utils.paths import relative_path
from utils.temporary import remove_abandoned, temporary_sibling

logger = logging.getLogger('Pedestal.dataset')

VERSION = 1              # of the file format; files of other versions are not read
RESERVED_BYTES = 250e6   # that a cache leaves free on its disk


class ImageCache:
    """The images of a cache file: ``cache[path]`` is a new uint8 tensor [3, H, W].

    Images are resized as :func:`datasets.transforms.build_transforms` does it. Each read compares the image with its
    checksum. A damaged image is decoded from its image file again, and the cache is repaired. A cache is pickled as the
    file's name.

    Args:
        file: the file that :func:`open_image_cache` wrote.
        paths: the paths of the images in it, in order.
        img_size: (H, W) in pixels.
        interpolation: the interpolation with which the images were resized.

    Raises:
        UserError: the file is incomplete or damaged. At indexing: the image could not be read when the file was made,
            or it is damaged in the cache and its image file cannot be read.
    """

    def __init__(self, file, paths, img_size, interpolation='bilinear'):
        self.file, self.img_size, self.interpolation = file, tuple(img_size), interpolation
        self.rows = {path: row for row, path in enumerate(paths)}
        self.reader, self.has_reported_damage = open_reader(file), False
        rows = read_broken_rows(file, len(paths))
        shape = len(paths), *self.shape
        self.offset, self.checksums = read_checksums(self.reader, file, shape, rows)   # uint32 [N]
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
        """Decode an image that is damaged in the cache from its image file, and repair the cache: uint8 [3, H, W]."""
        if not self.has_reported_damage:
            logger.warning('image cache %s is damaged at %s: damaged images are decoded from their files again',
                           self.file, path)
            self.has_reported_damage = True     # once in each process
        try:
            image = load_resized(path, build_resize(self.img_size, self.interpolation))
        except UserError as error:
            raise UserError(f'image cache {self.file} is damaged at {path}, which cannot be decoded again: '
                            f'{error}') from None
        if zlib.crc32(image) == self.checksums[row]:
            self.write_back(row, image)
        return image

    def write_back(self, row, image):
        """Repair the file unless it is read-only, truncated, or replaced by another file."""
        with contextlib.suppress(OSError), open(self.file, 'r+b') as file:
            status = os.fstat(file.fileno())
            images_end = self.offset + len(self.rows) * image.nbytes
            if os.path.samestat(status, self.reader.status()) and status.st_size > images_end:
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
    """Read ``(offset of the first image, uint32 [N] checksum of each image)`` from a cache file.

    The file is a .npy array with a trailer of little-endian uint32: a CRC-32 for each image, one of the list of
    ``broken`` rows, and one of the header and of the trailer before it.

    Raises:
        UserError: the file is incomplete or damaged.
    """
    try:
        images = np.load(file, mmap_mode='r', allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # NumPy raises many kinds of errors for damaged headers
        raise UserError(f'image cache {file} cannot be read: {getattr(error, "strerror", None) or error}') from None
    is_memory_map = isinstance(images, np.memmap) and images.flags.c_contiguous
    if not (is_memory_map and images.shape == shape and images.dtype == np.uint8):
        raise UserError(f'image cache {file} is damaged')
    offset, end = images.offset, images.offset + images.nbytes
    header, trailer, size = bytearray(offset), np.empty(shape[0] + 2, '<u4'), reader.status().st_size
    if size == end:
        raise UserError(f'image cache {file} has no checksums, because an older version wrote it')
    is_complete = (size == end + trailer.nbytes and reader.read_into(header, 0) == offset
                   and reader.read_into(trailer, end) == trailer.nbytes)
    if not (is_complete and trailer[-1] == zlib.crc32(trailer[:-1], zlib.crc32(header))
            and trailer[-2] == rows_checksum(broken)):
        raise UserError(f'image cache {file} is damaged')
    return offset, trailer[:-2].copy()


def rows_checksum(rows):
    return zlib.crc32(json.dumps(rows).encode())


def broken_rows_file(file):
    """The path of the list of rows whose images could not be read. The file exists only if there are any."""
    return file.removesuffix('.npy') + '.broken.json'


def read_broken_rows(file, count):
    if not os.path.exists(broken_rows_file(file)):
        return []
    rows = read_json(broken_rows_file(file))
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < count for row in rows):
        raise UserError(f'{broken_rows_file(file)} is damaged')
    return rows


def open_image_cache(folder, name, paths, root, img_size, workers=1, skip_broken=False, interpolation='bilinear'):
    """Open the :class:`ImageCache` ``<folder>/<name>_<H>x<W>_<key>.npy``. If it is missing or damaged, write it first.

    The key depends on the images' names, sizes and times, so changed images get a new file.

    Args:
        folder: the folder of the cache; it is created if necessary.
        name: the start of the file's name: the dataset and the split.
        paths: the images' paths; each image is stored once.
        root: the folder of the images. The key contains the paths below it.
        img_size: (H, W) in pixels.
        workers: the number of threads that decode images.
        skip_broken: whether images that cannot be read are recorded, and raise only at indexing, instead of raising
            now.
        interpolation: the interpolation with which images are resized.

    Raises:
        UserError: an image cannot be read, the disk is too small, or the folder cannot be written.
    """
    remove_abandoned(folder)
    paths = sorted(set(paths))
    interpolation_mark = '' if interpolation == 'bilinear' else f'{interpolation}_'
    prefix = os.path.join(folder, f'{name}_{interpolation_mark}{img_size[0]}x{img_size[1]}')
    file = f'{prefix}_{cache_key(paths, root, img_size, interpolation)}.npy'
    outdated = sorted(set(glob.glob(f'{glob.escape(prefix)}_*.npy')) - {file})
    if outdated:
        logger.warning('the images have changed since %s was made (%s), or an older version made it; unless another '
                       'copy of the dataset uses it, it can be deleted', ', '.join(outdated),
                       format_bytes(sum(map(os.path.getsize, outdated))))
    cache = open_existing_cache(file, paths, img_size, skip_broken, interpolation)
    if cache is None:
        write_cache(file, paths, img_size, workers, skip_broken, interpolation)
        cache = ImageCache(file, paths, img_size, interpolation)
    return cache


def cache_key(paths, root, img_size, interpolation='bilinear'):
    """16 hexadecimal digits that identify the images and how they are resized."""
    images = [(relative_path(path, root), *size_and_time(path)) for path in paths]
    interpolations = [] if interpolation == 'bilinear' else [interpolation]
    content = json.dumps([VERSION, READER_VERSION, *img_size, *interpolations, images])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def size_and_time(path):
    try:
        status = os.stat(path)
    except OSError:  # a broken image: its reader reports the error
        return 0, 0
    return status.st_size, status.st_mtime_ns


def open_existing_cache(file, paths, img_size, skip_broken, interpolation='bilinear'):
    """Open the cache of an existing file; None if the file must be written."""
    if not os.path.exists(file):
        return None
    try:
        cache = ImageCache(file, paths, img_size, interpolation)
    except UserError as error:
        logger.warning('%s; it is written again', error)
        return None
    if cache.broken and not skip_broken:
        for path in sorted(cache.broken):
            read_image(path)   # raises the error that a run without a cache raises
        logger.warning('image cache %s lacks images that can be read now; it is written again', file)
        return None
    logger.info('image cache %s is used: %s', file, describe_contents(paths, img_size))
    if cache.broken:
        logger.warning('%d images could not be read when it was made; they are left out', len(cache.broken))
    return cache


def write_cache(file, paths, img_size, workers, skip_broken, interpolation='bilinear'):
    """Write a cache file atomically."""
    logger.info('image cache %s: %s', file, describe_contents(paths, img_size))
    folder, start = os.path.dirname(file), time.perf_counter()
    try:
        os.makedirs(folder, exist_ok=True)
        check_disk_space(folder, images_size(paths, img_size))
        with temporary_sibling(file) as temporary:   # another process can also write this cache
            broken = write_images(temporary, paths, img_size, workers, skip_broken, interpolation)
            if broken:
                # The list is written first, so that a file with empty rows never exists without it.
                with atomic_write(broken_rows_file(file)) as record:
                    json.dump(broken, record)
            os.replace(temporary, file)
        if not broken and os.path.exists(broken_rows_file(file)):
            os.remove(broken_rows_file(file))
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise UserError(f'cannot write the image cache into {folder}: {error.strerror or error}; '
                        'choose another folder with --image_cache <folder>') from None
    seconds = time.perf_counter() - start
    logger.info('image cache written in %.1f s, %.0f images a second', seconds, len(paths) / seconds)


def write_images(file, paths, img_size, workers, skip_broken, interpolation='bilinear'):
    """Write the images and their checksums into a new file, and wait until they are on the disk.

    Returns:
        The rows of images that cannot be read, a list.
    """
    images = np.lib.format.open_memmap(file, 'w+', np.uint8, (len(paths), 3, *img_size))
    trailer, end = np.zeros(len(paths) + 2, '<u4'), images.offset + images.nbytes
    if hasattr(os, 'posix_fallocate'):  # raises if the disk is full; a write to the memory map would kill the process
        with open(file, 'r+b') as opened:
            os.posix_fallocate(opened.fileno(), 0, end + trailer.nbytes)
    resize = build_resize(img_size, interpolation)

    def write_row(row):
        """Write an image; returns whether it could be read."""
        try:
            image = load_resized(paths[row], resize)
        except UserError as error:
            if not skip_broken:
                raise
            logger.warning('left out: %s', error)
            return False
        images[row], trailer[row] = image, zlib.crc32(image)
        return True

    pool = ThreadPoolExecutor(max(1, workers))  # decoding and resizing release Python's global interpreter lock
    try:
        rows = range(len(paths))
        bar = tqdm(pool.map(write_row, rows), total=len(paths), unit='image', desc='image cache', disable=None)
        broken = [row for row, is_readable in enumerate(bar) if not is_readable]
    finally:
        pool.shutdown(cancel_futures=True)
    images.flush()
    with open(file, 'r+b') as opened:
        header = opened.read(images.offset)
        trailer[-2] = rows_checksum(broken)
        trailer[-1] = zlib.crc32(trailer[:-1], zlib.crc32(header))
        opened.seek(end)
        opened.write(trailer.tobytes())
        opened.flush()
        os.fsync(opened.fileno())
    return broken


def load_resized(path, resize):
    """Decode and resize an image file: uint8 [3, H, W], as a cache holds it."""
    return np.ascontiguousarray(np.asarray(resize(read_image(path))).transpose(2, 0, 1))


def check_disk_space(folder, size):
    free = shutil.disk_usage(folder).free
    if size + RESERVED_BYTES > free:
        raise UserError(f'the image cache needs {format_bytes(size)} and {format_bytes(RESERVED_BYTES)} to spare, and '
                        f'{folder} has {format_bytes(free)}: choose another folder with --image_cache <folder>')


def images_size(paths, img_size):
    """The size of the resized images in bytes."""
    return len(paths) * 3 * img_size[0] * img_size[1]


def describe_contents(paths, img_size):
    return f'{len(paths):,} images of {img_size[0]}x{img_size[1]}, {format_bytes(images_size(paths, img_size))}'


def format_bytes(size):
    """Format bytes as ``5.0 GB`` or ``12.3 MB``."""
    return f'{size / 1e9:.1f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'

"""Reading and writing files, with errors that say which file and why."""
import contextlib
import errno
import json
import logging
import os
import stat

import yaml
from easydict import EasyDict
from PIL import UnidentifiedImageError

from utils import options
from utils.errors import UserError, write_error_reason
from utils.file_lock import try_lock
from utils.images import describe_unknown_format, open_image, to_rgb
from utils.temporary import temporary_sibling

logger = logging.getLogger('Pedestal.files')

MOST_PIXELS = 50_000_000        # of an image: 150 MB once it is decoded
MOST_JSON = 2 * 1024 ** 3       # bytes
DEEPEST_JSON = 100              # lists and mappings inside of each other


def refuse_irregular(path, most=None):
    """Raise :class:`UserError` for a pipe or a device, which may never end, and for a file of more than ``most`` bytes. One that is not
    there passes: whoever opens it says so."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise UserError(f'{path} is not a regular file (but a pipe, a socket or a device)')
    if most is not None and status.st_size > most:
        raise UserError(f'{path} has {status.st_size:,} bytes; at most {most:,} are read')


def read_image(path, notes=None):
    """Read an image file as a fully decoded RGB ``PIL.Image``, its pixels as :mod:`utils.images` says.

    Args:
        notes: a list that takes what had to be converted, a phrase each.

    Raises:
        UserError: the file is missing, truncated, enormous or no image, or does not say what its pixels mean.
    """
    refuse_irregular(path)
    try:
        with open_image(path) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:   # a few bytes can claim any size
                raise ValueError(f'it has {width}x{height} pixels, and at most {MOST_PIXELS:,} are decoded')
            return to_rgb(image, notes)
    except FileNotFoundError:
        raise UserError(f'no image {path}') from None
    except UnidentifiedImageError:
        raise UserError(describe_unknown_format(path)) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make PIL's decoders raise nearly anything
        raise UserError(f'image {path} cannot be read: {getattr(error, "strerror", None) or error}') from None


def read_json(path):
    """A JSON file's content. Missing, not JSON, or with a key twice in one mapping: :class:`UserError`."""
    refuse_irregular(path, MOST_JSON)
    try:
        with open(path, encoding='utf-8') as file:
            return parse_json(file.read())
    except FileNotFoundError:
        raise UserError(f'no file {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None


def parse_json(text):
    """Parse JSON text or bytes. All JSON that a file brings is parsed here.

    Raises:
        ValueError: it is not JSON, has a key twice in one mapping, or is nested more than 100 deep. Python's own parser raises
            ``RecursionError`` for that, or lets it pass to code that then raises it.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    try:
        content = json.loads(text, object_pairs_hook=without_duplicates)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [content]
    for _ in range(DEEPEST_JSON):
        level = [child for value in level if type(value) in CONTAINERS for child in (value.values() if type(value) is dict else value)
                 if type(child) in CONTAINERS]
        if not level:
            return content
    raise ValueError(TOO_DEEP)


CONTAINERS = {list, dict}
TOO_DEEP = f'it has lists or mappings nested more than {DEEPEST_JSON} deep'


def without_duplicates(pairs):
    """A mapping of JSON. Python would keep the last of equal keys, in silence."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'a mapping has the key {next(key for key in keys if keys.count(key) > 1)!r} more than once')
    return mapping


@contextlib.contextmanager
def atomic_write(path, mode='w'):
    """``with atomic_write(path) as file:`` writes the file whole or not at all.

    The content goes into a temporary file next to ``path``, which takes the place of ``path`` once it is on the disk. Each writer has
    its own (:func:`utils.temporary.temporary_sibling`), so that of two the last one wins and no reader sees half a file. If anything
    fails, the temporary file is removed and ``path`` stays as it was. ``mode``: 'w' (UTF-8) or 'wb'.

    Raises:
        UserError: the folder is not writable, or its disk is full.

    >>> with atomic_write('figures.txt') as file:
    ...     _ = file.write('Rank-1 73.38')
    >>> open('figures.txt').read()
    'Rank-1 73.38'
    """
    path = os.fspath(path)
    try:
        with temporary_sibling(path) as temporary:
            with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error    # torch.save's own error hides the disk's
        if isinstance(cause, OSError):
            raise write_error(path, cause) from None
        raise


def write_error(path, error):
    """The :class:`UserError` for a file that cannot be written; it says that the old content stays if there is any."""
    kept = '; what was there is kept' if os.path.exists(path) else ''
    return UserError(f'cannot write {path}: {error.strerror or error}{kept}')


@contextlib.contextmanager
def report_write_errors(folder, advice):
    """``with report_write_errors('out', 'choose another --out'):`` turns the errors of a full or unwritable disk into a
    :class:`UserError` that names ``folder``, also if a library wraps them or :func:`atomic_write` names a temporary folder."""
    try:
        yield
    except Exception as error:
        reason = write_error_reason(error) or (error.strerror or str(error) if isinstance(error, OSError) else None)
        if reason is None:
            raise
        raise UserError(f'cannot write {folder}: {reason}; {advice}') from None


class RandomReader:
    """Reads a file at any offset; processes and threads may share one.

    It needs no memory map. If another program cuts the file, a read is short, whereas a map would end the process (SIGBUS). If
    another file takes the name, this one stays readable. A pipe or a device raises :class:`UserError`.
    """

    def __init__(self, path):
        refuse_irregular(path)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0))

    def read_into(self, buffer, offset):
        """Fill a writable buffer from ``offset`` on; returns the number of bytes read."""
        if hasattr(os, 'preadv'):
            return os.preadv(self.descriptor, [buffer], offset)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        view = memoryview(buffer).cast('B')
        content = os.read(self.descriptor, len(view))
        view[:len(content)] = content
        return len(content)

    def status(self):
        """The ``os.stat_result`` of the file."""
        return os.fstat(self.descriptor)

    def __del__(self):
        if hasattr(self, 'descriptor'):     # not if os.open failed
            os.close(self.descriptor)


@contextlib.contextmanager
def lock_folder(folder, advice):
    """``with lock_folder(folder, 'what to do'):`` keeps other programs out that ask so, too: they get a :class:`UserError`.

    The system takes the lock (of ``<folder>/.lock``) back when the process ends, by whatever way; processes that it started do not
    hold it. Where the file system knows no locks, there is none.
    """
    try:
        file = open(os.path.join(folder, '.lock'), 'ab')
    except OSError as error:
        raise UserError(f'cannot write into {folder}: {error.strerror or error}') from None
    with file:
        if not try_lock(file):
            raise UserError(f'another program is at work in {folder}: {advice}')
        yield


def walk_folders(folder):
    """``os.walk`` that logs the folders that cannot be listed, which Python's skips in silence."""
    def warn(error):
        logger.warning('skipped: folder %s cannot be read: %s', error.filename, error.strerror or error)
    return os.walk(folder, onerror=warn)


def save_train_configs(path, args):
    """Write the options as ``configs.yaml`` into the folder ``path``."""
    with atomic_write(os.path.join(path, 'configs.yaml')) as file:
        yaml.safe_dump(options.as_dict(args), file, default_flow_style=None, sort_keys=True)


def load_train_configs(path):
    """A run's ``configs.yaml``, ours or a released one's, as options: ``args.lr`` and ``args['lr']``.

    Names that an older one lacks get what its code meant. Names that Pedestal does not have stay, for code that reads them.
    """
    known = vars(options.run_options(path))
    return EasyDict({**{name: value for name, value in options.read_yaml(path).items() if name not in known}, **known})

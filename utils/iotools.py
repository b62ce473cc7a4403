"""Read and write files, with errors that name the file and the reason."""
import contextlib
import errno
import json
import logging
import os
import re
import stat

from PIL import UnidentifiedImageError

from utils.compat import load_train_configs  # noqa: F401 (for IRRA's scripts)
from utils.errors import UserError, describe_type, is_out_of_files, write_error_reason
from utils.file_lock import try_lock
from utils.images import describe_unknown_format, open_image, to_rgb
from utils.option_declarations import build_parser
from utils.recipes import format_options, options_without_effect
from utils.run_config import Options, as_dict
from utils.temporary import temporary_sibling

logger = logging.getLogger('Pedestal.files')

MAX_PIXELS = 50_000_000         # per image: 150 MB after decoding
MAX_JSON_BYTES = 2 * 1024 ** 3
MAX_JSON_DEPTH = 100            # of nested lists and mappings
JSON_BLOCK = 2 ** 22            # characters of a JSON list that are read at a time
MAX_ITEM_LENGTH = 2 * JSON_BLOCK    # characters of one item of such a list
JSON_SEPARATOR = re.compile(r'\s*([\[,\]])\s*')


def check_regular_file(path, max_bytes=None):
    """Check that a path is a regular file or a folder. A missing file is no error here.

    Raises:
        UserError: the path is a pipe or a device, which may never end, or a file of more than ``max_bytes`` bytes.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise UserError(f'{path} is not a regular file (but a pipe, a socket or a device)')
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(f'{path} has {status.st_size:,} bytes; at most {max_bytes:,} are read')


def read_image(path, notes=None):
    """Read an image file as a fully decoded RGB ``PIL.Image``, by the rules of :mod:`utils.images`.

    Args:
        path: the file.
        notes: a list to which a phrase is added for each conversion.

    Raises:
        UserError: the file is missing, truncated, too large or no image, or its pixels have no defined meaning.
        OSError: too many files are open. This is no property of the image, so nobody may skip it.
    """
    check_regular_file(path)
    try:
        with open_image(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:   # a few bytes can claim any size
                raise ValueError(f'it has {width}x{height} pixels, and at most {MAX_PIXELS:,} are decoded')
            return to_rgb(image, notes)
    except FileNotFoundError:
        raise UserError(f'no image {path}') from None
    except UnidentifiedImageError:
        raise UserError(describe_unknown_format(path)) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make PIL's decoders raise nearly anything
        if is_out_of_files(error):
            raise
        raise UserError(f'image {path} cannot be read: {getattr(error, "strerror", None) or error}') from None


def read_json(path):
    """Read a JSON file.

    Raises:
        UserError: the file is missing, is not JSON, or has a key twice in one mapping.
    """
    check_regular_file(path, MAX_JSON_BYTES)
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
    """Parse JSON text or bytes. All JSON from files is parsed here.

    Raises:
        ValueError: it is not JSON, has a key twice in one mapping, or is nested more than 100 deep. Python's own parser
            raises ``RecursionError`` for deep nesting, or returns it to code that then raises one.

    Example:
        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
    """
    try:
        content = json.loads(text, object_pairs_hook=build_mapping)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [content] if type(content) in CONTAINERS else []
    for _ in range(MAX_JSON_DEPTH):
        children = [child for value in level for child in (value.values() if type(value) is dict else value)]
        level = [child for child in children if type(child) in CONTAINERS]
        if not level:
            return content
    raise ValueError(TOO_DEEP)


def iterate_json_list(path):
    """Yield the items of a JSON file's list one after the other, so that memory holds one block of the file.

    The file may be larger than one that :func:`read_json` reads. An item must be a mapping or a list.

    Raises:
        UserError: the file is missing, is no such list, or an item has a key twice.
    """
    check_regular_file(path)
    try:
        with open(path, encoding='utf-8') as file:
            yield from iterate_items(file)
    except FileNotFoundError:
        raise UserError(f'no file {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not a JSON list of mappings: {error}') from None


def iterate_items(file):
    """Yield the items of the JSON list in a text file. Raises ValueError if it is none."""
    decoder = json.JSONDecoder(object_pairs_hook=build_mapping)
    text, position, expected = '', 0, '['
    while True:
        try:
            separator = JSON_SEPARATOR.match(text, position)
            if not separator or separator[1] not in expected:
                raise ValueError(f"there is no {' or '.join(expected)} after an item")
            if separator[1] == '[' and text.startswith(']', separator.end()):    # the list is empty
                separator = JSON_SEPARATOR.match(text, separator.end())
            if separator[1] == ']':
                break
            item, end = decoder.raw_decode(text, separator.end())
            if type(item) not in CONTAINERS:
                raise ValueError(f'it holds {describe_type(item)}')
        except ValueError:      # the rest of the item may be in the next block
            block = file.read(JSON_BLOCK)
            if not block or len(text) - position > MAX_ITEM_LENGTH:
                raise
            text, position = text[position:] + block, 0
            continue
        yield item
        position, expected = end, ',]'
    if text[separator.end():].strip() or any(block.strip() for block in iter(lambda: file.read(JSON_BLOCK), '')):
        raise ValueError('the list is not all that it holds')


CONTAINERS = {list, dict}
TOO_DEEP = f'it has lists or mappings nested more than {MAX_JSON_DEPTH} deep'


def build_mapping(pairs):
    """Build a mapping from its JSON pairs. Python would silently use the last of several equal keys."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'a mapping has the key {next(key for key in keys if keys.count(key) > 1)!r} more than once')
    return mapping


@contextlib.contextmanager
def atomic_write(path, mode='w'):
    """Write a file completely or not at all.

    The content is written to a temporary file next to ``path``, which then replaces ``path``. Each writer has its own
    temporary file (:func:`utils.temporary.temporary_sibling`). With two writers the last one wins, and no reader sees
    half a file. After an error, the temporary file is removed and ``path`` is unchanged.

    Args:
        path: the file.
        mode: 'w' (UTF-8) or 'wb'.

    Raises:
        UserError: the folder is not writable, or its disk is full.

    Example:
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
        # torch.save raises its own error after an error of the disk
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise write_error(path, cause) from None
        raise


def write_error(path, error):
    """Return the :class:`UserError` for a file that cannot be written. It says if an old file is unchanged."""
    note = '; the old file is unchanged' if os.path.exists(path) else ''
    return UserError(f'cannot write {path}: {error.strerror or error}{note}')


@contextlib.contextmanager
def report_write_errors(folder, advice):
    """Raise a :class:`UserError` that names ``folder`` if the disk is full or unwritable.

    A library may wrap the error, and :func:`atomic_write` may name a temporary folder.

    Args:
        folder: the folder that the user chose.
        advice: what to do, such as 'choose another --out'.
    """
    try:
        yield
    except Exception as error:
        reason = write_error_reason(error) or (error.strerror or str(error) if isinstance(error, OSError) else None)
        if reason is None:
            raise
        raise UserError(f'cannot write {folder}: {reason}; {advice}') from None


class RandomReader:
    """Reads a file at any offset; processes and threads may share one.

    It uses no memory map. If another program truncates the file, a read is short; a map would end the process (SIGBUS).
    The file stays readable if another file replaces it.

    Raises:
        UserError: the path is a pipe or a device.
    """

    def __init__(self, path):
        check_regular_file(path)
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0))

    def read_into(self, buffer, offset):
        """Fill a writable buffer, starting at ``offset``, and return the number of bytes read."""
        if hasattr(os, 'preadv'):
            return os.preadv(self.descriptor, [buffer], offset)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        view = memoryview(buffer).cast('B')
        content = os.read(self.descriptor, len(view))
        view[:len(content)] = content
        return len(content)

    def status(self):
        """Return the ``os.stat_result`` of the file."""
        return os.fstat(self.descriptor)

    def __del__(self):
        if hasattr(self, 'descriptor'):     # it is missing if os.open failed
            os.close(self.descriptor)


@contextlib.contextmanager
def lock_folder(folder, advice):
    """Lock a folder for the duration of the ``with`` block.

    The system releases the lock (of ``<folder>/.lock``) when the process ends, however it ends. Child processes do not
    hold it. On a file system without locks this does nothing.

    Args:
        folder: the folder.
        advice: what to do if another program holds the lock.

    Raises:
        UserError: another program holds the lock, or the folder is not writable.
    """
    try:
        file = open(os.path.join(folder, '.lock'), 'ab')
    except OSError as error:
        raise UserError(f'cannot write into {folder}: {error.strerror or error}') from None
    with file:
        if not try_lock(file):
            raise UserError(f'another program is working in {folder}: {advice}')
        yield


def walk_folders(folder):
    """Walk a folder like ``os.walk``, but log the folders that cannot be listed."""
    def warn(error):
        if is_out_of_files(error):
            raise error
        logger.warning('skipped: folder %s cannot be read: %s', error.filename, error.strerror or error)
    return os.walk(folder, onerror=warn)


def save_train_configs(path, args):
    """Write the options as ``configs.yaml`` into the folder ``path``: those that the run reads come first."""
    unread = options_without_effect(args, build_parser()) if isinstance(args, Options) else set()
    with atomic_write(os.path.join(path, 'configs.yaml')) as file:
        file.write(format_options(as_dict(args), unread))

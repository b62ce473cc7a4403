"""Files of weights: read without running code, compared with their checksums, and plain tensors or refused."""
import hashlib
import logging
import os
import re
import zipfile
import zlib

import torch

from utils.errors import UserError
from utils.plain_data import SAFE_GLOBALS

logger = logging.getLogger('Pedestal.checkpoint')

# What weights and optimizer states are made of.
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32,
         torch.int64)


def read_torch_file(path, hashed=False):
    """What ``torch.save`` wrote, on the CPU, by ``weights_only`` loading; with ``hashed``, (that, the sha256 of the very file that
    was read). Missing, damaged, truncated, foreign or code-carrying files raise :class:`UserError`."""
    if not os.path.isfile(path):
        raise UserError(f'there is no file {path}')
    try:
        with open(path, 'rb') as file:
            if file.read(4) == b'PK\3\4':
                check_archive(file, path)
            else:
                logger.info('%s is of an old format without checksums: damage to its numbers would not be seen', path)
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                content = torch.load(path, map_location='cpu', weights_only=True)
            digest = sha256_of_open(file) if hashed else None
            same = state_of(os.fstat(file.fileno())) == state_of(os.stat(path))
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception as error:  # unpickling arbitrary bytes raises nearly anything
        if re.search('unsupported (global|class)|trying to (call|instantiate)', str(error), re.IGNORECASE):
            named = re.search(r'GLOBAL (\S+)', str(error))
            which = f' ({named[1]})' if named else ''
            raise UserError(f'{path} holds pickled objects other than tensors and plain data{which}, which can carry code, '
                            'and is not loaded: save its state dict alone') from None
        raise UserError(f'{path} is truncated or no file of weights') from None
    if not same:  # a run replaced it meanwhile
        return read_torch_file(path, hashed)
    return (content, digest) if hashed else content


def state_of(status):
    """What tells one file from another that took its place, or from itself before it was written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_archive(file, path):
    """Compare every part of a zip archive, an open file, with the CRC-32 that was written with it: PyTorch's reader does not, and a
    flipped bit loads as another weight. Takes about 0.35 s of one core a GB. Raises :class:`UserError`."""
    buffer = memoryview(bytearray(1 << 20))
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > 100 * os.fstat(file.fileno()).st_size:
            raise UserError(f'{path} unpacks to more than a hundred times its size and is not read')
        if not any(entry.CRC for entry in entries):
            logger.warning('%s was written without checksums: damage to it would not be seen', path)
            return
        for entry in entries:
            if entry.compress_type == zipfile.ZIP_STORED:
                damaged = crc_of_stored(archive, entry, file, buffer) != entry.CRC
            else:
                with archive.open(entry) as part:
                    damaged = not drained(part, buffer)
            if damaged:
                raise UserError(f'{path} is damaged: its part {entry.filename} has not the checksum that it was written with; '
                                'copy or download it again')


def crc_of_stored(archive, entry, file, buffer):
    """The CRC-32 of an entry that is not compressed: in large pieces, twice as fast as zipfile's own reading."""
    archive.open(entry).close()  # compares the name before the data with the one in the directory
    file.seek(entry.header_offset + 26)
    before = int.from_bytes(file.read(2), 'little') + int.from_bytes(file.read(2), 'little')  # lengths of the name and of what follows it
    file.seek(entry.header_offset + 30 + before)
    crc, left = 0, entry.file_size
    while left and (read := file.readinto(buffer[:min(left, len(buffer))])):
        crc, left = zlib.crc32(buffer[:read], crc), left - read
    return None if left else crc


def drained(part, buffer):
    """Read an entry to its end, where zipfile compares its checksum; False if that is wrong."""
    try:
        while part.readinto(buffer):
            pass
        return True
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False


def check_weights(weights, source):
    """Raise :class:`UserError` unless ``weights`` is a dict of names and plain tensors: what else PyTorch can save (sparse, quantized,
    complex, expanded tensors, ones without values) crashes where it is used, or trains something else."""
    if not isinstance(weights, dict):
        raise UserError(f'{source} holds no state dict but a {type(weights).__name__}')
    no_names = [repr(name) for name in weights if not isinstance(name, str)]
    if no_names:
        raise UserError(f'{source} holds no state dict: the names {some(no_names)} are no text')
    wrong = [f'{name} is {what}' for name, what in ((name, why_not_plain(value)) for name, value in weights.items()) if what]
    if wrong:
        raise UserError(f'{source} holds entries that are no weights: {some(wrong)}')


def why_not_plain(value):
    """What a value is, in words, if it is anything but a dense tensor of real numbers, all of them in memory; else None."""
    if not isinstance(value, torch.Tensor):
        return f'a {type(value).__name__}'
    if value.is_meta:
        return 'a tensor without values (meta)'
    if value.layout != torch.strided or value.is_nested:
        return f"a {'nested' if value.is_nested else 'sparse'} tensor"
    if value.is_quantized:
        return 'a quantized tensor'
    if value.dtype not in PLAIN:
        return f'a tensor of {plain_name(value.dtype)}'
    if value.numel() > 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())):
        return f'a tensor of shape {list(value.shape)} expanded from fewer numbers'
    return None


def plain_name(dtype):
    return str(dtype).removeprefix('torch.')


def sha256_of(path):
    """A file's checksum, in hexadecimal."""
    with open(path, 'rb') as file:
        return sha256_of_open(file)


def sha256_of_open(file):
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def some(names, most=5):
    """The first few names and how many more there are."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')

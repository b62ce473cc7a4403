"""Files of weights: read without running code, verified against their checksums, and limited to plain tensors."""
import hashlib
import logging
import os
import re
import zipfile
import zlib

import torch

from utils.errors import UserError, abbreviate, describe_type
from utils.plain_data import SAFE_GLOBALS

logger = logging.getLogger('Pedestal.checkpoint')

# The types of weights and optimizer states.
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
                torch.int16, torch.int32, torch.int64)


def read_torch_file(path, with_sha256=False):
    """Read a file of ``torch.save`` to the CPU, with ``weights_only`` loading.

    Args:
        path: the file.
        with_sha256: whether to compute the checksum of the same open file.

    Returns:
        The content, or ``(content, sha256)``.

    Raises:
        UserError: the file is missing, damaged, truncated, of another kind, or holds code.
    """
    if not os.path.isfile(path):
        raise UserError(f'there is no file {path}')
    try:
        with open(path, 'rb') as file:
            if file.read(4) == b'PK\3\4':
                check_archive(file, path)
            else:
                logger.info('%s has an old format without checksums: damage to its numbers is not detected', path)
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                content = torch.load(path, map_location='cpu', weights_only=True)
            sha256 = compute_sha256_of_open(file) if with_sha256 else None
            is_unchanged = file_version(os.fstat(file.fileno())) == file_version(os.stat(path))
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception as error:  # unpickling arbitrary bytes raises nearly anything
        if re.search('unsupported (global|class)|trying to (call|instantiate)', str(error), re.IGNORECASE):
            match = re.search(r'GLOBAL (\S+)', str(error))
            name = f' ({match[1]})' if match else ''
            raise UserError(f'{path} holds pickled objects other than tensors and plain data{name}, which can carry '
                            'code, and is not loaded: save its state dict alone') from None
        if path.endswith(('.yaml', '.yml')):
            raise UserError(f'{path} is a config and no file of weights: give a checkpoint, such as the best.pth of a '
                            'run') from None
        raise UserError(f'{path} is truncated or no file of weights') from None
    if not is_unchanged:  # a run replaced it meanwhile
        return read_torch_file(path, with_sha256)
    return (content, sha256) if with_sha256 else content


def file_version(status):
    """Return values of an ``os.stat_result`` that change if the file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_archive(file, path):
    """Verify the CRC-32 of each entry of a zip archive. PyTorch's reader does not, and loads a flipped bit as a weight.

    It takes about 0.35 s of one core per GB.

    Args:
        file: the open archive.
        path: its name, for messages.

    Raises:
        UserError: an entry is damaged, or the archive unpacks to more than 100 times its size.
    """
    buffer = memoryview(bytearray(1 << 20))
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > 100 * os.fstat(file.fileno()).st_size:
            raise UserError(f'{path} unpacks to more than a hundred times its size and is not read')
        if not any(entry.CRC for entry in entries):
            logger.warning('%s was written without checksums: damage to it is not detected', path)
            return
        for entry in entries:
            if entry.compress_type == zipfile.ZIP_STORED:
                is_damaged = compute_stored_crc(archive, entry, file, buffer) != entry.CRC
            else:
                with archive.open(entry) as content:
                    is_damaged = not has_valid_crc(content, buffer)
            if is_damaged:
                raise UserError(f'{path} is damaged: its part {entry.filename} does not have the checksum that it was '
                                'written with; copy or download it again')


def compute_stored_crc(archive, entry, file, buffer):
    """Compute the CRC-32 of an uncompressed entry, None if it is truncated.

    It reads large blocks, which is twice as fast as zipfile.
    """
    archive.open(entry).close()  # compares the name before the data with the one in the directory
    file.seek(entry.header_offset + 26)
    name_length, extra_length = (int.from_bytes(file.read(2), 'little') for _ in range(2))
    file.seek(entry.header_offset + 30 + name_length + extra_length)
    crc, remaining = 0, entry.file_size
    while remaining and (count := file.readinto(buffer[:min(remaining, len(buffer))])):
        crc, remaining = zlib.crc32(buffer[:count], crc), remaining - count
    return None if remaining else crc


def has_valid_crc(content, buffer):
    """Whether an open entry can be read to its end, where zipfile compares its checksum."""
    try:
        while content.readinto(buffer):
            pass
        return True
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False


def check_weights(weights, source):
    """Check that ``weights`` is a dict of names and plain tensors.

    PyTorch can also save sparse, quantized, complex and expanded tensors, and tensors without values. They crash the
    code that uses them, or train a different model.

    Raises:
        UserError: it is anything else; the message names ``source``.
    """
    if not isinstance(weights, dict):
        raise UserError(f'{source} holds no state dict but {describe_type(weights)}')
    invalid_names = [repr(name) for name in weights if not isinstance(name, str)]
    if invalid_names:
        raise UserError(f'{source} holds no state dict: the names {abbreviate(invalid_names)} are no text')
    kinds = {name: describe_if_not_plain(value) for name, value in weights.items()}
    invalid = [f'{name} is {kind}' for name, kind in kinds.items() if kind]
    if invalid:
        raise UserError(f'{source} holds entries that are no weights: {abbreviate(invalid)}')


def describe_if_not_plain(value):
    """Return None for a dense tensor of real numbers that are all in memory; otherwise describe the value."""
    if not isinstance(value, torch.Tensor):
        return describe_type(value)
    if value.is_meta:
        return 'a tensor without values (meta)'
    if value.layout != torch.strided or value.is_nested:
        return f"a {'nested' if value.is_nested else 'sparse'} tensor"
    if value.is_quantized:
        return 'a quantized tensor'
    if value.dtype not in PLAIN_DTYPES:
        return f'a tensor of {dtype_name(value.dtype)}'
    if value.numel() > 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())):
        return f'a tensor of shape {list(value.shape)} expanded from fewer numbers'
    return None


def dtype_name(dtype):
    """Return the name of a dtype without 'torch.'."""
    return str(dtype).removeprefix('torch.')


def compute_sha256(path):
    """Compute a file's checksum, in hexadecimal."""
    with open(path, 'rb') as file:
        return compute_sha256_of_open(file)


def compute_sha256_of_open(file):
    """Compute the checksum of an open binary file, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()

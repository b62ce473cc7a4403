"""Safe replacements for classes of plain data in checkpoints: options, paths, and NumPy's numbers and arrays.

``torch.load(..., weights_only=True)`` calls these instead of the libraries' own code. A replacement checks its
arguments, and calls nothing that the file names. :data:`SAFE_GLOBALS` is the allow-list.
"""
import math
import pickle
import re
from collections import OrderedDict

import numpy as np

DTYPE_CODE = re.compile(r'b1|[iu][1248]|f[248]|c8|c16')


def refuse(what):
    # PyTorch's errors also say "unsupported class"; read_torch_file looks for these words
    raise pickle.UnpicklingError(f'unsupported class: {what}')


class PlainNamespace(dict):
    """Replaces argparse.Namespace and types.SimpleNamespace: attributes become entries."""

    def __setstate__(self, state):
        if type(state) is not dict:
            refuse('a namespace without attributes')
        self.update(state)


class NumberType:
    """Replaces numpy.dtype: numbers of one size, no objects, no fields."""

    def __init__(self, code='', align=False, copy=False):
        if not isinstance(code, str) or not DTYPE_CODE.fullmatch(code):
            refuse(f'numpy.dtype of {code!r:.40}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        """``state``: (version, byte order, subarray, names, fields, item size, alignment, flags, ...)."""
        is_plain = type(state) is tuple and len(state) >= 5 and state[2:5] == (None, None, None)
        if not is_plain or state[1] not in ('<', '>', '|', '='):
            refuse('a numpy.dtype that holds more than numbers')
        self.dtype = self.dtype.newbyteorder(state[1])


def read_numbers(number_type, data, count):
    """Read ``count`` numbers; the bytes must be exactly as many."""
    is_valid = isinstance(number_type, NumberType) and isinstance(data, bytes)
    if not is_valid or len(data) != count * number_type.dtype.itemsize:
        refuse('a numpy array whose bytes do not fit its type')
    return np.frombuffer(data, dtype=number_type.dtype)


def read_scalar(number_type, data):
    """Replaces NumPy's scalars: return a Python number."""
    return read_numbers(number_type, data, 1)[0].item()


class NumberArray(np.ndarray):
    """Replaces numpy.ndarray."""

    def __new__(cls):
        return super().__new__(cls, (0,), dtype=np.uint8)

    def __setstate__(self, state):
        """``state``: (version, shape, dtype, whether the order is column-major, bytes)."""
        if type(state) is not tuple or len(state) != 5:
            refuse('a numpy array of another form')
        _, shape, number_type, is_column_major, data = state
        if type(shape) is not tuple or not all(type(size) is int and size >= 0 for size in shape):
            refuse('a numpy array without a shape')
        read_numbers(number_type, data, math.prod(shape))
        super().__setstate__((1, shape, number_type.dtype, bool(is_column_major), data))


def start_array(kind, shape, code):
    """Replaces the function that creates NumPy's empty array, which :meth:`NumberArray.__setstate__` fills."""
    return NumberArray()


def empty_bytes(*values):
    """Replaces ``bytes``: pickle protocol 2 calls it for the bytes of an empty array."""
    return refuse('bytes of other values') if values else b''


def join_path(*parts):
    """Replaces pathlib's paths: return their text."""
    if not all(isinstance(part, str) for part in parts):
        refuse('a path that is no text')
    return '/'.join(parts).replace('//', '/')


MAPPINGS = ('easydict.EasyDict', 'yacs.config.CfgNode', 'addict.addict.Dict')
NAMESPACES = ('argparse.Namespace', 'types.SimpleNamespace')
PATHS = tuple(f'{module}.{name}' for module in ('pathlib', 'pathlib._local')
              for name in ('PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath'))
NUMPY = tuple(f'numpy.{core}.multiarray' for core in ('core', '_core'))    # NumPy 1 and NumPy 2

# [(replacement, name in the file)]
SAFE_GLOBALS = [
    *((OrderedDict, name) for name in MAPPINGS),
    *((PlainNamespace, name) for name in NAMESPACES),
    *((join_path, name) for name in PATHS),
    *((read_scalar, f'{module}.scalar') for module in NUMPY),
    *((start_array, f'{module}._reconstruct') for module in NUMPY),
    (NumberType, 'numpy.dtype'), (NumberArray, 'numpy.ndarray'), (empty_bytes, 'builtins.bytes'),
]

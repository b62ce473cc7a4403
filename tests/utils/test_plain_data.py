"""Checkpoints with plain data next to tensors, by an allow-list. Other objects are refused, and none is executed."""
import argparse
import functools
import os
import pathlib
import types

import numpy as np
import pytest
import torch
from easydict import EasyDict

from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.weight_files import read_torch_file

try:
    from numpy._core import multiarray
except ImportError:    # NumPy 1
    from numpy.core import multiarray


def written(content, path, core=None):
    """Write ``content``.

    ``core`` is the name of NumPy's module in the other NumPy; the format is then the old one without an archive.
    """
    torch.save(content, path, _use_new_zipfile_serialization=core is None)
    if core is not None:
        saved = path.read_bytes()
        assert multiarray.__name__.encode() in saved
        path.write_bytes(saved.replace(multiarray.__name__.encode(), f'numpy.{core}.multiarray'.encode()))
    return str(path)


@pytest.mark.parametrize('core', [None, 'core', '_core'])
def test_a_tbps_clip_checkpoint_of_the_released_training(tmp_path, core):
    """Its learning rates are from a NumPy array, and its options are an EasyDict."""
    rates = np.linspace(1e-6, 1e-4, 5)
    groups = [{'params': [0, 1], 'lr': rates[2], 'weight_decay': 0.02, 'betas': (0.9, 0.98)}]
    content = {'model': {'visual.proj': torch.ones(2, 2), 'encode_text.ln_final.bias': torch.zeros(2)},
               'optimizer': {'state': {0: {'step': torch.tensor(3.)}}, 'param_groups': groups},
               'config': EasyDict({'schedule': {'lr': 1e-4}, 'model': {'ss': [1, 0.4]}})}
    checkpoint = read_checkpoint(written(content, tmp_path / 'checkpoint_best.pth', core))
    rate = checkpoint['optimizer']['param_groups'][0]['lr']
    assert type(rate) is float and rate == rates[2]
    assert checkpoint['config'] == content['config'] and checkpoint['optimizer']['state'][0]['step'] == 3


@pytest.mark.parametrize('value, expected', [
    (np.float64(1e-4), 1e-4), (np.float32(0.5), 0.5), (np.int64(-3), -3), (np.uint8(200), 200), (np.bool_(True), True),
    (np.array(1.5, dtype='>f8')[()], 1.5),
    (argparse.Namespace(lr=np.float64(2.0), names=['a']), {'lr': 2.0, 'names': ['a']}),
    (argparse.Namespace(), {}), (types.SimpleNamespace(model=EasyDict(width=4)), {'model': {'width': 4}}),
    (pathlib.PurePosixPath('/data/CUHK-PEDES'), '/data/CUHK-PEDES')])
def test_numbers_namespaces_and_paths_are_plain(tmp_path, value, expected):
    read = read_torch_file(written({'options': [value]}, tmp_path / 'best.pth'))['options'][0]
    assert read == expected and isinstance(read, type(expected))


@pytest.mark.parametrize('array', [
    np.arange(6.).reshape(2, 3), np.asfortranarray(np.arange(6, dtype='>i4').reshape(2, 3)), np.zeros((0, 3)),
    np.array(2.5),
    np.random.RandomState(1).get_state()[1], np.array([True, False])])
def test_arrays_are_plain(tmp_path, array):
    read = read_torch_file(written({'state': ('MT19937', array, 3)}, tmp_path / 'best.pth'))['state'][1]
    assert isinstance(read, np.ndarray) and read.dtype.newbyteorder('=') == array.dtype.newbyteorder('=')
    assert read.shape == array.shape and np.array_equal(read, array)


class Pickled:
    """Is pickled as the given call and state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def mkdir():
    return Pickled(os.mkdir, ('carried_code_ran',))


def array_state(shape=(1,), kind=None, data=b'\0' * 8, version=1, state=None):
    state = (version, shape, np.dtype('f8') if kind is None else kind, False, data) if state is None else state
    return Pickled(multiarray._reconstruct, (np.ndarray, (0,), b'b'), state)


HOSTILE = {
    'a call': mkdir(),
    'a call in options': EasyDict({'a': [mkdir()]}),
    'a call in a namespace': argparse.Namespace(a=mkdir()),
    'a call as an attribute': argparse.Namespace(__setstate__=os.mkdir),
    'a function by name': {'a': os.mkdir},
    'a partial': functools.partial(os.mkdir, 'carried_code_ran'),
    'eval': Pickled(eval, ("__import__('os').mkdir('carried_code_ran')",)),
    'a namespace made of a call': Pickled(argparse.Namespace, (), mkdir()),
    'objects in an array': np.array([mkdir()], dtype=object),
    'objects as a type': Pickled(multiarray.scalar, (np.dtype('O'), mkdir())),
    'an object as a number': Pickled(multiarray.scalar, (np.dtype('O'), b'\1' * 8)),
    'fields': np.zeros(1, dtype=[('a', 'f8'), ('b', 'O')])[0],
    'a type that turns into fields': Pickled(multiarray.scalar, (
        Pickled(np.dtype, ('f8', False, True), (3, '<', None, ('a',), {'a': (np.dtype('i8'), 0)}, 8, 8, 63)),
        b'\1' * 8)),
    'a type from its attribute': Pickled(multiarray.scalar,
                                         (Pickled(np.dtype, (argparse.Namespace(dtype='O'),)), b'\1' * 8)),
    'too few bytes': Pickled(multiarray.scalar, (np.dtype('f8'), b'\1')),
    'bytes of nothing': Pickled(multiarray.scalar, (np.dtype('f8'), 'text')),
    'no type': Pickled(multiarray.scalar, ('f8', b'\1' * 8)),
    'an array above its bytes': array_state(shape=(10 ** 9,)),
    'an array of a negative size': array_state(shape=(-1, -1)),
    'an array whose shape is no tuple': array_state(shape=[1]),
    'an array of truths for sizes': array_state(shape=(True,)),
    'an array whose type is text': array_state(kind='O'),
    'an array without a state': array_state(state=(1, 2)),
    'an array made elsewhere': Pickled(np.ndarray, ((10 ** 9,), 'O')),
    'another function of NumPy': Pickled(np.load, ('carried_code_ran',)),
    'bytes of a size': Pickled(bytes, (10 ** 12,)),
    'a path of a call': Pickled(pathlib.PurePosixPath, (mkdir(),)),
    'a path of numbers': Pickled(pathlib.PurePosixPath, (1, 2)),
}


@pytest.mark.parametrize('kind', HOSTILE)
@pytest.mark.parametrize('archive', [True, False])
def test_what_is_no_plain_data_is_refused_and_not_executed(tmp_path, monkeypatch, kind, archive):
    monkeypatch.chdir(tmp_path)
    content = {'model': {'weight': torch.zeros(1)}, 'more': HOSTILE[kind]}
    torch.save(content, 'best.pth', _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError) as caught:
        read_checkpoint('best.pth')
    assert str(caught.value).startswith('best.pth ') and '\n' not in str(caught.value)
    assert 'can carry code' in str(caught.value) or 'truncated or no file of weights' in str(caught.value)
    assert sorted(os.listdir()) == ['best.pth']


def test_the_refusal_names_what_it_refuses(tmp_path):
    with pytest.raises(UserError, match=r'tensors and plain data \(collections.deque\), which can carry code.*'
                       'save its state dict alone'):
        import collections
        read_checkpoint(written({'model': {}, 'more': collections.deque([1])}, tmp_path / 'best.pth'))

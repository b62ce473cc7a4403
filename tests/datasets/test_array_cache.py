"""Memory-mapped arrays next to an annotation."""
import logging
import os
import pickle

import numpy as np
import pytest
import torch

from datasets import array_cache, text
from datasets.array_cache import Samples, Strings, compute_key, load_or_make_arrays

TEXTS = ['a man', '', 'Grüße 👋', 'x' * 1000]


def test_strings():
    strings = Strings.from_texts(TEXTS)
    for other in (strings, pickle.loads(pickle.dumps(strings))):
        assert list(other) == TEXTS and other[-1] == TEXTS[-1] and other[1:3] == TEXTS[1:3] and len(other) == 4
    with pytest.raises(IndexError):
        strings[4]
    assert len({Strings.from_texts(texts).digest()
                for texts in (TEXTS, TEXTS[:3], ['a', ' man'], ['a ', 'man'], [])}) == 5
    assert list(Strings.from_texts([])) == []


def test_samples_are_tuples():
    samples = Samples(np.array([3, 3]), np.array([0, 0]), np.array([0, 0]), Strings.from_texts(['a/1.jpg']),
                      Strings.from_texts(['one', 'two']), 'imgs')
    assert list(samples) == [(3, 0, os.path.join('imgs', 'a/1.jpg'), 'one'),
                             (3, 0, os.path.join('imgs', 'a/1.jpg'), 'two')]
    assert samples[:1] == [samples[0]] and [type(value) for value in samples[0]] == [int, int, str, str]


@pytest.fixture
def made():
    return []


def arrays(folder, made, key='k1', values=(1, 2, 3)):
    def make():
        made.append(key)
        return {'numbers': np.array(values), 'others': np.zeros((2, 0), np.uint8)}
    return load_or_make_arrays(str(folder), 'tokens', key, make)


def test_made_once_and_mapped(tmp_path, made):
    first, second = arrays(tmp_path, made), arrays(tmp_path, made)
    assert made == ['k1'] and isinstance(second['numbers'], np.memmap)
    assert first['numbers'].tolist() == second['numbers'].tolist() == [1, 2, 3] and second['others'].shape == (2, 0)


def test_another_key_makes_another_and_says_so(tmp_path, made, caplog):
    arrays(tmp_path, made)
    with caplog.at_level(logging.WARNING, 'Pedestal.dataset'):
        assert arrays(tmp_path, made, 'k2', (4,))['numbers'].tolist() == [4]
    assert made == ['k1', 'k2'] and 'tokens_k1' in caplog.text


@pytest.mark.parametrize('damage', [lambda path: os.truncate(path / 'numbers.npy', 20),
                                    lambda path: (path / 'numbers.npy').unlink(),
                                    lambda path: (path / 'whole.json').write_text('{'),
                                    lambda path: (path / 'whole.json').unlink()])
def test_what_is_not_whole_is_made_anew(tmp_path, made, damage):
    arrays(tmp_path, made)
    damage(tmp_path / 'tokens_k1')
    assert arrays(tmp_path, made)['numbers'].tolist() == [1, 2, 3] and made == ['k1', 'k1']
    arrays(tmp_path, made)
    assert made == ['k1', 'k1']


def test_a_stopped_write_leaves_nothing(tmp_path, made, monkeypatch):
    monkeypatch.setattr(np, 'save', lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        arrays(tmp_path, made)
    assert os.listdir(tmp_path) == []


def test_a_killed_write_is_cleared_away(tmp_path, made):
    left = tmp_path / 'tokens_k0.0123abcd.pedestal.tmp'
    left.mkdir()
    os.utime(left, ns=(1, 1))
    arrays(tmp_path, made)
    assert sorted(os.listdir(tmp_path)) == ['tokens_k1']


def test_arrays_in_the_making_are_left_alone_whatever_their_host_and_process_are_called(tmp_path, made, monkeypatch):
    save, written = np.save, []

    def start_another(path, *settings, **more):
        if not written:
            (making,) = tmp_path.glob('*.tmp')
            os.utime(making, ns=(1, 1))
            written.append(making)
            arrays(tmp_path, made, 'k2')
        return save(path, *settings, **more)
    monkeypatch.setattr(np, 'save', start_another)
    arrays(tmp_path, made)
    assert sorted(os.listdir(tmp_path)) == ['tokens_k1', 'tokens_k2']


def test_of_two_writers_the_first_one_stays(tmp_path, made, monkeypatch, caplog):
    rename = os.rename

    def after_another(old, new):
        monkeypatch.setattr(os, 'rename', rename)
        arrays(tmp_path, made)
        rename(old, new)
    monkeypatch.setattr(os, 'rename', after_another)
    assert arrays(tmp_path, made)['numbers'].tolist() == [1, 2, 3] and not caplog.text
    assert made == ['k1', 'k1'] and os.listdir(tmp_path) == ['tokens_k1']


def flip(path, offset, bit=1):
    content = bytearray(path.read_bytes())
    content[offset] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize('name', ['numbers.npy', 'others.npy', 'whole.json'])
def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path, made, caplog, name):
    arrays(tmp_path, made)
    size = os.path.getsize(tmp_path / 'tokens_k1' / name)
    for number, offset in enumerate(sorted({0, size // 3, size // 2, size - 1}), start=1):
        flip(tmp_path / 'tokens_k1' / name, offset, 1 << offset % 8)
        assert arrays(tmp_path, made)['numbers'].tolist() == [1, 2, 3]
        assert len(made) == 1 + number and caplog.text.count('is damaged') == number    # one line each time
        assert arrays(tmp_path, made) and len(made) == 1 + number


@pytest.mark.parametrize('content', ['{}', '[]', '{"numbers": 152}', '{"arrays": {}, "crc32": 0}',
                                     '[' * 990 + ']' * 990, '\udcff'])
def test_sizes_that_are_no_checksums(tmp_path, made, content):
    arrays(tmp_path, made)
    (tmp_path / 'tokens_k1' / 'whole.json').write_text(content, errors='surrogateescape')
    assert arrays(tmp_path, made)['numbers'].tolist() == [1, 2, 3] and made == ['k1', 'k1']


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
@pytest.mark.parametrize('name', ['numbers.npy', 'whole.json'])
def test_a_pipe_in_the_place_of_an_array(tmp_path, made, name):
    arrays(tmp_path, made)
    os.remove(tmp_path / 'tokens_k1' / name)
    os.mkfifo(tmp_path / 'tokens_k1' / name)
    assert arrays(tmp_path, made)['numbers'].tolist() == [1, 2, 3] and made == ['k1', 'k1']


def test_a_folder_that_cannot_be_written(tmp_path, made, caplog):
    (tmp_path / 'file').touch()
    with caplog.at_level(logging.WARNING, 'Pedestal.dataset'):
        for _ in range(2):
            assert arrays(tmp_path / 'file' / 'cache', made)['numbers'].tolist() == [1, 2, 3]
    assert made == ['k1', 'k1'] and 'computed at every start' in caplog.text


def test_tokens_of_many_captions_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 3)
    made, tokenize = [], text.tokenize

    def recording_tokenize(caption, *settings):
        made.append(caption)
        return tokenize(caption, *settings)
    monkeypatch.setattr(text, 'tokenize', recording_tokenize)
    captions, folder = ['a man', 'a woman in red', 'somebody'], str(tmp_path / 'token_cache')
    plain = text.tokenize_all(captions, 20)
    for _ in range(2):
        cached = text.tokenize_all(captions, 20, folder=folder)
        assert torch.equal(plain, cached) and cached.dtype == torch.int32
    assert len(made) == 6 and torch.equal(pickle.loads(pickle.dumps(cached)), plain)
    text.tokenize_all(captions[:2], 20, folder=folder)                 # few captions are not cached
    assert len(os.listdir(folder)) == 1
    assert text.tokenize_all(captions, 10, folder=folder).shape == (3, 10)
    assert text.tokenize_all(['another', *captions[1:]], 20, folder=folder)[0].tolist() != plain[0].tolist()
    assert len(os.listdir(folder)) == 3


def test_a_flipped_bit_never_gives_another_token(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 3)
    captions, folder = ['a man', 'a woman in red', 'somebody'], tmp_path / 'token_cache'
    plain = text.tokenize_all(captions, 20, folder=str(folder)).clone()      # it is a map of the file
    flip(next(folder.glob('*/tokens.npy')), 128 + 4)
    assert torch.equal(text.tokenize_all(captions, 20, folder=str(folder)), plain)
    assert caplog.text.count('is damaged (tokens.npy has another checksum) and is written again') == 1


def test_digests():
    assert compute_key(1, 'a') == compute_key(1, 'a') != compute_key('1', 'a') and len(compute_key()) == 16

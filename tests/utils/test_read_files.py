import contextlib
import errno
import io
import json
import multiprocessing
import os
import stat
import struct
import time
import zlib

import pytest
import torch
from PIL import Image

from datasets.array_cache import read_cached_arrays
from datasets.table_files import read_rows
from model.backbones.open_clip import read_description
from processor.image_index import read_lines
from processor.progress import MetricsLog
from processor.results import read_metrics_log
from utils.checkpoint import Checkpointer
from utils.errors import UserError
from utils.iotools import atomic_write, iterate_json_list, parse_json, read_image, read_json
from utils.safe_yaml import read_yaml


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / 'a.jpg'
    Image.effect_noise((60, 80), 60).convert('RGB').save(path)
    return path


# -- read_image --------------------------------------------------------------------------------------------------------

def test_reads_rgb(jpeg):
    image = read_image(jpeg)
    assert image.mode == 'RGB' and image.size == (60, 80)
    assert image.tobytes() == Image.open(jpeg).tobytes()


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'LA'])
def test_converts_other_modes(tmp_path, mode):
    path = tmp_path / 'a.png'
    Image.new('RGB', (4, 3), (250, 250, 250)).convert(mode).save(path)
    assert read_image(path).mode == 'RGB'


def test_missing_image(tmp_path):
    with pytest.raises(UserError, match=f'^no image {tmp_path}/none.jpg$'):
        read_image(f'{tmp_path}/none.jpg')


@pytest.mark.parametrize('read', [read_image, read_json])
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / 'pipe')
    os.symlink('/dev/zero', tmp_path / 'endless')
    for name in ('pipe', 'endless'):
        with pytest.raises(UserError, match=f'^{tmp_path}/{name} is not a regular file'):
            read(tmp_path / name)


def test_an_image_that_claims_an_enormous_size(tmp_path):
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    path = tmp_path / 'a.png'
    for side in (8000, 100_000):
        header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
        path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b''))
                         + chunk(b'IEND', b''))
        with pytest.raises(UserError, match=f'^image {path} cannot be read: .*(pixels|limit)'):
            read_image(path)


def test_a_json_file_that_is_too_large(tmp_path):
    path = tmp_path / 'a.json'
    with open(path, 'wb') as file:
        file.truncate(3 * 1024 ** 3)   # needs no disk space
    with pytest.raises(UserError, match=f'^{path} has 3,221,225,472 bytes; at most'):
        read_json(path)


@pytest.mark.parametrize('text', ['{"a": 1, "b": 2, "a": 1}', '[{"x": {"a": 1, "a": 2}}]'])
def test_equal_keys_in_one_mapping(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UserError, match="a.json is not JSON: a mapping has the key 'a' more than once$"):
        read_json(tmp_path / 'a.json')


@pytest.mark.parametrize('depth', [101, 900, 5000, 200_000])
@pytest.mark.parametrize('opening, closing', [('[', ']'), ('{"a":', '}'), ('[{"a": [0, ', ']}]')])
def test_json_that_is_nested_too_deep(tmp_path, opening, closing, depth):
    (tmp_path / 'a.json').write_text(f'{opening * depth}1{closing * depth}')
    with pytest.raises(UserError, match='a.json is not JSON: it has lists or mappings nested more than 100 deep$'):
        read_json(tmp_path / 'a.json')


def test_json_that_is_nested_as_deep_as_may_be():
    assert json.dumps(parse_json('[' * 99 + '{}' + ']' * 99)) == '[' * 99 + '{}' + ']' * 99


def photos_at(path):
    read_lines(path)


def history_at(path):
    assert read_metrics_log(os.path.dirname(path)) == []       # like a truncated line


def journal_at(path):
    MetricsLog(os.path.dirname(path)).close()


@pytest.mark.parametrize('read, name', [
    (photos_at, 'index.jsonl'), (read_description, 'open_clip.json'), (history_at, 'metrics.jsonl'),
    (journal_at, 'metrics.jsonl'),
    (read_rows, 'people.jsonl'), (read_rows, 'people.json'), (read_cached_arrays, 'whole.json'),
    (read_yaml, 'configs.yaml')])
@pytest.mark.parametrize('depth', [980, 100_000])
def test_no_reader_of_our_own_files_raises_on_deep_nesting(tmp_path, read, name, depth):
    """A RecursionError would print a traceback."""
    (tmp_path / name).write_text(f'{{"a": {"[" * depth}{"]" * depth}}}\n')
    with contextlib.suppress(UserError):
        read(str(tmp_path if read is read_cached_arrays else tmp_path / name))


def test_not_an_image(tmp_path):
    path = tmp_path / 'a.jpg'
    for content in (b'', b'this is text', b'\xff\xd8\xff'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=str(path)):
            read_image(path)


def test_folder_in_the_place_of_an_image(tmp_path):
    with pytest.raises(UserError, match='cannot be read: Is a directory'):
        read_image(tmp_path)


@pytest.mark.parametrize('format', ['jpeg', 'png', 'bmp', 'gif', 'webp', 'tiff'])
def test_truncated_images_of_any_format_are_named(tmp_path, format):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert('RGB').save(buffer, format)
    path = tmp_path / 'cut'
    path.write_bytes(buffer.getvalue()[:len(buffer.getvalue()) // 2])
    with pytest.raises(UserError, match=str(path)) as caught:
        read_image(path)
    assert '\n' not in str(caught.value)


def test_images_with_flipped_bytes_read_or_are_named(jpeg):
    content = jpeg.read_bytes()
    for place in range(0, len(content), 97):
        jpeg.write_bytes(content[:place] + bytes([content[place] ^ 0xff]) + content[place + 1:])
        try:
            assert read_image(jpeg).mode == 'RGB'
        except UserError as error:
            assert str(jpeg) in str(error)


# -- read_json ---------------------------------------------------------------------------------------------------------

def test_read_json(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('[1, {"a": "ü"}]', encoding='utf-8')
    assert read_json(path) == [1, {'a': 'ü'}]


@pytest.mark.parametrize('content', [b'', b'[1, 2', b'{a: 1}', b'\xff\xfe\x00'])
def test_not_json(tmp_path, content):
    path = tmp_path / 'a.json'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'^{path} is not JSON: '):
        read_json(path)


def test_json_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=f'^no file {tmp_path}/a.json$'):
        read_json(f'{tmp_path}/a.json')
    with pytest.raises(UserError, match=f'^{tmp_path} cannot be read: Is a directory$'):
        read_json(tmp_path)


# -- atomic_write ------------------------------------------------------------------------------------------------------

def test_writes_text_and_bytes(tmp_path):
    with atomic_write(tmp_path / 'a.txt') as file:
        file.write('ü')
    with atomic_write(str(tmp_path / 'b'), 'wb') as file:
        file.write(b'\0')
    assert (tmp_path / 'a.txt').read_bytes() == 'ü'.encode() and (tmp_path / 'b').read_bytes() == b'\0'
    assert sorted(os.listdir(tmp_path)) == ['a.txt', 'b']


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / 'a'
    path.write_text('old')
    with atomic_write(path) as file:
        file.write('new')
        file.flush()
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'


def test_the_content_is_on_the_disk_before_the_old_file_goes(tmp_path, monkeypatch):
    events, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda number: events.append(('fsync', os.fstat(number).st_size)) or sync(number))
    monkeypatch.setattr(os, 'replace', lambda old, new: events.append('replace') or replace(old, new))
    with atomic_write(tmp_path / 'a') as file:
        file.write('new')
    assert events == [('fsync', 3), 'replace']


@pytest.mark.parametrize('error', [ValueError('x'), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / 'a'
    path.write_text('old')
    with pytest.raises(type(error)):
        with atomic_write(path) as file:
            file.write('new')
            raise error
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a']


def test_full_disk_says_that_the_old_file_is_kept(tmp_path):
    path = tmp_path / 'a'
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=f'^cannot write {path}: No space left on device$'):
        with atomic_write(path):
            raise full
    path.write_text('old')
    with pytest.raises(UserError, match=f'^cannot write {path}: No space left on device; the old file is unchanged$'):
        with atomic_write(path):
            raise full
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize('there', [False, True])
def test_a_checkpoint_that_cannot_be_written_says_what_is_kept(tmp_path, monkeypatch, there):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(content, file):
        try:
            raise full
        except OSError:
            raise RuntimeError('unexpected pos')     # noqa: B904  as in torch's writer
    monkeypatch.setattr(torch, 'save', save)
    if there:
        (tmp_path / 'last.pth').write_text('old')
    with pytest.raises(UserError, match='No space left on device' + ('; the old file is unchanged$' if there else '$')):
        Checkpointer(torch.nn.Linear(1, 1), save_dir=str(tmp_path), save_to_disk=True).save('last', epoch=1)
    assert os.listdir(tmp_path) == ['last.pth'] * there


def test_a_disk_that_is_full_at_the_last_moment(tmp_path, file_size_limit):
    path = tmp_path / 'a'
    path.write_text('old')
    file_size_limit(10)
    with pytest.raises(UserError, match=f'^cannot write {path}: File too large; the old file is unchanged$'):
        with atomic_write(path) as file:
            file.write('new' * 10)                     # fails once it is flushed
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a']


def test_a_full_disk_that_torch_meets(tmp_path, file_size_limit):
    file_size_limit(1000)
    with pytest.raises(UserError, match=f'^cannot write {tmp_path}/a.pth: File too large$'):
        Checkpointer(torch.nn.Linear(100, 100), save_dir=str(tmp_path), save_to_disk=True).save('a')
    assert os.listdir(tmp_path) == []


def test_folder_that_is_not_there_or_no_folder(tmp_path):
    with pytest.raises(UserError, match='cannot write .*: No such file or directory$'):
        with atomic_write(tmp_path / 'none' / 'a'):
            raise AssertionError('not reached')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write .*: Not a directory$'):
        with atomic_write(tmp_path / 'file' / 'a'):
            raise AssertionError('not reached')


@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid() == 0, reason='root may write anywhere')
def test_folder_that_is_not_writable(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match='Permission denied'):
            with atomic_write(tmp_path / 'a'):
                raise AssertionError('not reached')
    finally:
        tmp_path.chmod(0o700)


def test_what_a_killed_process_left_is_removed(tmp_path):
    left, fresh = tmp_path / 'a.0123abcd.pedestal.tmp', tmp_path / 'b.0123abcd.pedestal.tmp'
    other = tmp_path / 'a.0123abcd.tmp'
    for path in (left, fresh, other):
        path.write_text('half a file')
    for path in (left, other):
        os.utime(path, ns=(1, 1))
    with atomic_write(tmp_path / 'a') as file:
        file.write('new')
    # another process may be about to lock the new file
    assert sorted(os.listdir(tmp_path)) == ['a', other.name, fresh.name]


def test_a_writer_that_is_slow_keeps_its_temporary_file(tmp_path):
    with atomic_write(tmp_path / 'a') as file:
        file.write('first')
        name, = os.listdir(tmp_path)
        os.utime(tmp_path / name, ns=(1, 1))
        with atomic_write(tmp_path / 'a') as other:
            other.write('second')
        assert (tmp_path / 'a').read_text() == 'second' and (tmp_path / name).exists()
    assert (tmp_path / 'a').read_text() == 'first' and os.listdir(tmp_path) == ['a']


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Without locks the age decides: one day."""
    monkeypatch.setattr('utils.temporary.is_locked', lambda path: None)
    for name, age in (('hour.0123abcd.pedestal.tmp', 3600), ('days.0123abcd.pedestal.tmp', 90000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with atomic_write(tmp_path / 'a'):
        pass
    assert sorted(os.listdir(tmp_path)) == ['a', 'hour.0123abcd.pedestal.tmp']


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_two_writers_and_a_reader(tmp_path):
    """Every write succeeds, and a reader sees the complete file of one writer."""
    path, context = tmp_path / 'a', multiprocessing.get_context('fork')
    contents, failures = ('a' * 50_000, 'b' * 80_000), context.Queue()
    path.write_text(contents[0])

    def write(content):
        failed = 0
        for _ in range(60):
            try:
                with atomic_write(path) as file:
                    file.write(content)
            except UserError:
                failed += 1
        failures.put(failed)
    writers = [context.Process(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in contents
    assert [failures.get(timeout=30) for _ in writers] == [0, 0]
    assert path.read_text() in contents and os.listdir(tmp_path) == ['a']


@pytest.mark.skipif(os.name != 'posix', reason='needs a umask')
def test_a_written_file_has_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / 'a'):
            pass
        assert stat.S_IMODE(os.stat(tmp_path / 'a').st_mode) == 0o640
    finally:
        os.umask(before)


# -- iterate_json_list -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('block', [1, 7, 1000])
def test_the_items_of_a_json_list_whatever_the_size_of_a_block(tmp_path, monkeypatch, block):
    monkeypatch.setattr('utils.iotools.JSON_BLOCK', block)
    items = [{'a': 1}, {'b, ]': ['ü', {'c': '}'}]}, [2, [3]], {}]
    for indent in (None, 2):
        (tmp_path / 'a.json').write_text(f' {json.dumps(items, indent=indent)}\n', encoding='utf-8')
        assert list(iterate_json_list(tmp_path / 'a.json')) == items


@pytest.mark.parametrize('content, message', [
    ('{"a": 1}', r'there is no \['), ('[{"a": 1}', 'there is no , or ]'), ('[{"a": 1} {"b": 2}]', 'there is no , or ]'),
    ('[{"a": 1}, 3]', 'it holds an int'), ('[{"a": 1}] 4', 'the list is not all that it holds'),
    ('', r'there is no \['),
    ('[{"a": 1, "a": 2}]', "the key 'a' more than once"), ('[{"a": 1},]', 'Expecting value'),
    ('[{"a": "' + 100 * 'x', 'Unterminated string')])
def test_a_file_that_is_no_json_list(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr('utils.iotools.JSON_BLOCK', 5)
    monkeypatch.setattr('utils.iotools.MAX_ITEM_LENGTH', 50)
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(UserError, match=f'a.json is not a JSON list of mappings: .*{message}'):
        list(iterate_json_list(tmp_path / 'a.json'))


def test_a_json_list_that_cannot_be_read(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(UserError, match="is not a JSON list of mappings: 'utf-8' codec can't decode"):
        list(iterate_json_list(tmp_path / 'a.json'))
    for path, message in ((tmp_path / 'b.json', 'no file'), (tmp_path, 'cannot be read')):
        with pytest.raises(UserError, match=message):
            list(iterate_json_list(path))

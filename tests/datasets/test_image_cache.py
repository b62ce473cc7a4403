import errno
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

import datasets.image_cache
from datasets import build_dataloader
from datasets.image_cache import open_image_cache
from datasets.transforms import build_transforms
from tests.support import HANG_TIMEOUT, options
from utils.errors import UserError
from utils.iotools import read_image
from datasets.device_augmentation import augment_on_device

SIZE = (24, 8)


@pytest.fixture
def log(caplog):
    """A function that returns the log since its last call."""
    caplog.set_level(logging.INFO, 'Pedestal.dataset')

    def lines():
        text = caplog.text
        caplog.clear()
        return text
    return lines


@pytest.fixture
def images(tmp_path):
    """Paths of five noisy images below imgs/, of several shapes and kinds."""
    folder = tmp_path / 'imgs' / 'cam'
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for number, (height, width) in enumerate([(40, 16), (24, 8), (10, 30), (60, 21), (25, 9)]):
        image = Image.fromarray(rng.randint(0, 256, (height, width, 3), dtype=np.uint8))
        image.convert('L' if number == 3 else 'RGB').save(folder / f'{number}.png')
    return [str(folder / f'{number}.png') for number in (3, 0, 4, 1, 2)]


@pytest.fixture
def cache_of(images, tmp_path):
    """open_image_cache with these images and some arguments changed."""
    def open_with(**changes):
        settings = dict(folder=str(tmp_path / 'cache'), name='synthpedes_train', paths=images,
                        root=str(tmp_path / 'imgs'), img_size=SIZE,
                        workers=2)
        return open_image_cache(**{**settings, **changes})
    return open_with


def listing(tmp_path):
    return sorted(os.listdir(tmp_path / 'cache')) if (tmp_path / 'cache').exists() else []


def expected(path, size=SIZE):
    """uint8 [3, H, W]: the first step of the pipeline."""
    resize = build_transforms(size, is_train=False).transforms[0]
    assert isinstance(resize, T.Resize)
    return torch.from_numpy(np.array(resize(read_image(path)))).permute(2, 0, 1)


def holds(cache, paths):
    return all(torch.equal(cache[path], expected(path, cache.img_size)) for path in paths)


def spoil(path):
    """Make an image unreadable without a change of its size or time; returns a function that restores it."""
    with open(path, 'rb') as file:
        content = file.read()
    status = os.stat(path)

    def write(content):
        with open(path, 'wb') as file:
            file.write(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    write(bytes(len(content)))
    return lambda: write(content)


def no_reading(monkeypatch):
    def read(path):
        raise AssertionError(f'{path} was read')
    monkeypatch.setattr(datasets.image_cache, 'read_image', read)


# -- the cache ---------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings('error')
def test_images_are_the_pipelines_resized_ones(cache_of, images):
    cache = cache_of()
    for path in images:
        image = cache[path]
        assert image.dtype == torch.uint8 and torch.equal(image, expected(path))
        assert torch.equal(augment_on_device(image[None])[0], build_transforms(SIZE, is_train=False)(read_image(path)))
        image.zero_()   # a copy, which changes nothing
    assert holds(cache, images) and cache.img_size == SIZE


def test_one_file_with_each_image_once(cache_of, images, tmp_path, log):
    cache_of(paths=images + images[:2])
    name, = listing(tmp_path)
    assert name.startswith('synthpedes_train_24x8_') and name.endswith('.npy')
    assert len(name) == len('synthpedes_train_24x8_.npy') + 16
    content = np.load(tmp_path / 'cache' / name, allow_pickle=False)
    assert content.shape == (5, 3, 24, 8) and content.dtype == np.uint8
    assert all(np.array_equal(row, expected(path)) for row, path in zip(content, sorted(images)))
    assert f'image cache {tmp_path}/cache/{name}: 5 images of 24x8, 0.0 MB' in log()


def test_images_are_decoded_once(cache_of, images, tmp_path, monkeypatch, log):
    cache_of()
    log()
    content = [expected(path) for path in images]
    no_reading(monkeypatch)
    cache = cache_of()
    assert all(torch.equal(cache[path], image) for path, image in zip(images, content))
    assert f'image cache {cache.file} is used: 5 images of 24x8, 0.0 MB' in log()


def test_other_processes_get_the_files_name(images, cache_of):
    cache = cache_of(img_size=(256, 128))
    sent = pickle.dumps(cache)
    assert len(sent) < 3000
    assert holds(pickle.loads(sent), images)
    assert holds(cache, images)


def test_size_in_words(tmp_path, log, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: namedtuple('Usage', 'free')(5.2e9))
    with pytest.raises(UserError, match='^the image cache needs 5.0 GB and 250.0 MB to spare, '
                                        'and .*cache has 5.2 GB: choose another '
                                        'folder with --image_cache <folder>$'):
        open_image_cache(f'{tmp_path}/cache', 'CUHK-PEDES_train', [f'{tmp_path}/{n}.jpg' for n in range(34054)],
                   str(tmp_path), (384, 128))
    assert ': 34,054 images of 384x128, 5.0 GB' in log()
    assert listing(tmp_path) == []


# -- when it is written again ------------------------------------------------------------------------------------------

def touch(paths):
    os.utime(paths[0], ns=(1, 1))
    return paths


def replace(paths):
    status = os.stat(paths[0])
    Image.new('RGB', (100, 100), 'red').save(paths[0])
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))   # a new size is sufficient
    return paths


def rename(paths):
    other = paths[0].replace('3.png', '5.png')
    os.rename(paths[0], other)   # keeps size and time
    return [other] + paths[1:]


@pytest.mark.parametrize('change', [touch, replace, rename, lambda paths: paths[1:]])
def test_changed_images_are_noticed(cache_of, images, tmp_path, log, change):
    old = cache_of()
    assert 'changed since' not in log()
    paths = change(images)
    new = cache_of(paths=paths)
    assert new.file != old.file and holds(new, paths)
    assert len(listing(tmp_path)) == 2   # nothing is deleted without being asked
    assert f'the images have changed since {old.file} was made (0.0 MB)' in log()


def test_other_sizes_and_splits_are_kept_side_by_side(cache_of, images, tmp_path, log):
    for settings in (dict(), dict(img_size=(8, 24)), dict(name='synthpedes_test'), dict(img_size=[12, 8])):
        assert holds(cache_of(**settings), images)
    assert len(listing(tmp_path)) == 4 and 'changed since' not in log()


def test_a_dataset_that_moved_is_the_same(cache_of, images, tmp_path, monkeypatch):
    file = cache_of().file
    shutil.copytree(tmp_path / 'imgs', tmp_path / 'moved')   # keeps times
    no_reading(monkeypatch)
    moved = [path.replace('/imgs/', '/moved/') for path in images]
    cache = cache_of(paths=moved, root=str(tmp_path / 'moved'))
    assert cache.file == file and torch.equal(cache[moved[1]], expected(images[1]))


def cut(path):
    os.truncate(path, os.path.getsize(path) - 1)


def cut_short(path):
    os.truncate(path, 20)


def lengthen(path):
    with open(path, 'ab') as file:
        file.write(b'\0')


def empty(path):
    os.truncate(path, 0)


def saved(content, **settings):
    def damage(path):
        np.save(path, content, **settings)
    return damage


@pytest.mark.parametrize('damage', [
    cut, cut_short, lengthen, empty, saved(np.zeros((5, 3, 24, 8), np.int8)), saved(np.zeros((4, 3, 24, 8), np.uint8)),
    saved(np.zeros((5, 3, 24, 8), np.uint8, order='F')), saved(np.array([print] * 5, object), allow_pickle=True)])
def test_a_damaged_file_is_made_anew(cache_of, images, tmp_path, log, damage):
    file = cache_of().file
    damage(file)
    cache = cache_of()
    assert cache.file == file and holds(cache, images) and listing(tmp_path) == [os.path.basename(file)]
    text = log()
    assert f'image cache {file} ' in text and '; it is written again' in text


# -- nothing is left half made -----------------------------------------------------------------------------------------

def test_a_full_disk(cache_of, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'posix_fallocate', full, raising=False)
    with pytest.raises(UserError, match=f'^cannot write the image cache into {tmp_path}/cache: '
                                        'No space left on device; choose another '
                                        'folder with --image_cache <folder>$'):
        cache_of()
    assert listing(tmp_path) == []


def test_a_folder_that_cannot_be_made(cache_of, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=f'^cannot write the image cache into {tmp_path}/file/x: Not a directory; '
                                        'choose another folder'):
        cache_of(folder=f'{tmp_path}/file/x')


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interruption(cache_of, images, tmp_path, monkeypatch, error):
    def read(path):
        if path == sorted(images)[3]:
            raise error
        return read_image(path)
    with monkeypatch.context() as patch:
        patch.setattr(datasets.image_cache, 'read_image', read)
        with pytest.raises(error):
            cache_of()
    assert listing(tmp_path) == []
    assert holds(cache_of(), images)


def test_the_file_is_on_the_disk_before_it_gets_its_name(cache_of, monkeypatch):
    events, sync, move = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda number: events.append(os.fstat(number).st_size) or sync(number))
    monkeypatch.setattr(os, 'replace', lambda old, new: events.append(new) or move(old, new))
    cache = cache_of()
    assert events == [os.path.getsize(cache.file), cache.file]


LEFT = 'x.npy.0123abcd.pedestal.tmp'     # what a killed process leaves


@pytest.mark.parametrize('made_before', [False, True])
def test_what_killed_processes_left_is_removed(cache_of, tmp_path, made_before):
    if made_before:
        cache_of()
    folder, foreign = tmp_path / 'cache', ['notes.tmp', 'x.npy.elsewhere.7.tmp', 'new.npy.0123abcd.pedestal.tmp']
    folder.mkdir(exist_ok=True)
    for name in (LEFT, *foreign):
        (folder / name).write_text('half')
    for name in (LEFT, *foreign[:2]):
        os.utime(folder / name, ns=(1, 1))
    file = cache_of().file
    assert listing(tmp_path) == sorted([os.path.basename(file), *foreign])


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_an_unfinished_cache_of_another_host_or_process_is_not_touched(cache_of, images, tmp_path, monkeypatch):
    """Two containers with one hostname share a folder: neither sees the other's processes."""
    def start_another(path):
        monkeypatch.setattr(datasets.image_cache, 'read_image', read_image)
        (making, ) = (tmp_path / 'cache').glob('*.tmp')
        os.utime(making, ns=(1, 1))                                     # a slow disk: untouched for long
        assert holds(open_image_cache(str(tmp_path / 'cache'), 'other', images, str(tmp_path / 'imgs'), SIZE), images)
        assert making.exists()
        return read_image(path)
    monkeypatch.setattr(datasets.image_cache, 'read_image', start_another)
    assert holds(cache_of(workers=1), images) and len(listing(tmp_path)) == 2


# -- damage ------------------------------------------------------------------------------------------------------------

def flip(path, offset, bit=1):
    with open(path, 'r+b') as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = file.read(1)[0] ^ bit
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte]))


def content_of(path):
    with open(path, 'rb') as file:
        return file.read()


@pytest.mark.parametrize('offset, bit', [(128, 1), (128 + 2 * 576 + 70, 128), (128 + 5 * 576 - 1, 4)])
def test_a_flipped_bit_of_an_image_is_seen_and_repaired(cache_of, images, log, offset, bit):
    file = cache_of().file
    before = content_of(file)
    flip(file, offset, bit)
    cache = cache_of()
    sent = pickle.loads(pickle.dumps(cache))
    assert holds(sent, images) and content_of(file) == before
    flip(file, offset, bit)                                              # under a run
    assert holds(cache, images) and holds(cache, images) and content_of(file) == before
    damaged = sorted(images)[(offset - 128) // 576]
    warning = f'image cache {file} is damaged at {damaged}: damaged images are decoded from their files again'
    assert log().count(warning) == 2


@pytest.mark.parametrize('offset', [20, 127, -1, -7, -12, -28])
def test_a_flipped_bit_of_the_header_or_the_checksums_rewrites_the_file(cache_of, images, log, offset):
    file = cache_of().file
    before = content_of(file)
    flip(file, offset)
    assert holds(cache_of(), images) and content_of(file) == before
    assert log().count('it is written again') == 1


def test_a_file_without_checksums_is_made_anew(cache_of, images, log):
    file = cache_of().file
    os.truncate(file, 128 + 5 * 576)
    assert holds(cache_of(), images)
    assert f'image cache {file} has no checksums, because an older version wrote it; it is written again' in log()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_pipe_in_the_place_of_a_cache_is_not_waited_for(cache_of, images, log):
    file = cache_of().file
    os.remove(file)
    os.mkfifo(file)
    assert holds(cache_of(), images) and f'{file} is not a regular file' in log()


def test_a_folder_in_the_place_of_a_cache_is_one_sentence(cache_of):
    file = cache_of().file
    os.remove(file)
    os.mkdir(file)
    with pytest.raises(UserError, match='^cannot write the image cache into .*: Is a directory; choose another folder'):
        cache_of()


def test_a_damaged_image_that_cannot_be_made_again_is_refused(cache_of, images):
    cache = cache_of()
    flip(cache.file, 200)
    os.remove(sorted(images)[0])
    with pytest.raises(UserError, match=f'^image cache {cache.file} is damaged at .*0.png, which cannot be decoded '
                                        'again: no image .*0.png$'):
        cache[sorted(images)[0]]
    assert holds(cache, sorted(images)[1:])


def test_a_file_that_is_cut_or_replaced_under_a_run(cache_of, images, log):
    cache = cache_of()
    with open(f'{cache.file}.new', 'wb') as file:
        file.write(b'something else')
    before = content_of(cache.file)
    os.truncate(cache.file, 300)                                       # a memory map would end the process
    assert holds(cache, images) and os.path.getsize(cache.file) == 300
    with open(cache.file, 'wb') as file:
        file.write(before)
    os.replace(f'{cache.file}.new', cache.file)
    assert holds(cache, images) and content_of(cache.file) == b'something else'


def test_another_record_of_broken_images_is_seen(cache_of, images, log):
    spoil(images[2])
    file = cache_of(skip_broken=True).file
    with open(file.replace('.npy', '.broken.json'), 'w') as record:
        record.write('[3]')                                             # of the 4 that a flipped bit may make
    cache = cache_of(skip_broken=True)
    assert cache.broken == {images[2]} and holds(cache, [path for path in images if path != images[2]])
    assert 'is damaged; ' in log()


def test_a_batch_never_holds_damaged_pixels(args):
    plain = epoch(build_dataloader(args())[0])
    cache = build_dataloader(args(image_cache='auto'))[0].dataset.image_transform.image_cache
    for offset in range(128, os.path.getsize(cache.file) - 100, 2304):
        flip(cache.file, offset + 11, 64)
    cached = build_dataloader(args(image_cache='auto'))[0]
    for one, other in zip(plain, epoch(cached), strict=True):
        assert torch.equal(one['images'], augment_on_device(other['images'], other['augmentation_params']))


def test_two_processes_at_once(cache_of, images, tmp_path, monkeypatch):
    context = multiprocessing.get_context('fork')
    both, results = context.Barrier(2), context.Queue()

    def make():
        meet = threading.Lock()   # the first image that a process reads waits for the other process's first

        def read(path):
            if meet.acquire(blocking=False):
                both.wait(HANG_TIMEOUT)
            return read_image(path)
        monkeypatch.setattr(datasets.image_cache, 'read_image', read)
        results.put(holds(cache_of(), images))
    processes = [context.Process(target=make) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=HANG_TIMEOUT) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert len(listing(tmp_path)) == 1 and holds(cache_of(), images)


# -- broken images -----------------------------------------------------------------------------------------------------

def test_a_broken_image_is_named_and_leaves_nothing(cache_of, images, tmp_path):
    spoil(images[2])
    with pytest.raises(UserError, match=f'^{images[2]} is not an image$'):
        cache_of()
    assert listing(tmp_path) == []


def test_broken_images_may_be_left_out(cache_of, images, tmp_path, log):
    mend = spoil(images[2])
    os.remove(images[0])
    for cache in (cache_of(skip_broken=True), cache_of(skip_broken=True)):   # the first writes it, the second reads it
        assert holds(cache, [images[1], images[3], images[4]])
        for path in (images[0], images[2]):
            with pytest.raises(UserError, match=f'^image {path} could not be read when the image cache {cache.file} '
                                                'was made$'):
                cache[path]
    text = log()
    assert f'left out: {images[2]} is not an image' in text and f'left out: no image {images[0]}' in text
    assert '2 images could not be read when it was made; they are left out' in text
    record = tmp_path / 'cache' / os.path.basename(cache.file.replace('.npy', '.broken.json'))
    assert json.loads(record.read_text()) == [3, 4]
    with pytest.raises(UserError, match=f'^no image {images[0]}$'):   # the first of them
        cache_of()
    mend()
    cache = cache_of(paths=images[1:], skip_broken=True)
    assert not cache.broken and holds(cache, images[1:])


def test_images_that_can_be_read_again(cache_of, images, tmp_path, log):
    mend = spoil(images[2])
    file = cache_of(skip_broken=True).file
    assert len(listing(tmp_path)) == 2
    mend()
    cache = cache_of()
    assert cache.file == file and holds(cache, images) and len(listing(tmp_path)) == 1
    assert f'image cache {file} lacks images that can be read now; it is written again' in log()


@pytest.mark.parametrize('content', ['[9]', '[-1]', '{"2": 1}', '[2', '["2"]'])
def test_a_damaged_record_of_broken_images(cache_of, images, content, log):
    file = cache_of().file
    with open(file.replace('.npy', '.broken.json'), 'w') as record:
        record.write(content)
    assert holds(cache_of(), images) and 'broken.json is ' in log()


# -- loaders -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def args(make_dataset, tmp_path):
    """Options for a tiny dataset on disk."""
    make_dataset()

    def with_changes(**changes):
        settings = dict(root_dir=str(tmp_path), img_size=(48, 16), batch_size=6, test_batch_size=3, num_workers=0,
                        img_aug=True, loss_names='sdm+mlm', text_length=32)
        return options(**{**settings, **changes})
    return with_changes


def epoch(loader, number=1):
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def close(loader):
    if loader.num_workers:   # the garbage collector would wait 5 s for each
        loader._iterator._shutdown_workers()


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(8), raising=False)


@pytest.mark.parametrize('img_aug', [True, False])
@pytest.mark.parametrize('workers', [0, 2])
def test_training_batches_are_those_without_a_cache(args, img_aug, workers, many_cores):
    plain = build_dataloader(args(img_aug=img_aug))[0]
    cached = build_dataloader(args(img_aug=img_aug, num_workers=workers, image_cache='auto'))[0]
    for number in (1, 2):
        for one, other in zip(epoch(plain, number), epoch(cached, number), strict=True):
            assert other['images'].dtype == torch.uint8 and other['augmentation_params'].dtype == torch.int32
            assert set(other) == set(one) | {'augmentation_params'}
            assert torch.equal(augment_on_device(other['images'], other.pop('augmentation_params')), one.pop('images'))
            assert all(torch.equal(one[name], other[name]) for name in one)
    close(cached)


def test_each_sample_of_a_batch_has_its_own_view(args):
    batch, = epoch(build_dataloader(args(image_cache='auto', batch_size=16))[0])
    assert len(batch['augmentation_params'].unique(dim=0)) == 16
    assert len(batch['image_ids'].unique()) == 8   # also for the two captions of an image


@pytest.mark.parametrize('workers', [0, 2])
def test_evaluation_batches_are_those_without_a_cache(args, workers, many_cores):
    plain = build_dataloader(args(training=False))[0]
    cached = build_dataloader(args(training=False, num_workers=workers, image_cache='auto'))[0]
    for (pids, images), (other_pids, stored) in zip(plain, cached, strict=True):
        assert torch.equal(pids, other_pids) and stored.dtype == torch.uint8
        assert torch.equal(images, augment_on_device(stored))
    close(cached)


def test_where_caches_lie(args, tmp_path):
    build_dataloader(args(image_cache='auto', val_dataset='val'))
    names = [name.rsplit('_', 1)[0] for name in sorted(os.listdir(tmp_path / 'CUHK-PEDES' / 'image_cache'))]
    assert names == ['CUHK-PEDES_train_48x16', 'CUHK-PEDES_val_48x16']
    build_dataloader(args(image_cache=f'{tmp_path}/else/where', training=False))
    assert [name.rsplit('_', 1)[0] for name in os.listdir(tmp_path / 'else' / 'where')] == ['CUHK-PEDES_test_48x16']


def test_a_cache_does_not_depend_on_limit_train(args, tmp_path, monkeypatch):
    one = build_dataloader(args(image_cache='auto', limit_train=6))[0]
    no_reading(monkeypatch)
    other = build_dataloader(args(image_cache='auto'))[0]
    assert one.dataset.image_transform.image_cache.file == other.dataset.image_transform.image_cache.file
    assert len(epoch(other)) == 3


def test_broken_images_are_skipped_as_without_a_cache(args):
    paths = [build_dataloader(args())[0].dataset.samples[index][2] for index in (0, 9)]
    for path in paths:
        os.truncate(path, 200)
    with pytest.raises(UserError, match=f'^image {paths[0]} cannot be read'):
        build_dataloader(args(image_cache='auto'))
    plain = build_dataloader(args(skip_broken=True))[0]
    cached = build_dataloader(args(skip_broken=True, image_cache='auto'))[0]
    for one, other in zip(epoch(plain), epoch(cached), strict=True):
        assert one.get('skipped') == other.get('skipped')
        assert torch.equal(one['images'], augment_on_device(other['images'], other['augmentation_params']))


def test_evaluation_never_leaves_out(args):
    path = build_dataloader(args(training=False))[0].dataset.img_paths[1]
    os.truncate(path, 200)
    with pytest.raises(UserError, match=path):
        build_dataloader(args(training=False, skip_broken=True, image_cache='auto'))

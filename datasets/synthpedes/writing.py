"""The identities, images and captions of synthpedes, and the folder on disk that holds them."""
import contextlib
import json
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context

import numpy as np
from tqdm import tqdm

from datasets.registry import dataset_class, datasets
from datasets.synthpedes import people
from datasets.synthpedes.drawing import Palette, sample_scene, render_image
from datasets.workers import start_worker
from utils.errors import UserError, unknown_name_error
from utils.file_lock import try_lock
from utils.iotools import read_json
from utils.seeding import derive_seed

VERSION = 1  # of the drawings and sentences: the same settings give the same files only within a version
DIFFICULTY_OPTIONS = {  # name: (default, lowest, highest, what it does)
    'omission': (0.2, 0, 0.9, 'share of attributes and details that a caption leaves out'),
    'shades': (0.3, 0, 1, "how far a garment's color strays from its name, and how often the shade is not named"),
    'tint': (0.35, 0, 1, "how much the camera's exposure and color cast vary"),
    'clutter': (0.5, 0, 1, 'chance of cars, poles, signs and other people in the background'),
    'occlusion': (0.15, 0, 1, 'chance that something covers part of the person'),
    'colours': (12, 4, 12, 'number of base colors that things are made of'),
    'twins': (0.1, 0, 1, 'share of identities that share all but one attribute with another one of their split'),
}
MARK = 'synthpedes.json'


# --- identities, images, captions ---------------------------------------------------------------------------------

def _sample_identity(settings, index, first, count):
    """(labels, palette seed, index of the one it is a twin of or None) of an identity, ``first, count``: its split.

    Identities of a split go in pairs; in a pair of twins the second one is the first with one label changed.
    """
    seed, colors = settings['seed'], settings['colours']
    place = index - first
    leader = first + place - place % 2
    twins = leader + 1 < first + count and random.Random(derive_seed(seed, 1, leader)).random() < settings['twins']
    own = leader if twins else index
    person = people.sample_person(random.Random(derive_seed(seed, 2, own)), colors)
    if own == index:
        return person, derive_seed(seed, 3, own), None
    twin = people.sample_twin(person, random.Random(derive_seed(seed, 4, index)), colors)
    return twin, derive_seed(seed, 3, own), leader


def _sample_views(rng, count):
    """Views of an identity's images: front, back and side in some order before anything repeats."""
    views = ['front', 'back', 'side']
    rng.shuffle(views)
    return [views[i] if i < 3 else rng.choice(('front', 'back', 'side')) for i in range(count)]


def draw_identity(settings, index, first, count):
    """One identity's ``(labels, twin's index or None, [(image, captions, scene), ...])``.

    It depends on the settings, the index and the split's ``first, count`` alone, never on what was drawn before.
    """
    person, look, twin = _sample_identity(settings, index, first, count)
    palette = Palette(look, settings['shades'])
    views = _sample_views(random.Random(derive_seed(settings['seed'], 5, index)), settings['images_per_id'])
    shots = []
    for number, view in enumerate(views):
        scene = sample_scene(derive_seed(settings['seed'], 6, index, number), view, settings['tint'],
                          settings['occlusion'])
        image = render_image(person, scene, palette, settings['size'], settings['clutter'])
        captions = [people.write_caption(person, scene, random.Random(derive_seed(settings['seed'], 7, index, number, c)),
                                       settings['omission'], settings['shades'])
                    for c in range(settings['captions_per_image'])]
        shots.append((image, captions, scene))
    return person, twin, shots


def _split_ranges(settings):
    """[(split, first index, count)], training identities first."""
    train = settings['ids'] - settings['val_ids'] - settings['test_ids']
    return [('train', 0, train), ('val', train, settings['val_ids']),
            ('test', train + settings['val_ids'], settings['test_ids'])]


def _write_identity(task):
    """Draw and save one identity below ``folder``; its annotation entries and its labels."""
    settings, folder, split, index, first, count = task
    written = dataset_class(settings['format'])
    key, first_pid = written.image_key, written.first_pid
    person, twin, shots = draw_identity(settings, index, first, count)
    entries = []
    for number, (image, captions, scene) in enumerate(shots):
        path = f'{split}/{first_pid + index:05d}_{number}.jpg'
        image.save(os.path.join(folder, 'imgs', path), quality=scene.quality)
        entries.append({'id': first_pid + index, 'split': split, 'captions': captions, key: path})
    return entries, {'id': first_pid + index, 'split': split, 'twin_of': None if twin is None else first_pid + twin,
                     **person}


# --- the folder on disk -------------------------------------------------------------------------------------------

def _require_integer(name, value, low, high):
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f'{name} must be a whole number from {low} to {high}, not {value!r}')
    return int(value)


def formats():
    """The datasets whose annotation is one file of their folder, which is what is written here."""
    return [name for name, written in datasets().items() if written.annotations]


def validate_settings(ids, images_per_id, captions_per_image, size, seed, format, val_ids, test_ids, knobs):
    """Everything that decides what is written, checked, as it is kept in synthpedes.json."""
    if format not in formats():
        raise unknown_name_error('format', format, formats())
    written = dataset_class(format)
    captions, has_val = written.captions_per_image, written.has_val
    height, width = size
    found = {'ids': _require_integer('ids', ids, 3, 1_000_000), 'images_per_id': _require_integer('images_per_id', images_per_id, 1, 1000),
             'captions_per_image': _require_integer('captions_per_image',
                                          captions if captions_per_image is None else captions_per_image, 1, 100),
             'size': [_require_integer('size (height)', height, 32, 2048), _require_integer('size (width)', width, 16, 2048)],
             'seed': _require_integer('seed', seed, 0, 2 ** 62), 'format': format}
    found['test_ids'] = _require_integer('test_ids', max(1, ids // 5) if test_ids is None else test_ids, 0, ids)
    found['val_ids'] = _require_integer('val_ids', (ids // 10 if has_val else 0) if val_ids is None else val_ids, 0, ids)
    if found['val_ids'] and not has_val:
        raise UserError(f'{format} has no val split: leave val_ids at 0')
    if captions == 1 and found['captions_per_image'] != 1:
        raise UserError(f'{format} has one caption an image: leave captions_per_image at 1')
    if found['val_ids'] + found['test_ids'] >= ids:
        raise UserError(f'val_ids ({found["val_ids"]}) and test_ids ({found["test_ids"]}) leave none of the {ids} ids '
                        'for training')
    for name in knobs:
        if name not in DIFFICULTY_OPTIONS:
            raise unknown_name_error('difficulty knob', name, DIFFICULTY_OPTIONS)
    for name, (default, low, high, _) in DIFFICULTY_OPTIONS.items():
        value = knobs.get(name, default)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f'{name} must be a number from {low} to {high}, not {value!r}')
        found[name] = int(value) if name == 'colours' else float(value)
    return found


def _read_marker(folder):
    """What synthpedes.json says of a folder that we made, else None."""
    try:
        mark = read_json(os.path.join(folder, MARK))
    except UserError:
        return None
    return mark if isinstance(mark, dict) and mark.get('made_by') == 'datasets.synthpedes' else None


def is_synthetic(folder):
    """Whether a dataset's folder was made by :func:`generate`."""
    return os.path.isfile(os.path.join(folder, MARK))


def _is_complete(folder, format):
    written = dataset_class(format)
    try:
        entries = written.load_entries(os.path.join(folder, written.annotations[0]))
    except UserError:
        return False
    return all(os.path.exists(os.path.join(folder, 'imgs', entry[written.image_key])) for entry in entries)


def _needs_writing(folder, settings, overwrite):
    """True if ``folder`` is to be made, False if it is there with these settings; refuses whatever else is there."""
    if not os.path.lexists(folder) or (os.path.isdir(folder) and not os.path.islink(folder) and not os.listdir(folder)):
        return True
    mark = _read_marker(folder)
    if mark is None:
        raise UserError(f'{folder} is there and was not made by synthpedes (no {MARK} of ours in it): it is never '
                        'overwritten, choose another --out')
    if overwrite and os.path.islink(folder):
        raise UserError(f'{folder} is a link: name the folder that it points to, or remove the link')
    if overwrite:
        return True
    if mark.get('settings') != settings or mark.get('version') != VERSION:
        old = mark['settings'] if isinstance(mark.get('settings'), dict) else {}
        names = [k for k in settings if old.get(k) != settings[k]] or ['version']
        raise UserError(f'{folder} was made with other settings ({", ".join(names)}): use --overwrite or another --out')
    if not _is_complete(folder, settings['format']):
        raise UserError(f'{folder} was made by synthpedes but files are missing in it: use --overwrite to make it anew')
    return False


def _write_identities(tasks, workers):
    """Results of :func:`_write_identity` in the order of ``tasks``."""
    if workers <= 1:
        yield from map(_write_identity, tasks)
        return
    context = get_context('fork' if 'fork' in get_all_start_methods() else 'spawn')
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(0,))
    try:
        yield from pool.map(_write_identity, tasks, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed (out of memory?): use fewer --workers') from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_json(path, content):
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1)


def _write_dataset(folder, settings, workers, progress):
    """Everything into ``folder``, which is new and empty."""
    tasks = []
    for split, first, count in _split_ranges(settings):
        os.makedirs(os.path.join(folder, 'imgs', split))
        tasks += [(settings, folder, split, index, first, count) for index in range(first, first + count)]
    entries, labels = [], []
    bar = tqdm(total=settings['ids'] * settings['images_per_id'], unit='image', desc=settings['format'],
               disable=not progress)
    # Closed, so that no worker writes on after an interruption.
    with bar, contextlib.closing(_write_identities(tasks, workers)) as results:
        for new, person in results:
            entries += new
            labels.append(person)
            bar.update(len(new))
    _write_json(os.path.join(folder, dataset_class(settings['format']).annotations[0]), entries)
    _write_json(os.path.join(folder, 'attributes.json'), labels)
    counts = {}
    for split, _, count in _split_ranges(settings):
        images = count * settings['images_per_id']
        counts[split] = {'ids': count, 'images': images, 'captions': images * settings['captions_per_image']}
    _write_json(os.path.join(folder, MARK), {'made_by': 'datasets.synthpedes', 'version': VERSION, 'settings': settings,
                                       'counts': counts})


def generate(out, ids, images_per_id=4, captions_per_image=None, size=(384, 128), seed=0, format='synthpedes',
             val_ids=None, test_ids=None, workers=None, overwrite=False, progress=True, **knobs):
    """Write a dataset of ``ids`` procedural pedestrians to ``<out>/<format>/`` and return that folder's path.

    Args:
        out: the root folder (``--root_dir`` of the training), made if it is not there.
        ids, images_per_id, captions_per_image: counts; captions_per_image is the format's by default (ICFG-PEDES 1,
            else 2).
        size: (height, width) of the images in pixels.
        seed: everything derives from it; ``workers`` (processes, by default as many as cores) change nothing.
        format: 'synthpedes' (CUHK-PEDES' layout), 'CUHK-PEDES', 'ICFG-PEDES' or 'RSTPReid'.
        val_ids, test_ids: held-out identities; by default a tenth (none for ICFG-PEDES) and a fifth.
        overwrite: replace a folder that synthpedes made; one that it did not make is never touched.
        knobs: difficulty, see DIFFICULTY_OPTIONS: omission, shades, tint, clutter, occlusion, colors, twins.

    Beside the annotation it writes ``attributes.json`` (a list of each identity's labels; ``twin_of`` is the id of the
    identity that it shares all but one label with) and ``synthpedes.json`` (settings and counts). A complete folder
    with the same settings is left as it is. The folder appears at once when all is written; an interruption leaves
    nothing.

    Raises:
        UserError: a bad argument, or a folder of that name that is not ours or has other settings.
    """
    settings = validate_settings(ids, images_per_id, captions_per_image, size, seed, format, val_ids, test_ids, knobs)
    workers = os.cpu_count() if workers is None else _require_integer('workers', workers, 0, 1024)
    folder = os.path.join(out, format)
    if not _needs_writing(folder, settings, overwrite):
        print(f'{folder} is there with these settings: nothing to do')
        return folder
    made_out = not os.path.isdir(out)
    try:
        with _working_folder(out, format) as (new, old):
            _restore_folder(old, folder)
            if not _needs_writing(folder, settings, overwrite):   # of a run that was quicker
                print(f'{folder} is there with these settings: nothing to do')
                return folder
            _write_dataset(new, settings, workers, progress)
            try:
                if os.path.lexists(folder):
                    os.rename(folder, old)
                os.rename(new, folder)
            finally:
                _restore_folder(old, folder)
    except OSError as error:
        raise UserError(f'cannot write {folder}: {error.strerror or error}') from error
    finally:
        if made_out:
            with contextlib.suppress(OSError):  # goes if it is empty, that is if nothing was made
                os.rmdir(out)
    return folder


@contextlib.contextmanager
def _working_folder(out, format):
    """``(new, old)``: an empty folder that nobody else writes into, and where to put what it replaces. What a killed run left there goes
    now; what is left in the end goes then."""
    new, old = os.path.join(out, f'.{format}.new'), os.path.join(out, f'.{format}.old')
    lock = _lock_folder(new, os.path.join(out, format))
    try:
        shutil.rmtree(os.path.join(new, 'imgs'), ignore_errors=True)
        for name in os.listdir(new):
            os.remove(os.path.join(new, name))
        yield new, old
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock_folder(new, folder):
    """Make the folder ``new`` where it is not there, and lock it; returns the lock, which ends with the process at the latest."""
    while True:
        os.makedirs(new, exist_ok=True)
        if not hasattr(os, 'O_DIRECTORY'):   # Windows opens no folders, so two runs do not see each other there
            return None
        try:
            lock = os.open(new, os.O_RDONLY)
        except FileNotFoundError:   # who wrote it has just finished
            continue
        if not try_lock(lock, is_inherited=True):
            os.close(lock)
            raise UserError(f'another run is writing {folder}: wait until it is done, or choose another --out')
        if os.path.lexists(new) and os.path.samestat(os.fstat(lock), os.stat(new)):
            return lock
        os.close(lock)


def _restore_folder(old, folder):
    """Let what was replaced go, or come back where nothing has taken its place, as when a run was killed in between."""
    if os.path.lexists(old) and not os.path.lexists(folder):
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)

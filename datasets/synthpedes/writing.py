"""Create the identities, images and captions of synthpedes, and write them to a folder."""
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
from datasets.side_texts import SECOND_CAPTIONS
from datasets.synthpedes import people
from datasets.synthpedes.drawing import Palette, sample_scene, render_image
from datasets.workers import start_worker
from utils.errors import UserError, unknown_name_error
from utils.file_lock import try_lock
from utils.iotools import read_json
from utils.seeding import derive_seed

VERSION = 1  # of images and captions: equal settings give equal files only within a version
DIFFICULTY_OPTIONS = {  # {name: (default, minimum, maximum, help)}
    'omission': (0.2, 0, 0.9, 'fraction of attributes and details that a caption omits'),
    'shades': (0.3, 0, 1, "variation of a garment's color around its name, and how often captions omit the shade"),
    'tint': (0.35, 0, 1, "variation of the camera's exposure and color cast"),
    'clutter': (0.5, 0, 1, 'probability of cars, poles, signs and other people in the background'),
    'occlusion': (0.15, 0, 1, 'probability that an object covers part of the person'),
    'colours': (12, 4, 12, 'number of base colors of clothes and bags'),
    'twins': (0.1, 0, 1, 'fraction of pairs of identities that differ in only one attribute'),
    'variety': (1.0, 0, 1, 'fraction of captions in free wording; the others have one pattern and fixed words'),
}
MARKER = 'synthpedes.json'


# --- identities, images, captions ---------------------------------------------------------------------------------

def _sample_identity(settings, index, first, count):
    """Sample an identity. Its split starts at the index ``first`` and has ``count`` identities.

    The identities of a split form pairs. In a pair of twins the second identity is the first with one label changed.

    Returns:
        ``(labels, palette seed, index of the identity whose twin it is or None)``.
    """
    seed, colors = settings['seed'], settings['colours']
    position = index - first
    leader = first + position - position % 2
    twins = leader + 1 < first + count and random.Random(derive_seed(seed, 1, leader)).random() < settings['twins']
    source = leader if twins else index
    person = people.sample_person(random.Random(derive_seed(seed, 2, source)), colors)
    if source == index:
        return person, derive_seed(seed, 3, source), None
    twin = people.sample_twin(person, random.Random(derive_seed(seed, 4, index)), colors)
    return twin, derive_seed(seed, 3, source), leader


def _sample_views(rng, count):
    """Sample the views of an identity's images: front, back and side in random order, then random views."""
    views = ['front', 'back', 'side']
    rng.shuffle(views)
    return [views[i] if i < 3 else rng.choice(('front', 'back', 'side')) for i in range(count)]


def draw_identity(settings, index, first, count):
    """Create an identity: ``(labels, index of its twin or None, [(image, captions, second captions, scene), ...])``.

    The result depends only on the settings, the index, and the ``first`` index and ``count`` of its split.
    """
    person, palette_seed, twin = _sample_identity(settings, index, first, count)
    palette = Palette(palette_seed, settings['shades'])
    views = _sample_views(random.Random(derive_seed(settings['seed'], 5, index)), settings['images_per_id'])
    shots = []
    for number, view in enumerate(views):
        scene = sample_scene(derive_seed(settings['seed'], 6, index, number), view, settings['tint'],
                          settings['occlusion'])
        image = render_image(person, scene, palette, settings['size'], settings['clutter'])
        seeds = [derive_seed(settings['seed'], 7, index, number, c) for c in range(settings['captions_per_image'])]
        captions = [people.write_caption(person, scene, random.Random(seed), settings['omission'], settings['shades'],
                                         settings.get('variety', 1.0))
                    for seed in seeds]
        second_captions = [people.write_second_caption(person, scene, random.Random(derive_seed(seed, 8)),
                                                       settings['shades'])
                           for seed in seeds if settings.get('second_captions')]
        shots.append((image, captions, second_captions, scene))
    return person, twin, shots


def _split_ranges(settings):
    """``[(split, first index, count)]``, training identities first."""
    train = settings['ids'] - settings['val_ids'] - settings['test_ids']
    return [('train', 0, train), ('val', train, settings['val_ids']),
            ('test', train + settings['val_ids'], settings['test_ids'])]


def _write_identity(task):
    """Create an identity and save its images: ``(its annotation entries, its labels)``."""
    settings, folder, split, index, first, count = task
    format_class = dataset_class(settings['format'])
    key, first_pid = format_class.image_key, format_class.first_pid
    person, twin, shots = draw_identity(settings, index, first, count)
    entries = []
    for number, (image, captions, second_captions, scene) in enumerate(shots):
        path = f'{split}/{first_pid + index:05d}_{number}.jpg'
        image.save(os.path.join(folder, 'imgs', path), quality=scene.quality)
        side_texts = {SECOND_CAPTIONS: second_captions} if second_captions else {}
        entries.append({'id': first_pid + index, 'split': split, 'captions': captions, **side_texts, key: path})
    return entries, {'id': first_pid + index, 'split': split, 'twin_of': None if twin is None else first_pid + twin,
                     **person}


# --- the folder on disk -------------------------------------------------------------------------------------------

def _require_integer(name, value, low, high):
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f'{name} must be a whole number from {low} to {high}, not {value!r}')
    return int(value)


def formats():
    """The supported formats: datasets whose annotation is one file of their folder."""
    return [name for name, format_class in datasets().items() if format_class.annotations]


def validate_settings(ids, images_per_id=4, captions_per_image=None, size=(384, 128), seed=0, format='synthpedes',
                      val_ids=None, test_ids=None, **others):
    """Validate the settings of a dataset and fill in defaults: the settings that synthpedes.json holds.

    Args:
        ids: the number of identities of all splits.
        images_per_id: the number of images of each identity.
        captions_per_image: the number of captions of each image, by default the format's: 1 for ICFG-PEDES, else 2.
        size: (height, width) of the images in pixels.
        seed: the seed of all random numbers.
        format: 'synthpedes' (CUHK-PEDES's layout), 'CUHK-PEDES', 'ICFG-PEDES' or 'RSTPReid'.
        val_ids: the number of identities of the val split, by default a tenth (none for ICFG-PEDES).
        test_ids: the number of identities of the test split, by default a fifth.
        others: ``second_captions``, whether each caption has a second one (ICL), and values of DIFFICULTY_OPTIONS:
            omission, shades, tint, clutter, occlusion, colours, twins, variety.

    Raises:
        UserError: a setting is invalid.
    """
    if format not in formats():
        raise unknown_name_error('format', format, formats())
    format_class = dataset_class(format)
    captions, has_val = format_class.captions_per_image, format_class.has_val
    height, width = size
    settings = {'ids': _require_integer('ids', ids, 3, 1_000_000),
                'images_per_id': _require_integer('images_per_id', images_per_id, 1, 1000),
                'captions_per_image': _require_integer(
                    'captions_per_image', captions if captions_per_image is None else captions_per_image, 1, 100),
                'size': [_require_integer('size (height)', height, 32, 2048),
                         _require_integer('size (width)', width, 16, 2048)],
                'seed': _require_integer('seed', seed, 0, 2 ** 62), 'format': format}
    if test_ids is None:
        test_ids = max(1, ids // 5)
    if val_ids is None:
        val_ids = ids // 10 if has_val else 0
    settings['test_ids'] = _require_integer('test_ids', test_ids, 0, ids)
    settings['val_ids'] = _require_integer('val_ids', val_ids, 0, ids)
    if settings['val_ids'] and not has_val:
        raise UserError(f'{format} has no val split: leave val_ids at 0')
    if captions == 1 and settings['captions_per_image'] != 1:
        raise UserError(f'{format} has one caption an image: leave captions_per_image at 1')
    if settings['val_ids'] + settings['test_ids'] >= ids:
        raise UserError(f'val_ids ({settings["val_ids"]}) and test_ids ({settings["test_ids"]}) leave none of the '
                        f'{ids} ids for training')
    difficulty = {name: value for name, value in others.items() if name != 'second_captions'}
    for name in difficulty:
        if name not in DIFFICULTY_OPTIONS:
            raise unknown_name_error('difficulty option', name, DIFFICULTY_OPTIONS)
    for name, (default, low, high, _) in DIFFICULTY_OPTIONS.items():
        value = difficulty.get(name, default)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f'{name} must be a number from {low} to {high}, not {value!r}')
        settings[name] = int(value) if name == 'colours' else float(value)
    # With the defaults of the newer options, the settings equal those of older versions.
    if settings['variety'] == DIFFICULTY_OPTIONS['variety'][0]:
        del settings['variety']
    return {**settings, 'second_captions': True} if others.get('second_captions') else settings


def _read_marker(folder):
    """Read synthpedes.json of a folder; None if synthpedes did not write the folder."""
    try:
        marker = read_json(os.path.join(folder, MARKER))
    except UserError:
        return None
    is_ours = isinstance(marker, dict) and marker.get('made_by') == 'datasets.synthpedes'
    return marker if is_ours else None


def is_synthetic(folder):
    """Whether :func:`generate` wrote a dataset's folder."""
    return os.path.isfile(os.path.join(folder, MARKER))


def _is_complete(folder, format):
    format_class = dataset_class(format)
    try:
        entries = format_class.load_entries(os.path.join(folder, format_class.annotations[0]))
    except UserError:
        return False
    return all(os.path.exists(os.path.join(folder, 'imgs', entry[format_class.image_key])) for entry in entries)


def _needs_writing(folder, settings, overwrite):
    """Whether ``folder`` must be written. False if it exists with these settings; raises if it holds anything else."""
    if not os.path.lexists(folder) or (os.path.isdir(folder) and not os.path.islink(folder) and not os.listdir(folder)):
        return True
    marker = _read_marker(folder)
    if marker is None:
        raise UserError(f'{folder} exists and was not made by synthpedes (it has no {MARKER} of synthpedes): it is '
                        'never overwritten, choose another --out')
    if overwrite and os.path.islink(folder):
        raise UserError(f'{folder} is a link: name the folder that it points to, or remove the link')
    if overwrite:
        return True
    if marker.get('settings') != settings or marker.get('version') != VERSION:
        old = marker['settings'] if isinstance(marker.get('settings'), dict) else {}
        names = [k for k in settings if old.get(k) != settings[k]] or ['version']
        raise UserError(f'{folder} was made with other settings ({", ".join(names)}): use --overwrite or another --out')
    if not _is_complete(folder, settings['format']):
        raise UserError(f'{folder} was made by synthpedes but files are missing in it: use --overwrite to write it '
                        'again')
    return False


def _write_identities(tasks, workers):
    """Yield the results of :func:`_write_identity` in the order of ``tasks``."""
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
    """Write the dataset into ``folder``, which is new and empty."""
    tasks = []
    for split, first, count in _split_ranges(settings):
        os.makedirs(os.path.join(folder, 'imgs', split))
        tasks += [(settings, folder, split, index, first, count) for index in range(first, first + count)]
    entries, labels = [], []
    bar = tqdm(total=settings['ids'] * settings['images_per_id'], unit='image', desc=settings['format'],
               disable=not progress)
    # Closing the generator stops the workers after an interruption.
    with bar, contextlib.closing(_write_identities(tasks, workers)) as results:
        for new_entries, person in results:
            entries += new_entries
            labels.append(person)
            bar.update(len(new_entries))
    _write_json(os.path.join(folder, dataset_class(settings['format']).annotations[0]), entries)
    _write_json(os.path.join(folder, 'attributes.json'), labels)
    counts = {}
    for split, _, count in _split_ranges(settings):
        images = count * settings['images_per_id']
        counts[split] = {'ids': count, 'images': images, 'captions': images * settings['captions_per_image']}
    _write_json(os.path.join(folder, MARKER), {'made_by': 'datasets.synthpedes', 'version': VERSION,
                                               'settings': settings, 'counts': counts})


def generate(out, ids, images_per_id=4, workers=None, overwrite=False, progress=True, **settings):
    """Write a dataset of ``ids`` procedural pedestrians to ``<out>/<format>/`` and return that folder's path.

    Args:
        out: the root folder (``--root_dir`` of a training); it is created if necessary.
        ids: the number of identities of all splits.
        images_per_id: the number of images of each identity.
        workers: the number of processes, by default one per core. It does not change the result.
        overwrite: whether to replace a folder that synthpedes wrote. Other folders are never replaced.
        progress: whether to show a progress bar.
        settings: the other settings of the dataset (:func:`validate_settings`).

    Next to the annotation the function writes ``attributes.json``, a list of each identity's labels, and
    ``synthpedes.json``, the settings and counts. ``twin_of`` in the labels is the id of the identity from which the
    identity differs in one label only. A complete folder with the same settings is not changed. The folder is written
    atomically: an interruption leaves nothing.

    Raises:
        UserError: an argument is invalid, or the folder exists with other content or settings.
    """
    settings = validate_settings(ids, images_per_id, **settings)
    workers = os.cpu_count() if workers is None else _require_integer('workers', workers, 0, 1024)
    folder = os.path.join(out, settings['format'])
    if not _needs_writing(folder, settings, overwrite):
        print(f'{folder} exists with these settings: nothing to do')
        return folder
    creates_out = not os.path.isdir(out)
    try:
        with _working_folder(out, settings['format']) as (new, old):
            _restore_folder(old, folder)
            if not _needs_writing(folder, settings, overwrite):   # another run may have written it
                print(f'{folder} exists with these settings: nothing to do')
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
        if creates_out:
            with contextlib.suppress(OSError):  # removes it only if it is empty
                os.rmdir(out)
    return folder


@contextlib.contextmanager
def _working_folder(out, format):
    """Context manager that yields ``(new, old)``: a locked empty folder, and a path for the folder that it replaces.

    Files that a killed run left in it are removed at the start, and the folder itself at the end.
    """
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
    """Create the folder ``new`` if necessary, lock it, and return the lock, which the process's end releases."""
    while True:
        os.makedirs(new, exist_ok=True)
        if not hasattr(os, 'O_DIRECTORY'):   # Windows cannot open folders, so two runs are not detected there
            return None
        try:
            lock = os.open(new, os.O_RDONLY)
        except FileNotFoundError:   # another run has just finished and removed it
            continue
        if not try_lock(lock, is_inherited=True):
            os.close(lock)
            raise UserError(f'another run is writing {folder}: wait until it is done, or choose another --out')
        if os.path.lexists(new) and os.path.samestat(os.fstat(lock), os.stat(new)):
            return lock
        os.close(lock)


def _restore_folder(old, folder):
    """Remove the replaced folder ``old``, or move it back if a run was killed between the renames."""
    if os.path.lexists(old) and not os.path.lexists(folder):
        os.rename(old, folder)
    shutil.rmtree(old, ignore_errors=True)

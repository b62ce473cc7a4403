"""synthpedes: procedural pedestrians with sentences about them, on disk in the layout of a real dataset.

``python -m datasets.synthpedes --out data --ids 2000`` writes ``data/synthpedes``; ``--help`` tells the rest. It is no
substitute for photographs, but an honest task: held-out identities, other words in every caption, another view in every
image, and two baselines without learning (:func:`baseline_similarities`) that say how far colour words alone get.
"""
import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from datasets import synthpedes_people as people
from datasets.synthpedes_draw import Palette, new_scene, photo
from utils import errors
from utils.errors import UserError
from utils.metrics import rank
from utils.seeding import derive_seed

VERSION = 1  # of the drawings and sentences: the same settings give the same files only within a version
# format: (annotation, image key, first pid, captions an image, has a val split)
FORMATS = {
    'synthpedes': ('reid_raw.json', 'file_path', 1, 2, True),
    'CUHK-PEDES': ('reid_raw.json', 'file_path', 1, 2, True),
    'ICFG-PEDES': ('ICFG-PEDES.json', 'file_path', 0, 1, False),
    'RSTPReid': ('data_captions.json', 'img_path', 0, 2, True),
}
KNOBS = {  # name: (default, lowest, highest, what it does)
    'omission': (0.2, 0, 0.9, 'share of attributes and details that a caption leaves out'),
    'shades': (0.3, 0, 1, "how far a garment's colour strays from its name, and how often the shade is not named"),
    'tint': (0.35, 0, 1, "how much the camera's exposure and colour cast vary"),
    'clutter': (0.5, 0, 1, 'chance of cars, poles, signs and other people in the background'),
    'occlusion': (0.15, 0, 1, 'chance that something covers part of the person'),
    'colours': (12, 4, 12, 'number of base colours that things are made of'),
    'twins': (0.1, 0, 1, 'share of identities that share all but one attribute with another one of their split'),
}
MARK = 'synthpedes.json'


# --- identities, images, captions ---------------------------------------------------------------------------------

def _identity(settings, index, first, count):
    """(labels, palette seed, index of the one it is a twin of or None) of an identity, ``first, count``: its split.

    Identities of a split go in pairs; in a pair of twins the second one is the first with one label changed.
    """
    seed, colours = settings['seed'], settings['colours']
    place = index - first
    leader = first + place - place % 2
    twins = leader + 1 < first + count and random.Random(derive_seed(seed, 1, leader)).random() < settings['twins']
    own = leader if twins else index
    person = people.new_person(random.Random(derive_seed(seed, 2, own)), colours)
    if own == index:
        return person, derive_seed(seed, 3, own), None
    twin = people.new_twin(person, random.Random(derive_seed(seed, 4, index)), colours)
    return twin, derive_seed(seed, 3, own), leader


def _views(rng, count):
    """Views of an identity's images: front, back and side in some order before anything repeats."""
    views = ['front', 'back', 'side']
    rng.shuffle(views)
    return [views[i] if i < 3 else rng.choice(('front', 'back', 'side')) for i in range(count)]


def make_identity(settings, index, first, count):
    """One identity's ``(labels, twin's index or None, [(image, captions, scene), ...])``.

    It depends on the settings, the index and the split's ``first, count`` alone, never on what was drawn before.
    """
    person, look, twin = _identity(settings, index, first, count)
    palette = Palette(look, settings['shades'])
    views = _views(random.Random(derive_seed(settings['seed'], 5, index)), settings['images_per_id'])
    shots = []
    for number, view in enumerate(views):
        scene = new_scene(derive_seed(settings['seed'], 6, index, number), view, settings['tint'],
                          settings['occlusion'])
        image = photo(person, scene, palette, settings['size'], settings['clutter'])
        captions = [people.new_caption(person, scene, random.Random(derive_seed(settings['seed'], 7, index, number, c)),
                                       settings['omission'], settings['shades'])
                    for c in range(settings['captions_per_image'])]
        shots.append((image, captions, scene))
    return person, twin, shots


def _splits(settings):
    """[(split, first index, count)], training identities first."""
    train = settings['ids'] - settings['val_ids'] - settings['test_ids']
    return [('train', 0, train), ('val', train, settings['val_ids']),
            ('test', train + settings['val_ids'], settings['test_ids'])]


def _write_identity(task):
    """Draw and save one identity below ``folder``; its annotation entries and its labels."""
    settings, folder, split, index, first, count = task
    _, key, first_pid, _, _ = FORMATS[settings['format']]
    person, twin, shots = make_identity(settings, index, first, count)
    entries = []
    for number, (image, captions, scene) in enumerate(shots):
        path = f'{split}/{first_pid + index:05d}_{number}.jpg'
        image.save(os.path.join(folder, 'imgs', path), quality=scene.quality)
        entries.append({'id': first_pid + index, 'split': split, 'captions': captions, key: path})
    return entries, {'id': first_pid + index, 'split': split, 'twin_of': None if twin is None else first_pid + twin,
                     **person}


# --- the folder on disk -------------------------------------------------------------------------------------------

def _whole(name, value, low, high):
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f'{name} must be a whole number from {low} to {high}, not {value!r}')
    return int(value)


def _settings(ids, images_per_id, captions_per_image, size, seed, format, val_ids, test_ids, knobs):
    """Everything that decides what is written, checked, as it is kept in synthpedes.json."""
    if format not in FORMATS:
        raise errors.unknown('format', format, FORMATS)
    _, _, _, captions, has_val = FORMATS[format]
    height, width = size
    found = {'ids': _whole('ids', ids, 3, 1_000_000), 'images_per_id': _whole('images_per_id', images_per_id, 1, 1000),
             'captions_per_image': _whole('captions_per_image',
                                          captions if captions_per_image is None else captions_per_image, 1, 100),
             'size': [_whole('size (height)', height, 32, 2048), _whole('size (width)', width, 16, 2048)],
             'seed': _whole('seed', seed, 0, 2 ** 62), 'format': format}
    found['test_ids'] = _whole('test_ids', max(1, ids // 5) if test_ids is None else test_ids, 0, ids)
    found['val_ids'] = _whole('val_ids', (ids // 10 if has_val else 0) if val_ids is None else val_ids, 0, ids)
    if found['val_ids'] and not has_val:
        raise UserError(f'{format} has no val split: leave val_ids at 0')
    if format == 'ICFG-PEDES' and found['captions_per_image'] != 1:
        raise UserError('ICFG-PEDES has one caption an image: leave captions_per_image at 1')
    if found['val_ids'] + found['test_ids'] >= ids:
        raise UserError(f'val_ids ({found["val_ids"]}) and test_ids ({found["test_ids"]}) leave none of the {ids} ids '
                        'for training')
    for name in knobs:
        if name not in KNOBS:
            raise errors.unknown('difficulty knob', name, KNOBS)
    for name, (default, low, high, _) in KNOBS.items():
        value = knobs.get(name, default)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f'{name} must be a number from {low} to {high}, not {value!r}')
        found[name] = int(value) if name == 'colours' else float(value)
    return found


def _ours(folder):
    """The settings of a folder that we made, else None."""
    try:
        with open(os.path.join(folder, MARK)) as file:
            mark = json.load(file)
        return mark if mark.get('made_by') == 'datasets.synthpedes' else None
    except (OSError, ValueError, AttributeError):
        return None


def _complete(folder, mark):
    annotation, key = FORMATS[mark['settings']['format']][:2]
    try:
        with open(os.path.join(folder, annotation)) as file:
            return all(os.path.exists(os.path.join(folder, 'imgs', entry[key])) for entry in json.load(file))
    except (OSError, ValueError):
        return False


def _may_write(folder, settings, overwrite):
    """True if ``folder`` is to be made, False if it is there with these settings; refuses whatever else is there."""
    if not os.path.lexists(folder) or (os.path.isdir(folder) and not os.path.islink(folder) and not os.listdir(folder)):
        return True
    mark = _ours(folder)
    if mark is None:
        raise UserError(f'{folder} is there and was not made by synthpedes (no {MARK} of ours in it): it is never '
                        'overwritten, choose another --out')
    if overwrite and os.path.islink(folder):
        raise UserError(f'{folder} is a link: name the folder that it points to, or remove the link')
    if overwrite:
        return True
    if mark.get('settings') != settings or mark.get('version') != VERSION:
        old = mark.get('settings', {})
        names = [k for k in settings if old.get(k) != settings[k]] or ['version']
        raise UserError(f'{folder} was made with other settings ({", ".join(names)}): use --overwrite or another --out')
    if not _complete(folder, mark):
        raise UserError(f'{folder} was made by synthpedes but files are missing in it: use --overwrite to make it anew')
    return False


def _ignore_interrupts():  # Ctrl-C goes to the whole process group; the parent alone decides what happens
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _all_identities(tasks, workers):
    """Results of :func:`_write_identity` in the order of ``tasks``."""
    if workers <= 1:
        yield from map(_write_identity, tasks)
        return
    context = get_context('fork' if 'fork' in get_all_start_methods() else 'spawn')
    pool = ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts)
    try:
        yield from pool.map(_write_identity, tasks, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed (out of memory?): use fewer --workers') from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _dump(path, content):
    with open(path, 'w') as file:
        json.dump(content, file, indent=1)


def _write(folder, settings, workers, progress):
    """Everything into ``folder``, which is new and empty."""
    tasks = []
    for split, first, count in _splits(settings):
        os.makedirs(os.path.join(folder, 'imgs', split))
        tasks += [(settings, folder, split, index, first, count) for index in range(first, first + count)]
    entries, labels = [], []
    bar = tqdm(total=settings['ids'] * settings['images_per_id'], unit='image', desc=settings['format'],
               disable=not progress)
    # Closed, so that no worker writes on after an interruption.
    with bar, contextlib.closing(_all_identities(tasks, workers)) as results:
        for new, person in results:
            entries += new
            labels.append(person)
            bar.update(len(new))
    _dump(os.path.join(folder, FORMATS[settings['format']][0]), entries)
    _dump(os.path.join(folder, 'attributes.json'), labels)
    counts = {}
    for split, _, count in _splits(settings):
        images = count * settings['images_per_id']
        counts[split] = {'ids': count, 'images': images, 'captions': images * settings['captions_per_image']}
    _dump(os.path.join(folder, MARK), {'made_by': 'datasets.synthpedes', 'version': VERSION, 'settings': settings,
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
        knobs: difficulty, see KNOBS: omission, shades, tint, clutter, occlusion, colours, twins.

    Beside the annotation it writes ``attributes.json`` (a list of each identity's labels; ``twin_of`` is the id of the
    identity that it shares all but one label with) and ``synthpedes.json`` (settings and counts). A complete folder
    with the same settings is left as it is. The folder appears at once when all is written; an interruption leaves
    nothing.

    Raises:
        UserError: a bad argument, or a folder of that name that is not ours or has other settings.
    """
    settings = _settings(ids, images_per_id, captions_per_image, size, seed, format, val_ids, test_ids, knobs)
    workers = os.cpu_count() if workers is None else _whole('workers', workers, 0, 1024)
    folder = os.path.join(out, format)
    if not _may_write(folder, settings, overwrite):
        print(f'{folder} is there with these settings: nothing to do')
        return folder
    new = os.path.join(out, f'.{format}.{os.getpid()}.new')
    old = os.path.join(out, f'.{format}.{os.getpid()}.old')
    made_out = not os.path.isdir(out)
    try:
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed and had our number
        os.makedirs(new)
        _write(new, settings, workers, progress)
        if os.path.lexists(folder):
            os.rename(folder, old)
        os.rename(new, folder)
    except OSError as error:
        raise UserError(f'cannot write {folder}: {error.strerror or error}') from error
    finally:
        if os.path.lexists(old) and not os.path.lexists(folder):
            os.rename(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        if made_out:
            with contextlib.suppress(OSError):  # goes if it is empty, that is if nothing was made
                os.rmdir(out)
    return folder


# --- baselines without learning -------------------------------------------------------------------------------------

UPPER_NOUNS = frozenset('t-shirt tee shirt top blouse polo sweater pullover jumper hoodie sweatshirt jacket coat '
                        'overcoat cardigan vest dress'.split())
LOWER_NOUNS = frozenset('trousers pants slacks jeans leggings shorts skirt dress'.split())
OTHER_NOUNS = frozenset('hair ponytail bun shoes sneakers trainers boots sandals backpack rucksack bag handbag purse '
                        'cap beanie hat scarf'.split())
_NAMES = {'gray': 'grey', 'navy': 'blue', 'maroon': 'red', 'burgundy': 'red', 'charcoal': 'grey', 'violet': 'purple',
          'lavender': 'purple', 'lilac': 'purple', 'tan': 'beige', 'khaki': 'beige', 'cream': 'beige',
          **{c: c for c in people.COLOURS}}


def caption_colours(caption):
    """Counts [12] of base colours (in the order of ``COLOURS``) in a whole caption, at upper garments, at lower ones.

    A colour word belongs to the next garment, hair, shoe or bag named in the same clause, else to the one before it.
    """
    counts = {part: np.zeros(len(people.COLOURS)) for part in ('all', 'upper', 'lower')}
    known = UPPER_NOUNS | LOWER_NOUNS | OTHER_NOUNS
    for clause in re.split(r'[.,;]', caption.lower()):
        words = re.findall(r'[a-z-]+', clause)
        nouns = [i for i, word in enumerate(words) if word in known]
        for i, word in enumerate(words):
            if word not in _NAMES:
                continue
            colour = people.COLOURS.index(_NAMES[word])
            counts['all'][colour] += 1
            near = [n for n in nouns if n > i][:1] or nouns[-1:]
            for part, names in (('upper', UPPER_NOUNS), ('lower', LOWER_NOUNS)):
                counts[part][colour] += bool(near) and words[near[0]] in names
    return counts['all'], counts['upper'], counts['lower']


def image_colours(path):
    """Shares [12] of base colours in the whole image, in the band of the upper garment, and of the lower one."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('RGB').resize((32, 96), Image.BOX), np.float32)  # [96, 32, 3]
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as an image: {error}') from error
    tones = list(people.TONES)
    rgb = np.array([people.TONES[t][0] for t in tones], np.float32)
    nearest = ((pixels[:, :, None] - rgb) ** 2).sum(-1).argmin(-1)  # [96, 32]
    colour = np.array([people.COLOURS.index(people.base(t)) for t in tones])[nearest]

    def shares(part):
        return np.bincount(part.ravel(), minlength=len(people.COLOURS)) / part.size
    return shares(colour), shares(colour[19:46, 9:23]), shares(colour[50:76, 9:23])


def _cosine(a, b):
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (a, b))
    return a @ b.T


def baseline_similarities(captions, img_paths):
    """``{'whole image': [Q, G], 'garment bands': [Q, G]}``: similarities of captions and images that need no learning.

    'whole image' is the cosine of the caption's colour words and the image's colours; 'garment bands' is the mean of
    two such cosines: of the words at the upper (lower) garment and the colours where it is in a pedestrian crop.
    """
    words = [np.array(part) for part in zip(*map(caption_colours, captions))]  # 3 x [Q, 12]
    shares = [np.array(part) for part in zip(*map(image_colours, img_paths))]  # 3 x [G, 12]
    whole, upper, lower = (_cosine(q, g) for q, g in zip(words, shares))
    return {'whole image': whole, 'garment bands': (upper + lower) / 2}


def galleries(pids, count, ids_per_gallery, seed=0):
    """``count`` disjoint galleries of ``ids_per_gallery`` identities each: sorted lists of pids, drawn by ``seed``.

    Raises:
        UserError: there are not as many identities.
    """
    known = sorted({int(p) for p in pids})
    if count < 1 or ids_per_gallery < 1 or count * ids_per_gallery > len(known):
        raise UserError(f'{count} galleries of {ids_per_gallery} identities need {count * ids_per_gallery} identities, '
                        f'there are {len(known)}')
    order = np.random.RandomState(derive_seed(seed) % 2 ** 32).permutation(len(known))
    return [sorted(known[i] for i in order[k * ids_per_gallery:(k + 1) * ids_per_gallery]) for k in range(count)]


def _scores(similarity, query_pids, gallery_pids):
    """``{'R1', 'R5', 'R10', 'mAP'}`` in percent of a [Q, G] similarity."""
    cmc, mean_ap, _, _ = rank(torch.from_numpy(similarity), query_pids, gallery_pids)
    return {**{f'R{k}': float(cmc[k - 1]) for k in (1, 5, 10)}, 'mAP': float(mean_ap)}


def is_synthetic(folder):
    """Whether a dataset's folder was made by :func:`generate`."""
    return os.path.isfile(os.path.join(folder, MARK))


def read_split(folder, split):
    """``(captions, their pids, image paths, their pids)`` of a dataset's folder in any of the formats."""
    found = [(name, key) for name, key, *_ in FORMATS.values() if os.path.exists(os.path.join(folder, name))]
    if not found:
        raise UserError(f'{folder} has none of the annotations {", ".join(sorted({f[0] for f in FORMATS.values()}))}')
    name, key = found[0]
    try:
        with open(os.path.join(folder, name)) as file:
            entries = [e for e in json.load(file) if e['split'] == split]
        captions = [(c, e['id']) for e in entries for c in e['captions']]
        images = [(os.path.join(folder, 'imgs', e[key]), e['id']) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        path = os.path.join(folder, name)
        raise UserError(f'{path} is not a JSON list of entries with id, split, captions and {key}') from error
    if not images:
        raise UserError(f'{os.path.join(folder, name)} has no entries in split {split!r}')
    return (*map(list, zip(*captions)), *map(list, zip(*images)))


def baselines(folder, split='test', count=5, ids_per_gallery=100, seed=0):
    """``{baseline: {'R1', 'R5', 'R10', 'mAP'}}``: means over ``count`` galleries of the split's identities."""
    captions, caption_pids, paths, image_pids = read_split(folder, split)
    caption_pids, image_pids = np.array(caption_pids), np.array(image_pids)
    groups = galleries(image_pids, count, ids_per_gallery, seed)
    scores = {}
    for name, similarity in baseline_similarities(captions, paths).items():
        each = []
        for group in groups:
            q, g = np.isin(caption_pids, group), np.isin(image_pids, group)
            each.append(_scores(similarity[q][:, g], caption_pids[q], image_pids[g]))
        scores[name] = {k: sum(e[k] for e in each) / len(each) for k in each[0]}
    return scores


# --- command line -------------------------------------------------------------------------------------------------

class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def _parser():
    parser = _Parser(prog='synthpedes', description='Make a dataset of procedural pedestrians, or look at one.')
    parser.add_argument('--out', help='root folder; the dataset becomes <out>/<format>')
    parser.add_argument('--ids', type=int, help='number of identities, of all splits together')
    parser.add_argument('--images_per_id', type=int, default=4)
    parser.add_argument('--captions_per_image', type=int, help="the format's own by default: 1 for ICFG-PEDES, else 2")
    parser.add_argument('--size', type=int, nargs=2, default=(384, 128), metavar=('H', 'W'),
                        help='image size in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--format', default='synthpedes', help=f'one of {", ".join(FORMATS)}')
    parser.add_argument('--val_ids', type=int,
                        help='identities of the val split, by default a tenth (ICFG-PEDES: none)')
    parser.add_argument('--test_ids', type=int, help='identities of the test split, by default a fifth')
    parser.add_argument('--workers', type=int,
                        help='processes, by default as many as cores; they change nothing in the result')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace a folder that synthpedes made with other settings')
    for name, (default, low, high, what) in KNOBS.items():
        parser.add_argument(f'--{name}', type=type(default), default=default,
                            help=f'{what} ({low} to {high}, default {default})')
    parser.add_argument('--contact_sheet', metavar='FILE',
                        help='only draw a few identities with a caption under each image')
    parser.add_argument('--baselines', metavar='FOLDER',
                        help='only rate the baselines without learning on a dataset folder')
    parser.add_argument('--split', default='test', help='of --baselines')
    parser.add_argument('--galleries', type=int, default=5, help='of --baselines: mean over so many disjoint galleries')
    parser.add_argument('--ids_per_gallery', type=int, default=100)
    return parser


def _print_baselines(args):
    scores = baselines(args.baselines, args.split, args.galleries, args.ids_per_gallery, args.seed)
    print(f'{args.baselines}, {args.split}: mean of {args.galleries} galleries of {args.ids_per_gallery} identities, '
          'text to image')
    print(f'{"baseline":<16}' + ''.join(f'{k:>8}' for k in ('R1', 'R5', 'R10', 'mAP')))
    for name, score in scores.items():
        print(f'{name:<16}' + ''.join(f'{score[k]:8.2f}' for k in ('R1', 'R5', 'R10', 'mAP')))


def contact_sheet(path, settings, identities=8):
    """Save a picture of a few identities, two a row, each image with one of its captions under it."""
    height, width = settings['size']
    cell, text, shown = max(width, 170), 120, settings['images_per_id']
    sheet = Image.new('RGB', (cell * shown * 2 + 20, (height + text) * -(-identities // 2)), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index in range(identities):
        _, _, shots = make_identity(settings, index, 0, identities)
        for number, (image, captions, _) in enumerate(shots):
            left = (number + index % 2 * shown) * cell + index % 2 * 20
            top = index // 2 * (height + text)
            sheet.paste(image, (left + (cell - width) // 2, top))
            lines = _wrap(captions[0], draw, font, cell - 8)
            draw.multiline_text((left + 4, top + height + 3), lines, 'black', font, spacing=1)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f'cannot write the contact sheet {path}: {error}') from error


def _wrap(text, draw, font, width):
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if draw.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return '\n'.join(lines)


def _terminate(signum, frame):
    raise KeyboardInterrupt


def main(argv=None):
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)  # cleans up as Ctrl-C does
    if args.baselines:
        _print_baselines(args)
        return 0
    knobs = {name: getattr(args, name) for name in KNOBS}
    if args.contact_sheet:
        settings = _settings(args.ids or 60, args.images_per_id, args.captions_per_image, args.size, args.seed,
                             args.format, None, None, knobs)
        contact_sheet(args.contact_sheet, settings)
        return 0
    if args.out is None or args.ids is None:
        raise UserError('--out and --ids are needed (or --baselines, or --contact_sheet)')
    folder = generate(args.out, args.ids, args.images_per_id, args.captions_per_image, tuple(args.size), args.seed,
                      args.format, args.val_ids, args.test_ids, args.workers, args.overwrite, **knobs)
    print(f'synthpedes: {folder}')
    return 0


if __name__ == '__main__':
    errors.run(main)

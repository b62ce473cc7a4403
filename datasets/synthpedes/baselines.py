"""Baselines without learning: how well color words alone rank images. A trained model must be better."""
import os
import re

import numpy as np
import torch
from PIL import Image

from datasets.registry import datasets
from datasets.synthpedes import people
from utils.errors import UserError
from utils.iotools import read_image
from utils.retrieval_metrics import compute_metrics
from utils.seeding import derive_seed

UPPER_NOUNS = frozenset('t-shirt tee shirt top blouse polo sweater pullover jumper hoodie sweatshirt jacket coat '
                        'overcoat cardigan vest dress'.split())
LOWER_NOUNS = frozenset('trousers pants slacks jeans leggings shorts skirt dress'.split())
OTHER_NOUNS = frozenset('hair ponytail bun shoes sneakers trainers boots sandals backpack rucksack bag handbag purse '
                        'cap beanie hat scarf'.split())
_BASE_COLORS = {'gray': 'grey', 'navy': 'blue', 'maroon': 'red', 'burgundy': 'red', 'charcoal': 'grey',
                'violet': 'purple', 'lavender': 'purple', 'lilac': 'purple', 'tan': 'beige', 'khaki': 'beige',
                'cream': 'beige', **{color: color for color in people.COLORS}}


def count_caption_colors(caption):
    """Count the base colors of a caption.

    A color word belongs to the next garment, hair, shoe or bag in the same clause, else to the one before it.

    Returns:
        Counts [12] in the order of ``COLORS``: in the caption, at upper garments, and at lower garments.
    """
    counts = {part: np.zeros(len(people.COLORS)) for part in ('all', 'upper', 'lower')}
    all_nouns = UPPER_NOUNS | LOWER_NOUNS | OTHER_NOUNS
    for clause in re.split(r'[.,;]', caption.lower()):
        words = re.findall(r'[a-z-]+', clause)
        nouns = [i for i, word in enumerate(words) if word in all_nouns]
        for i, word in enumerate(words):
            if word not in _BASE_COLORS:
                continue
            color = people.COLORS.index(_BASE_COLORS[word])
            counts['all'][color] += 1
            closest = [noun for noun in nouns if noun > i][:1] or nouns[-1:]
            for part, names in (('upper', UPPER_NOUNS), ('lower', LOWER_NOUNS)):
                counts[part][color] += bool(closest) and words[closest[0]] in names
    return counts['all'], counts['upper'], counts['lower']


def measure_image_colors(path):
    """Fractions [12] of base colors in the image, in the band of the upper garment, and in that of the lower one."""
    pixels = np.asarray(read_image(path).resize((32, 96), Image.BOX), np.float32)  # [96, 32, 3]
    tones = list(people.TONES)
    rgb = np.array([people.TONES[t][0] for t in tones], np.float32)
    nearest = ((pixels[:, :, None] - rgb) ** 2).sum(-1).argmin(-1)  # [96, 32]
    color = np.array([people.COLORS.index(people.base_color(t)) for t in tones])[nearest]

    def fractions(area):
        return np.bincount(area.ravel(), minlength=len(people.COLORS)) / area.size
    return fractions(color), fractions(color[19:46, 9:23]), fractions(color[50:76, 9:23])


def _cosine(a, b):
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (a, b))
    return a @ b.T


def baseline_similarities(captions, img_paths):
    """Compute similarities of captions and images without learning.

    Returns:
        ``{'whole image': [Q, G], 'garment bands': [Q, G]}``. 'whole image' is the cosine of the caption's color words
        and the image's colors. 'garment bands' is the mean of two such cosines, for the upper and the lower garment: of
        the color words at the garment and the colors in the band of a pedestrian crop that shows it.
    """
    words = [np.array(part) for part in zip(*map(count_caption_colors, captions))]  # 3 x [Q, 12]
    fractions = [np.array(part) for part in zip(*map(measure_image_colors, img_paths))]  # 3 x [G, 12]
    image, upper, lower = (_cosine(q, g) for q, g in zip(words, fractions))
    return {'whole image': image, 'garment bands': (upper + lower) / 2}


def sample_galleries(pids, count, ids_per_gallery, seed=0):
    """Sample ``count`` disjoint galleries of ``ids_per_gallery`` identities each: sorted lists of pids.

    Raises:
        UserError: there are too few identities.
    """
    unique_pids = sorted({int(p) for p in pids})
    if count < 1 or ids_per_gallery < 1 or count * ids_per_gallery > len(unique_pids):
        raise UserError(f'{count} galleries of {ids_per_gallery} identities need {count * ids_per_gallery} identities, '
                        f'there are {len(unique_pids)}')
    order = np.random.RandomState(derive_seed(seed) % 2 ** 32).permutation(len(unique_pids))
    return [sorted(unique_pids[i] for i in order[k * ids_per_gallery:(k + 1) * ids_per_gallery]) for k in range(count)]


def read_split(folder, split):
    """Read a split of a dataset's folder, in any format and with any name.

    Returns:
        ``(captions, their pids, image paths, their pids)``.
    """
    annotations = [(cls, path) for cls in datasets().values() for name in cls.annotations
                   if os.path.exists(path := os.path.join(folder, name))]
    if not annotations:
        names = sorted({name for cls in datasets().values() for name in cls.annotations})
        raise UserError(f'{folder} has none of the annotations {", ".join(names)}')
    cls, path = annotations[0]
    entries = [entry for entry in cls.load_entries(path) if entry['split'] == split]
    if not entries:
        raise UserError(f'{path} has no entries in split {split!r}')
    captions = [(caption, entry['id']) for entry in entries for caption in entry['captions']]
    images = [(os.path.join(folder, 'imgs', entry[cls.image_key]), entry['id']) for entry in entries]
    return (*map(list, zip(*captions)), *map(list, zip(*images)))


def baseline_scores(folder, split='test', count=5, ids_per_gallery=100, seed=0):
    """Evaluate the baselines: ``{baseline: {'R1', 'R5', 'R10', 'mAP'}}``, means over ``count`` galleries."""
    captions, caption_pids, paths, image_pids = read_split(folder, split)
    caption_pids, image_pids = np.array(caption_pids), np.array(image_pids)
    groups = sample_galleries(image_pids, count, ids_per_gallery, seed)
    scores = {}
    for name, similarity in baseline_similarities(captions, paths).items():
        gallery_scores = []
        for group in groups:
            queries, images = np.isin(caption_pids, group), np.isin(image_pids, group)
            gallery_scores.append(compute_metrics(*map(torch.from_numpy, (
                similarity[queries][:, images], caption_pids[queries], image_pids[images]))))
        scores[name] = {metric: sum(score[metric] for score in gallery_scores) / len(gallery_scores)
                        for metric in ('R1', 'R5', 'R10', 'mAP')}
    return scores

"""What all datasets share: the annotation and its checks, and the torch Datasets that the loaders read."""
import functools
import itertools
import logging
import os
import random
from bisect import bisect_right
from collections import Counter, defaultdict

import numpy as np
import torch
from prettytable import PrettyTable
from torch.utils.data import Dataset, default_collate
from torchvision import transforms as T
from torchvision.transforms.functional import to_pil_image

from datasets.attributes import annotate_all, load_tagger
from datasets.augmentation import apply_seeded, simclr_transforms
from datasets.captions import MAX_CAPTION_LENGTH, caption_problem, is_encodable, looks_like_list
from datasets.entries import open_entries
from datasets.fields import FIELDS, CaptionSample
from datasets.array_cache import Strings, get_captions, compute_key, load_or_make_arrays
from datasets.published_splits import split_note
from datasets.released_lists import aptm_list_files, read_aptm_list, read_tbps_list, tbps_list_files
from datasets.truncation import warn_of_truncation
from datasets.transforms import as_tensor, sample_rand_augmentation, sample_augmentation
from utils import pixels as known_pixels
from utils.errors import UserError, unknown
from utils.iotools import read_image, read_json
from utils.seeding import derive_seed
from utils.simple_tokenizer import END, MASK, START, SimpleTokenizer, clean

logger = logging.getLogger('Pedestal.dataset')

SPLITS = ('train', 'val', 'test')
IMAGE_FIELDS = 'second_images', 'simclr_images'   # what heads may ask for of a sample's image, beside datasets.fields
SECOND_VIEW_KEY, SIMCLR_VIEW_KEYS = 1, (2, 3)                         # what their draws' seeds are derived with


# -- annotations -------------------------------------------------------------------------------------------------------

class BaseDataset:
    """A dataset's folder ``<root>/<name>/``: images below ``imgs/``, beside them the annotation, a JSON list of
    ``{id, split, captions, <image_key>}``. A subclass says what is called how.

    Args:
        root: the folder that holds the datasets' folders.
        verbose: log the table of identities, images and captions.
        splits: the splits that are going to be used: their images must all be there.
        skip_broken: leave out missing training images and log how many, instead of raising.

    Attributes:
        train: list of ``(pid, image_id, image path, caption)``, one entry a caption; pids are 0..C-1, ``image_id`` is
            the number of the image's entry. Of a large annotation a sequence of such (:class:`datasets.array_cache.Samples`).
        train_annos, val_annos, test_annos: the entries of the splits, a list of dicts; of a large annotation a sequence of such.
        listed: {split: the entries' fields as arrays}, :class:`datasets.entries.Entries`.
        val, test: ``{'image_pids', 'img_paths', 'caption_pids', 'captions'}``, lists in the annotation's order, pids as
            annotated.
        train_id_container, val_id_container, test_id_container: sets of the pids.

    Raises:
        UserError: folder, annotation or images are missing, or the annotation breaks its form.
    """
    name = ''                # of the folder, and for --dataset_name
    annotations = ()         # file names of the annotation; the first one that is there is read
    unusable_annotations = {}          # {file name: what to do} of files that people have instead of the annotation
    image_key = 'file_path'
    first_pid = 0            # where the training identities' numbers begin
    published = {}           # {split: (identities, images, captions)} as its paper gives them: datasets.published_splits compares
    captions_per_image = 2   # of a stand-in that datasets.synthpedes writes in this format
    has_val = True           # does a stand-in have a val split?
    evaluates_attributes = False       # are its attributes what is measured, instead of retrieval?
    has_captions = True         # do its images have captions?
    released_stem = ''       # of APTM's lists <root>/finetune/<stem>_<split>.json: they or TBPS-CLIP's are read without an annotation

    def __init__(self, root='', verbose=True, splits=SPLITS, skip_broken=False):
        self.dataset_dir, self.anno_path = self.locate(root)
        self.img_dir = self.image_folder(self.dataset_dir)
        self.split_entries, annos = open_entries(type(self), self.anno_path, SPLITS, MIN_CACHED_CAPTIONS)
        self.is_memory_mapped = annos['train'] is self.split_entries['train']
        left_out = {path for split in SPLITS if split in splits for path in self._find_missing_images(split, skip_broken)}
        if left_out:
            there = [path not in left_out for path in self.split_entries['train'].paths(self.img_dir)]
            self.split_entries['train'] = self.split_entries['train'].filter(is_present)
            annos['train'] = self.split_entries['train'] if self.is_memory_mapped else list(itertools.compress(annos['train'], there))
        self.train_annos, self.val_annos, self.test_annos = (annos[split] for split in SPLITS)

        self.train, self.train_id_container = self._build_training_samples(self.split_entries['train'])
        self.val, self.val_id_container = self._build_evaluation_samples(self.split_entries['val'])
        self.test, self.test_id_container = self._build_evaluation_samples(self.split_entries['test'])
        if verbose:
            logger.info('%s\n%s', self.dataset_dir, self.format_counts())
            for note in filter(None, (split_note(self, split, self.counts(split)) for split in SPLITS if split in splits)):
                logger.info('%s; its figures compare with no published ones', note)

    @classmethod
    def locate(cls, root):
        """``(folder, path of the annotation)``."""
        folder = os.path.join(root, cls.name)
        paths = [os.path.join(folder, name) for name in cls.annotations]
        stand_in = ('or make a stand-in with: '
                    f'python -m datasets.synthpedes --out {root or "."} --format {cls.name} --ids 300')
        if cls.released_stem and not any(map(os.path.exists, paths)):
            for home, lists in ((root, aptm_list_files(root, cls.released_stem)), (folder, tbps_list_files(folder))):
                if lists:
                    return home, next(iter(lists.values()))
        if not os.path.isdir(folder):
            raise UserError(f'no dataset folder {folder}: it should hold {cls.annotations[0]} and imgs/; '
                            f'point --root_dir at the folder that holds {cls.name}/, {stand_in}')
        for path in paths:
            if os.path.exists(path):
                return folder, path
        for name, what in cls.unusable_annotations.items():
            if os.path.exists(os.path.join(folder, name)):
                raise UserError(f'{os.path.join(folder, name)} {what}')
        raise UserError(f"no annotation {' or '.join(paths)}: put it beside imgs/, {stand_in}")

    @classmethod
    def image_folder(cls, folder):
        """Where the images are, of a dataset in ``folder``: in ``imgs``, or where APTM's layout has them."""
        released = os.path.join(folder, 'images', cls.name)
        if cls.released_stem and not os.path.isdir(os.path.join(folder, 'imgs')) and os.path.isdir(released):
            folder = released
            return os.path.join(folder, 'imgs') if os.path.isdir(os.path.join(folder, 'imgs')) else folder
        return os.path.join(folder, 'imgs')

    @classmethod
    def read(cls, path, wrong=None):
        """The annotation as a list of ``{id, split, captions, <image_key>}``, yet unchecked. A dataset whose file has another form turns
        it into this one here. ``wrong``: a list that takes what is wrong with rows that make no entry, for :mod:`datasets.check` to list;
        without it the first of them raises. A dataset's own ``read`` may do without."""
        folder, name = os.path.split(path)
        if cls.released_stem and name.startswith(f'{cls.released_stem}_'):
            lists = aptm_list_files(os.path.dirname(folder), cls.released_stem)
            entries = [entry for split, file in lists.items() for entry in read_aptm_list(file, split, wrong=wrong)]
        elif cls.released_stem and name.endswith('_reid.json'):
            lists = tbps_list_files(folder)
            entries = [entry for split, file in lists.items() for entry in validate_entries(read_tbps_list(file, split), file, 'file_path')]
        else:
            return read_entries(path)
        return [{**entry, cls.image_key: entry['file_path']} for entry in entries]

    @classmethod
    def files(cls, path):
        """All that :meth:`read` reads. A class that reads otherwise says its files, too, or each start reads them anew."""
        folder = os.path.dirname(path)
        lists = {**aptm_list_files(os.path.dirname(folder), cls.released_stem), **tbps_list_files(folder)} if cls.released_stem else {}
        return list(lists.values()) if path in lists.values() else [path]

    @classmethod
    def load_entries(cls, path):
        """The annotation's entries, and in the log what is odd about them; :class:`UserError` where one is not of the right form."""
        entries = cls.read(path)
        path = path if len(cls.files(path)) == 1 else os.path.dirname(path)
        validate_entries(entries, path, cls.image_key, cls.has_captions)
        shared = shared_identities(entries)
        if shared:
            pid, found = next(iter(shared.items()))
            logger.warning('%s: %d identities are in more than one split, the first of them, %d, in %s',
                           path, len(shared), pid, ' and '.join(found))
        special = special_captions(entries)
        if special:
            number, token = special[0]
            logger.warning("%s: %d captions hold %s or the like as text, which the tokenizer takes for a token of its own, the first of "
                           'them in entry %d (counted from 0)', path, len(special), token, number)
        repeated = repeated_images(entries, cls.image_key)
        if repeated:
            logger.warning('%s: %d images are listed more than once, the first of them %s; each time counts',
                           path, len(repeated), next(iter(repeated)))
        return entries

    def attributes(self, split):
        """``(labels int8 [images, A] of 1, 0 and -1 for unknown, [(prompt where a label is 0, where it is 1)])`` of a split's images, in
        the order of ``<split>_annos``; None of a dataset without attributes."""

    def image_path(self, entry):
        return os.path.join(self.img_dir, entry[self.image_key])

    def _find_missing_images(self, split, skip_broken):
        """The images of a split that aren't there, where they may be left out; else none may be missing."""
        entries = self.split_entries[split]
        missing = missing_files(entries.paths(self.img_dir))
        if not missing:
            return missing
        what = f'{len(missing)} of {len(entries)} {split} images are missing, the first of them: {", ".join(missing[:3])}'
        if '\\' in missing[0] and not missing_files([missing[0].replace('\\', '/')]):
            what += f'; they are there with / instead of \\: write the paths in {self.anno_path} so'
        if split != 'train' or not skip_broken:
            hint = '; --skip_broken leaves them out' if split == 'train' else ''
            raise UserError(f'{what} (python -m datasets.check --dataset_name {self.name} lists all){hint}')
        logger.warning('%s; they are left out', what)
        return missing

    def _build_training_samples(self, entries):
        numbers, count = renumber_pids(entries.ids - self.first_pid, self.anno_path)
        samples = entries.samples(numbers, self.img_dir)
        return samples if self.is_memory_mapped else list(samples), set(range(count))

    def back_translations(self):
        """{(image_id, caption): back-translation} of the training captions that have one (``captions_bt``)."""
        if self.is_memory_mapped and not self.train_annos.may_have_field('captions_bt'):
            return {}
        return {(image_id, caption): translated for image_id, entry in zip(self.split_entries['train'].rows.tolist(), self.train_annos)
                for caption, translated in zip(entry['captions'], entry.get('captions_bt', ()))}

    def _build_evaluation_samples(self, entries):
        return {'image_pids': entries.ids.tolist(), 'img_paths': list(entries.paths(self.img_dir)),
                'caption_pids': np.repeat(entries.ids, entries.counts).tolist(), 'captions': list(entries.captions())
                }, set(entries.ids.tolist())

    def format_counts(self):
        """The table of identities, images and captions in each split, as text."""
        table = PrettyTable(['split', 'identities', 'images', 'captions'])
        for split in SPLITS:
            table.add_row([split, *self.counts(split)])
        return table.get_string()

    def counts(self, split):
        """``(identities, images, captions)`` of a split."""
        listed = self.split_entries[split]
        return len(np.unique(listed.ids)), len(listed), int(listed.counts.sum())


def count_entries(entries):
    """``(identities, images, captions)``; an image is counted once for each entry."""
    return len({entry['id'] for entry in entries}), len(entries), sum(len(entry['captions']) for entry in entries)


def validate_entries(entries, path, image_key, has_captions=True):
    """An annotation's entries, each of the right form; the first that isn't raises :class:`UserError`."""
    problems = [(number, problem) for number, entry in enumerate(entries)
                if (problem := entry_problem(entry, image_key, has_captions))]
    if problems:
        number, problem = problems[0]
        more = f' (and {len(problems) - 1} other entries are wrong, too)' if problems[1:] else ''
        raise UserError(f'{path}: entry {number} (counted from 0) {problem}{more}')
    return entries


def read_entries(path):
    """The annotation's entries as they are."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f'{path} must hold a list of entries, and holds a {type(entries).__name__}')
    if not entries:
        raise UserError(f'{path} holds no entries')
    return entries


def entry_problem(entry, image_key, has_captions=True):
    """What is wrong with an annotation's entry, or None. ``has_captions``: whether its captions are to be more than nothing."""
    if not isinstance(entry, dict):
        return f'is a {type(entry).__name__} instead of a mapping'
    for field, kind in (('id', int), ('split', str), ('captions', list), (image_key, str)):
        if field not in entry:
            return f"has no field '{field}'"
        if not isinstance(entry[field], kind) or isinstance(entry[field], bool):
            return f"has a '{field}' that is a {type(entry[field]).__name__} instead of a {kind.__name__}"
    if not 0 <= entry['id'] < 2 ** 31:
        return f"has the impossible id {entry['id']}"
    if entry['split'] not in SPLITS:
        return f"has the {unknown('split', entry['split'], SPLITS)}"
    if not entry['captions']:
        return 'has no captions'
    for number, caption in enumerate(entry['captions'], start=1):
        if not isinstance(caption, str):
            return f'has a caption {number} that is a {type(caption).__name__} instead of text'
        if looks_like_list(caption):
            return f'has a caption {number} that is a list written as one text: write a JSON list, without quote marks'
        if has_captions and (problem := caption_problem(caption)):
            return f'has {problem} (number {number})'
    translated = entry.get('captions_bt', entry['captions'])
    if not isinstance(translated, list) or len(translated) != len(entry['captions']) or not all(isinstance(t, str) for t in translated):
        return f"has 'captions_bt' that are no list of {len(entry['captions'])} texts, a back-translation of each caption"
    return path_problem(entry[image_key], image_key)


def special_tokens(caption):
    """Those of the tokenizer's own tokens that a caption holds as text, which it would take for its own: a list of names."""
    if '<' not in caption and '&' not in caption:   # quick, as nearly all are
        return []
    text = clean(caption)
    return [token for token in (START, MASK, END) if token in text]


def special_captions(entries):
    """``[(number of the entry, token), ...]`` of captions that hold one of the tokenizer's own tokens as text."""
    return [(number, token) for number, entry in enumerate(entries) for caption in entry['captions'] for token in special_tokens(caption)]


def path_problem(path, image_key, folder='imgs/'):
    """Describe the problem of an image's path, which lies below ``folder``; None if there is none.

    ``image_key``: the field or column that holds the path.
    """
    if not path.strip() or '\0' in path or not is_encodable(path):
        return f"has an empty or impossible '{image_key}': {path!r}"
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        return f"has a '{image_key}' outside of {folder}: {path}"
    return None


def shared_identities(entries):
    """``{pid: [its splits]}`` of the identities in more than one split."""
    found = defaultdict(set)
    for entry in entries:
        found[entry['id']].add(entry['split'])
    return {pid: [split for split in SPLITS if split in splits] for pid, splits in found.items() if len(splits) > 1}


def repeated_images(entries, image_key):
    """Count the images that are listed more than once, however their paths are spelled: ``{path: count}``."""
    times = Counter(os.path.normpath(entry[image_key]) for entry in entries)
    return {path: count for path, count in times.items() if count > 1}


def missing_files(paths):
    """Those of ``paths`` that don't exist, in order. Lists each folder once, which is quick on network disks, too."""
    @functools.lru_cache(maxsize=None)
    def listing(folder):
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()

    def is_there(path):
        folder, name = os.path.split(path)
        return name in listing(folder) or os.path.exists(path)
    return [path for path in paths if not is_there(path)]


def renumber_pids(pids, source):
    """Numbers 0..C-1 in the order of the ``pids`` [N], int64 [N], and C; logs a change."""
    there, numbers = np.unique(np.asarray(pids, dtype=np.int64), return_inverse=True)
    if (there != np.arange(len(there))).any():
        logger.info("%s: training labels its %d identities 0 to %d, in the order of their numbers, which have gaps",
                    source, len(there), len(there) - 1)
    return numbers, len(there)


def renumber_samples(samples, source):
    """Training samples with pids 0..C-1 in the order of the given ones, and the set of pids; logs a change."""
    numbers, count = renumber_pids([pid for pid, *_ in samples], source)
    return [(number, *rest) for number, (_, *rest) in zip(numbers.tolist(), samples)], set(range(count))


def limit_training_samples(samples, count, source, sizes=None):
    """The first ``count`` training samples (captions), their identities renumber_samples from 0, and the set of pids.

    Args:
        samples: training samples.
        count: how many are kept.
        source: the annotation, for the log.
        sizes: samples of each dataset, if ``samples`` joins several: each keeps its part of ``count``.
    """
    sizes = sizes or [len(samples)]
    counts = proportional_counts(min(count, sum(sizes)), sizes)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    kept = [sample for start, part in zip(starts, counts) for sample in samples[start:start + part]]
    several = f' ({" + ".join(map(str, counts))} of the datasets)' if len(sizes) > 1 else ''
    logger.info('--limit_train: the first %d of %d training captions%s', len(kept), len(samples), several)
    return renumber_samples(kept, source)


def proportional_counts(total, sizes):
    """``total`` divided among datasets by their ``sizes``, at least 1 of each if that is possible.

    >>> proportional_counts(10, [90, 30]), proportional_counts(3, [1000, 1])
    ([8, 2], [2, 1])
    """
    shares = [total * size / sum(sizes) for size in sizes]
    counts = [max(int(share), min(size, 1)) for share, size in zip(shares, sizes)]
    while sum(counts) < total:      # the largest remainder first
        counts[max(range(len(sizes)), key=lambda part: shares[part] - counts[part])] += 1
    while sum(counts) > total:
        counts[max(reversed(range(len(sizes))), key=counts.__getitem__)] -= 1
    return counts


# -- torch Datasets ----------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def default_tokenizer():
    return SimpleTokenizer()


def tokenize(caption, tokenizer, text_length=77, truncate=True):
    """A caption as start, token ids, end and padding (CLIP's is 0): int64 [text_length].

    A longer caption is cut and its last id is the end; with ``truncate=False`` it raises :class:`UserError`, and so does one of more
    than 10,000 characters.

    >>> from utils.simple_tokenizer import SimpleTokenizer
    >>> tokenize('a red coat', SimpleTokenizer(), text_length=8)
    tensor([49406,   320,   736,  7356, 49407,     0,     0,     0])
    """
    if len(caption) > MAX_CAPTION_LENGTH:
        raise UserError(f"caption of {len(caption):,} characters, and at most {MAX_CAPTION_LENGTH:,} are read: '{caption[:50]}...'")
    ids = tokenizer.encode(caption)
    if not truncate and len(tokenizer.framed(ids, MAX_CAPTION_LENGTH + 2)) > text_length:
        raise UserError(f"caption of {len(tokenizer.framed(ids, MAX_CAPTION_LENGTH + 2))} tokens is longer than the text length {text_length}: "
                        f"'{caption}'")
    ids = tokenizer.framed(ids, text_length)
    result = torch.full((text_length,), getattr(tokenizer, 'pad', 0), dtype=torch.long)
    result[:len(ids)] = torch.tensor(ids)
    return result


MIN_CACHED_CAPTIONS = 50_000   # captions whose tokens are kept for the next start


def tokenize_all(captions, text_length, truncate=True, tokenizer=None, folder=None):
    """All captions, once and before workers start: int32 [S, L], which they then share.

    Of 50,000 captions and more the tokens are kept in ``folder``, memory-mapped, for the next start. They are made anew when a caption, the
    vocabulary or the length is another (:func:`datasets.array_cache.load_or_make_arrays`).
    """
    tokenizer = tokenizer or default_tokenizer()

    def make():
        tokens = torch.zeros(len(captions), text_length, dtype=torch.int32)
        for row, caption in zip(tokens, captions):
            row.copy_(tokenize(caption, tokenizer, text_length, truncate))
        return tokens
    if folder is None or len(captions) < MIN_CACHED_CAPTIONS:
        return make()
    strings = captions if isinstance(captions, Strings) else Strings.from_texts(captions)
    key = compute_key(strings.digest(), tokenizer.key, text_length, truncate)
    return torch.from_numpy(load_or_make_arrays(folder, 'tokens', key, lambda: {'tokens': make().numpy()})['tokens'])


class ImageDataset(Dataset):
    """A gallery: ``dataset[i]`` is ``(pid, image)``, out of a ``store`` (:class:`datasets.image_cache.ImageStore`) as it is kept
    there, uint8 [3, H, W]."""

    attributes = None     # (labels int8 [N, A], token ids of the prompts [2A, L]), where attributes are to be recognised
    evaluates_attributes = False    # and nothing else is measured

    def __init__(self, image_pids, img_paths, transform=None, store=None, pixels=None):
        self.image_pids, self.img_paths, self.transform, self.store = image_pids, img_paths, transform, store
        self.pixels = pixels      # mean and standard deviation of its images

    def __len__(self):
        return len(self.image_pids)

    def __getitem__(self, index):
        if self.store is not None:
            return self.image_pids[index], self.store[self.img_paths[index]]
        image = read_image(self.img_paths[index])
        return self.image_pids[index], self.transform(image) if self.transform else image


class TextDataset(Dataset):
    """Queries: ``dataset[i]`` is ``(pid, token ids [L])``."""

    def __init__(self, caption_pids, captions, text_length=77, truncate=True, tokenizer=None, token_folder=None):
        self.caption_pids, self.captions = caption_pids, captions
        self.tokenizer = tokenizer or default_tokenizer()
        self.tokens = tokenize_all(captions, text_length, truncate, self.tokenizer, token_folder)
        warn_of_truncation(captions, self.tokens, self.tokenizer, 'queries')

    @property
    def lengths(self):
        """[S] tokens of each caption, start and end included."""
        return self.tokenizer.lengths(self.tokens)

    def __len__(self):
        return len(self.caption_pids)

    def __getitem__(self, index):
        return self.caption_pids[index], self.tokens[index].long()


class ImageTextDataset(Dataset):
    """Training pairs: ``dataset[index]`` or ``dataset[index, seed]`` is a dict of ``pids, image_ids, images,
    caption_ids`` and the asked-for fields. All that is random in it follows from ``seed`` (from the index where none is given).

    Args:
        dataset: list of ``(pid, image_id, image path, caption)``.
        transform: from a PIL image to a tensor.
        text_length, truncate: see :func:`tokenize`.
        fields: names of further fields that the active heads read, out of :data:`datasets.fields.FIELDS`.
        caption_masking: 'inplace': ``caption_ids`` themselves are masked, as in IRRA's released training, and
            ``mlm_ids`` would be the same; 'clean': captions stay whole and ``mlm_ids`` goes with ``mlm_labels``.
        masked_token_rate, masked_token_unchanged_rate: see :func:`datasets.masking.mask_tokens`.
        attribute_tagger: finds parts of speech, for ``attributes_mask`` and the next two
            (:func:`datasets.attributes.load_tagger`).
        mlm_masking: which tokens are masked: 'random': any; 'noun': nouns and adjectives above all, as SEN does;
            'attention': the model chooses them (:mod:`model.heads.agm`), and captions stay whole here.
        caption_filter: the chance of a caption to be cut down to its nouns, adjectives and pronouns, out of what the text
            length leaves of it and before it is masked (SEN).
        skip_broken: a sample whose image cannot be read becomes ``{'skipped': path}`` for :func:`collate` to leave out.
        store: a :class:`datasets.image_cache.ImageStore` to take the images from, instead of reading and transforming them:
            ``images`` are uint8 [3, H, W] then, and ``augmentation_params`` is what :func:`datasets.device_augmentation.augment_on_device` is to do with them.
        img_aug: what ``augmentation_params`` are drawn for: see :func:`datasets.transforms.build_transforms`.
        tokenizer: CLIP's unless another is given.
        rand_aug: a function that resizes a PIL image, for APTM's augmentation instead of ``transform``'s: images are uint8 with their
            ``augmentation_params``, as out of a ``store``.
        token_folder: where the tokens of many captions are kept, see :func:`tokenize_all`.
        labels: int8 [S, A] of each pair's image, for the field ``attribute_labels``.
        txt_aug: mask, replace and remove words (:func:`datasets.augmentation.perturb_tokens`), before anything is masked for a head; with
            the ``preparation`` 'tbps' delete words as TBPS-CLIP does (:func:`datasets.augmentation.augment_tbps_caption`).
        pixels: the mean and standard deviation of ``simclr_images``.
        parts: ``(smallest image id, transform, pixels)`` of each of several joined datasets, by rising ids, instead of
            one ``transform`` and ``pixels``. If ``images`` are uint8, ``image_stats`` go with them: float32 [2, 3],
            their mean and standard deviation.
        translations: {(image_id, caption): its back-translation}, for TBPS-CLIP.

    Raises:
        UserError: an unknown field; at indexing, an image that cannot be read.
    """

    def __init__(self, dataset, transform=None, text_length=77, truncate=True, fields=(), caption_masking='clean',
                 masked_token_rate=0.8, masked_token_unchanged_rate=0.1, skip_broken=False, attribute_tagger='textblob',
                 mlm_masking='random', caption_filter=0.0, store=None, img_aug=False, tokenizer=None, rand_aug=None, labels=None,
                 token_folder=None,
                 txt_aug=False, preprocessing='irra', pixels=known_pixels.CLIP, back_translations=None, parts=None):
        for field in fields:
            if field not in FIELDS and field not in IMAGE_FIELDS:
                raise unknown('batch field, asked for by a head and made by no dataset:', field, [*FIELDS, *IMAGE_FIELDS])
        if caption_masking not in ('inplace', 'clean'):
            raise unknown('caption masking', caption_masking, ('inplace', 'clean'))
        if mlm_masking not in ('random', 'attention', 'noun'):
            raise unknown('mlm masking', mlm_masking, ('random', 'attention', 'noun'))
        parts = parts or [(0, transform, pixels)]
        self.first_image_ids = [first for first, _, _ in parts]
        self.transforms = [transform for _, transform, _ in parts]
        self.statistics = [torch.tensor([pixels.mean, pixels.std]) for _, _, pixels in parts]
        (_, transform, pixels), *_ = parts
        self.dataset, self.transform, self.skip_broken = dataset, transform, skip_broken
        self.store, self.img_aug, self.rand_aug, self.labels = store, img_aug, rand_aug, labels
        self.txt_aug, self.preprocessing, self.back_translations, self.pixels = txt_aug, preparation, translations or {}, pixels
        if txt_aug and preprocessing == 'tbps' and not self.back_translations:
            logger.info("no caption has a back-translation ('captions_bt', which TBPS-CLIP's train_reid.json has): words are deleted, "
                        'and no caption is replaced')
        self.tokenizer, self.text_length = tokenizer or default_tokenizer(), text_length
        self.fields, self.masks_in_place = set(fields), caption_masking == 'inplace'
        if 'mlm_labels' in self.fields and not self.masks_in_place:
            self.fields.add('mlm_ids')
        self.mlm_masking, self.caption_filter = mlm_masking, caption_filter
        self.simclr = None
        if 'simclr_images' in self.fields:
            size = store.img_size if store is not None else transform_size(transform)
            self.simclr = [simclr_transforms(size, (pixels.mean, pixels.std)) for _, _, pixels in parts]
        self.masks_captions = mlm_masking != 'attention' and (self.masks_in_place or any(FIELDS[name].uses_masking for name in self.fields & FIELDS.keys()))
        self.field_names = [name for name, field in FIELDS.items()
                     if (name == 'caption_ids' or name in self.fields) and (self.masks_captions or not field.uses_masking)]
        self.mask_rates = masked_token_rate, masked_token_unchanged_rate
        self.mask_id = self.tokenizer.mask
        captions = get_captions(dataset)
        self.tokens = tokenize_all(captions, text_length, truncate, self.tokenizer, token_folder)
        warn_of_truncation(captions, self.tokens, self.tokenizer, 'training captions')
        if any(FIELDS[name].uses_tags for name in self.field_names) or caption_filter or self.masks_captions and mlm_masking == 'noun':
            if preprocessing == 'tbps':
                raise UserError('--preparation tbps cleans captions, and parts of speech (the loss attribute, --mlm_masking noun, '
                                '--caption_filter) are those of captions as they are: leave one of the two out')
            self.attributes, self.parts = annotate_all(captions, default_tokenizer(), load_tagger(attribute_tagger), text_length)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, derive_seed(key))
        pid, image_id, path, _ = self.dataset[index]
        try:
            image = self.image_fields(path, seed, bisect_right(self.first_image_ids, image_id) - 1)
        except UserError as error:
            if not self.skip_broken:
                raise UserError(f'{error} (python -m datasets.check lists all such images, --skip_broken leaves them out)') from None
            return {'skipped': path}
        return {'pids': pid, 'image_ids': image_id, 'index': index, **image, **self.text_fields(index, random.Random(seed))}

    def image_fields(self, path, seed, part=0):
        """What a sample carries of its image: one view, and further ones if a head asks for them.

        ``part``: the number of the joined dataset that the image belongs to.
        """
        image = read_image(path) if self.store is None else self.store[path]
        transform = self.transforms[part]
        fields = self.augment_view(image, seed, transform)
        if len(self.statistics) > 1 and 'augmentation_params' in fields:
            fields['image_stats'] = self.statistics[part]
        if 'second_images' in self.fields:
            second = self.augment_view(image, derive_seed(seed, SECOND_VIEW_KEY), transform)
            fields.update({f'second_{name}': value for name, value in second.items()})
        if 'simclr_images' in self.fields:
            whole = image if self.store is None else to_pil_image(image)
            views = [apply_seeded(self.simclr[part], whole, seed, number) for number in SIMCLR_VIEW_KEYS]
            fields['simclr_images'] = torch.stack(views)   # [2, 3, H, W]
        return fields

    def augment_view(self, image, seed, transform):
        """``images`` and, where they are finished on the device, ``augmentation_params`` of a PIL image, or of a uint8 tensor out of the store."""
        if self.rand_aug is not None:
            image = image if self.store is not None else as_tensor(self.rand_aug(image))
            return dict(zip(('images', 'augmentation_params'), sample_rand_augmentation(image, seed)))
        if self.store is None:
            return {'images': apply_transform(image, seed, transform)}
        if self.preprocessing == 'tbps':   # its draws are not those of datasets.device_augmentation
            return {'images': apply_transform(to_pil_image(image), seed, transform)}
        return {'images': image, 'augmentation_params': sample_augmentation(self.store.img_size, self.img_aug, seed)}

    def tokenize_caption(self, caption):
        """A caption's token ids, int64 [L]."""
        return tokenize(caption, self.tokenizer, self.text_length)

    def text_fields(self, index, rng):
        """What a sample carries of its caption: see :mod:`datasets.fields`."""
        sample = CaptionSample(self, index, rng)
        return {name: FIELDS[name](sample) for name in self.field_names}


def apply_transform(image, seed, transform):
    """The transformed image; torch's global generator is as it was afterwards."""
    if transform is None:
        return image
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU, too
        return transform(image)


def transform_size(transform):
    """(H, W) of the images that a ``Compose`` makes."""
    return next(step.size for step in transform.transforms if isinstance(step, T.Resize))


# IRRA's name for the pairs that its --MLM trains on.
ImageTextMLMDataset = functools.partial(ImageTextDataset, fields=('mlm_ids', 'mlm_labels'), caption_masking='inplace')


def collate(samples):
    """Training samples to a batch. Broken ones are left out and their paths listed under 'skipped', a key that is only
    there if any are; a batch of nothing else has no other key."""
    whole = [sample for sample in samples if 'skipped' not in sample]
    skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
    batch = default_collate(whole) if whole else {}
    return {**batch, 'skipped': skipped} if skipped else batch

"""Base classes of all datasets: annotations with their checks, and the torch Datasets of the data loaders."""
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

from datasets.array_cache import Strings, compute_key, get_captions, load_or_make_arrays
from datasets.attributes import annotate_all, load_tagger
from datasets.augmentation import apply_seeded, simclr_transforms
from datasets.captions import MAX_CAPTION_LENGTH, caption_problem, is_encodable, looks_like_list
from datasets.entries import open_entries
from datasets.fields import FIELDS, CaptionSample
from datasets.published_splits import split_note
from datasets.released_lists import aptm_list_files, read_aptm_list, read_tbps_list, tbps_list_files
from datasets.transforms import apply_rand_augment, sample_augmentation, to_uint8_tensor
from datasets.truncation import warn_of_truncation
from utils.errors import UserError, unknown_name_error
from utils.image_stats import CLIP_STATS
from utils.iotools import read_image, read_json
from utils.seeding import derive_seed
from utils.simple_tokenizer import END, MASK, START, SimpleTokenizer, clean_text

logger = logging.getLogger('Pedestal.dataset')

SPLITS = ('train', 'val', 'test')
IMAGE_FIELDS = 'second_images', 'simclr_images'   # image fields for heads; datasets.fields has the text fields
SECOND_VIEW_KEY, SIMCLR_VIEW_KEYS = 1, (2, 3)     # the views' seeds derive from the sample's seed and these keys


# -- annotations -------------------------------------------------------------------------------------------------------

class BaseDataset:
    """A dataset's folder ``<root>/<name>/`` with images in ``imgs/`` and an annotation next to it.

    The annotation is a JSON list of ``{id, split, captions, <image_key>}``. A subclass sets the class attributes below.

    Args:
        root: the folder of the datasets' folders.
        verbose: whether to log the table of identities, images and captions.
        splits: the splits in use. Their images must exist.
        skip_broken: whether missing training images are skipped, with a warning, instead of raising an error.

    Attributes:
        train: a list of ``(pid, image_id, image path, caption)``, one entry per caption. Pids are 0..C-1, and
            ``image_id`` is the index of the image's entry. Large annotations have
            :class:`datasets.array_cache.Samples`.
        train_annos, val_annos, test_annos: the entries of the splits, a list or sequence of dicts.
        split_entries: ``{split: the entries' fields as arrays}``, :class:`datasets.entries.Entries`.
        val, test: ``{'image_pids', 'img_paths', 'caption_pids', 'captions'}``, lists in the annotation's order, with
            the annotation's pids.
        train_id_container, val_id_container, test_id_container: sets of the pids.
        is_memory_mapped: whether the entries are read from memory-mapped arrays.

    Raises:
        UserError: the folder, the annotation or images are missing, or the annotation is invalid.
    """
    name = ''                    # of the folder, and for --dataset_name
    annotations = ()             # file names of the annotation; the first existing file is read
    unusable_annotations = {}    # {file name: what to do} of files that users have instead of the annotation
    image_key = 'file_path'
    first_pid = 0                # the smallest training identity
    published = {}               # {split: (identities, images, captions)} of its paper, for datasets.published_splits
    captions_per_image = 2       # of synthetic data that datasets.synthpedes writes in this format
    has_val = True               # whether such synthetic data has a val split
    evaluates_attributes = False   # whether evaluation measures attributes instead of retrieval
    has_captions = True          # whether its images have captions
    released_stem = ''           # of APTM's lists <root>/finetune/<stem>_<split>.json, read without an annotation

    def __init__(self, root='', verbose=True, splits=SPLITS, skip_broken=False):
        self.dataset_dir, self.anno_path = self.locate(root)
        self.img_dir = self.image_folder(self.dataset_dir)
        self.split_entries, annos = open_entries(type(self), self.anno_path, SPLITS, MIN_CACHED_CAPTIONS)
        self.is_memory_mapped = annos['train'] is self.split_entries['train']
        missing = {path for split in SPLITS if split in splits
                   for path in self._find_missing_images(split, skip_broken)}
        if missing:
            exists = [path not in missing for path in self.split_entries['train'].paths(self.img_dir)]
            self.split_entries['train'] = self.split_entries['train'].filter(exists)
            annos['train'] = (self.split_entries['train'] if self.is_memory_mapped else
                              list(itertools.compress(annos['train'], exists)))
        self.train_annos, self.val_annos, self.test_annos = (annos[split] for split in SPLITS)

        self.train, self.train_id_container = self._build_training_samples(self.split_entries['train'])
        self.val, self.val_id_container = self._build_evaluation_samples(self.split_entries['val'])
        self.test, self.test_id_container = self._build_evaluation_samples(self.split_entries['test'])
        if verbose:
            logger.info('%s\n%s', self.dataset_dir, self.format_counts())
            notes = (split_note(self, split, self.counts(split)) for split in SPLITS if split in splits)
            for note in filter(None, notes):
                logger.info('%s; its results are not comparable with published ones', note)

    @classmethod
    def locate(cls, root):
        """Find ``(folder, path of the annotation)`` below ``root``."""
        folder = os.path.join(root, cls.name)
        paths = [os.path.join(folder, name) for name in cls.annotations]
        hint = ('or make synthetic data: '
                f'python -m datasets.synthpedes --out {root or "."} --format {cls.name} --ids 300')
        if cls.released_stem and not any(map(os.path.exists, paths)):
            candidates = (root, aptm_list_files(root, cls.released_stem)), (folder, tbps_list_files(folder))
            for list_folder, lists in candidates:
                if lists:
                    return list_folder, next(iter(lists.values()))
        if not os.path.isdir(folder):
            raise UserError(f'no dataset folder {folder}: it should hold {cls.annotations[0]} and imgs/; '
                            f'point --root_dir at the folder that holds {cls.name}/, {hint}')
        for path in paths:
            if os.path.exists(path):
                return folder, path
        for name, remedy in cls.unusable_annotations.items():
            if os.path.exists(os.path.join(folder, name)):
                raise UserError(f'{os.path.join(folder, name)} {remedy}')
        raise UserError(f"no annotation {' or '.join(paths)}: put it next to imgs/, {hint}")

    @classmethod
    def image_folder(cls, folder):
        """The folder of the images of a dataset in ``folder``: ``imgs``, or ``images/<name>`` in APTM's layout."""
        released = os.path.join(folder, 'images', cls.name)
        if cls.released_stem and not os.path.isdir(os.path.join(folder, 'imgs')) and os.path.isdir(released):
            folder = released
            return os.path.join(folder, 'imgs') if os.path.isdir(os.path.join(folder, 'imgs')) else folder
        return os.path.join(folder, 'imgs')

    @classmethod
    def read(cls, path, problems=None):
        """Read the annotation as a list of ``{id, split, captions, <image_key>}``, not validated yet.

        A dataset whose annotation has another form overrides this method and converts the annotation.

        Args:
            path: the annotation's path.
            problems: a list that collects the problems of invalid rows for :mod:`datasets.check`; such rows are
                skipped. If it is None, the first problem raises :class:`UserError`. An override can omit this
                parameter.
        """
        folder, name = os.path.split(path)
        if cls.released_stem and name.startswith(f'{cls.released_stem}_'):
            lists = aptm_list_files(os.path.dirname(folder), cls.released_stem)
            entries = [entry for split, file in lists.items()
                       for entry in read_aptm_list(file, split, problems=problems)]
        elif cls.released_stem and name.endswith('_reid.json'):
            lists = tbps_list_files(folder)
            entries = [entry for split, file in lists.items()
                       for entry in validate_entries(read_tbps_list(file, split), file, 'file_path')]
        else:
            return read_entries(path)
        return [{**entry, cls.image_key: entry['file_path']} for entry in entries]

    @classmethod
    def files(cls, path):
        """The paths of all files that :meth:`read` reads.

        A class that overrides ``read`` must also override this method, or its annotation is never cached.
        """
        folder = os.path.dirname(path)
        if not cls.released_stem:
            return [path]
        lists = {**aptm_list_files(os.path.dirname(folder), cls.released_stem), **tbps_list_files(folder)}
        return list(lists.values()) if path in lists.values() else [path]

    @classmethod
    def load_entries(cls, path):
        """Read and validate the annotation's entries, and log what is unusual about them.

        Raises:
            UserError: an entry is invalid.
        """
        entries = cls.read(path)
        path = path if len(cls.files(path)) == 1 else os.path.dirname(path)
        validate_entries(entries, path, cls.image_key, cls.has_captions)
        shared = shared_identities(entries)
        if shared:
            pid, splits = next(iter(shared.items()))
            logger.warning('%s: %d identities are in more than one split, the first of them, %d, in %s',
                           path, len(shared), pid, ' and '.join(splits))
        special = special_captions(entries)
        if special:
            number, token = special[0]
            logger.warning('%s: %d captions hold %s or the like as text, which the tokenizer reads as a special token, '
                           'the first of them in entry %d (counted from 0)', path, len(special), token, number)
        repeated = repeated_images(entries, cls.image_key)
        if repeated:
            logger.warning('%s: %d images are listed more than once, the first of them %s; each entry counts',
                           path, len(repeated), next(iter(repeated)))
        return entries

    def attributes(self, split):
        """The attributes of a split's images; None if the dataset has none.

        Returns:
            ``(labels, prompts)``. Labels are int8 [images, A] in the order of ``<split>_annos``: 1, 0, or -1 for
            unknown. Prompts are A pairs of sentences, for the label 0 and for the label 1.
        """

    def image_path(self, entry):
        return os.path.join(self.img_dir, entry[self.image_key])

    def _find_missing_images(self, split, skip_broken):
        """Find the missing images of a split. Raises :class:`UserError` unless they can be skipped."""
        entries = self.split_entries[split]
        missing = missing_files(entries.paths(self.img_dir))
        if not missing:
            return missing
        problem = (f'{len(missing)} of {len(entries)} {split} images are missing, the first of them: '
                   f'{", ".join(missing[:3])}')
        if '\\' in missing[0] and not missing_files([missing[0].replace('\\', '/')]):
            problem += f'; they exist with / instead of \\: write the paths in {self.anno_path} with /'
        if split != 'train' or not skip_broken:
            hint = '; --skip_broken leaves them out' if split == 'train' else ''
            raise UserError(f'{problem} (python -m datasets.check --dataset_name {self.name} lists all){hint}')
        logger.warning('%s; they are left out', problem)
        return missing

    def _build_training_samples(self, entries):
        pids, count = renumber_pids(entries.ids - self.first_pid, self.anno_path)
        samples = entries.samples(pids, self.img_dir)
        return samples if self.is_memory_mapped else list(samples), set(range(count))

    def back_translations(self):
        """``{(image_id, caption): back-translation}`` of the training captions that have one (``captions_bt``)."""
        if self.is_memory_mapped and not self.train_annos.may_have_field('captions_bt'):
            return {}
        rows = self.split_entries['train'].rows.tolist()
        return {(image_id, caption): translation for image_id, entry in zip(rows, self.train_annos)
                for caption, translation in zip(entry['captions'], entry.get('captions_bt', ()))}

    def _build_evaluation_samples(self, entries):
        pids = entries.ids.tolist()
        return {'image_pids': pids, 'img_paths': list(entries.paths(self.img_dir)),
                'caption_pids': np.repeat(entries.ids, entries.counts).tolist(), 'captions': list(entries.captions())
                }, set(pids)

    def format_counts(self):
        """Format a table of identities, images and captions in each split."""
        table = PrettyTable(['split', 'identities', 'images', 'captions'])
        for split in SPLITS:
            table.add_row([split, *self.counts(split)])
        return table.get_string()

    def counts(self, split):
        """``(identities, images, captions)`` of a split."""
        entries = self.split_entries[split]
        return len(np.unique(entries.ids)), len(entries), int(entries.counts.sum())


def count_entries(entries):
    """Count ``(identities, images, captions)`` of entries. An image counts once for each entry."""
    return len({entry['id'] for entry in entries}), len(entries), sum(len(entry['captions']) for entry in entries)


def validate_entries(entries, path, image_key, has_captions=True):
    """Return the entries, or raise :class:`UserError` that describes the first invalid entry."""
    problems = [(number, problem) for number, entry in enumerate(entries)
                if (problem := entry_problem(entry, image_key, has_captions))]
    if problems:
        number, problem = problems[0]
        more = f' (and {len(problems) - 1} other entries are invalid)' if problems[1:] else ''
        raise UserError(f'{path}: entry {number} (counted from 0) {problem}{more}')
    return entries


def read_entries(path):
    """Read the entries of a JSON annotation without validating them."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f'{path} must hold a list of entries, and holds a {type(entries).__name__}')
    if not entries:
        raise UserError(f'{path} holds no entries')
    return entries


def entry_problem(entry, image_key, has_captions=True):
    """Describe the problem of an annotation's entry; None if there is none.

    Args:
        entry: the entry.
        image_key: the field of the image's path.
        has_captions: whether captions must not be empty.
    """
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
        return f"has the {unknown_name_error('split', entry['split'], SPLITS)}"
    if not entry['captions']:
        return 'has no captions'
    for number, caption in enumerate(entry['captions'], start=1):
        if not isinstance(caption, str):
            return f'has a caption {number} that is a {type(caption).__name__} instead of text'
        if looks_like_list(caption):
            return f'has a caption {number} that is a list written as one text: write a JSON list, without quote marks'
        if has_captions and (problem := caption_problem(caption)):
            return f'has {problem} (number {number})'
    count, translations = len(entry['captions']), entry.get('captions_bt', entry['captions'])
    if not (isinstance(translations, list) and len(translations) == count
            and all(isinstance(text, str) for text in translations)):
        return f"has 'captions_bt' that are no list of {count} texts, a back-translation of each caption"
    return path_problem(entry[image_key], image_key)


def special_tokens(caption):
    """The special tokens that a caption contains as text, a list of names. The tokenizer would encode them as such."""
    if '<' not in caption and '&' not in caption:   # fast path of nearly all captions
        return []
    text = clean_text(caption)
    return [token for token in (START, MASK, END) if token in text]


def special_captions(entries):
    """``[(number of the entry, token), ...]`` of captions that contain a special token as text."""
    return [(number, token) for number, entry in enumerate(entries) for caption in entry['captions']
            for token in special_tokens(caption)]


def path_problem(path, image_key, folder='imgs/'):
    """Describe the problem of an image's path; None if there is none.

    Args:
        path: the path below ``folder``.
        image_key: the field or column of the path.
        folder: the images' folder, for the error message.
    """
    if not path.strip() or '\0' in path or not is_encodable(path):
        return f"has an empty or impossible '{image_key}': {path!r}"
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        return f"has a '{image_key}' outside of {folder}: {path}"
    return None


def shared_identities(entries):
    """``{pid: [its splits]}`` of the identities in more than one split."""
    splits_of = defaultdict(set)
    for entry in entries:
        splits_of[entry['id']].add(entry['split'])
    return {pid: [split for split in SPLITS if split in splits] for pid, splits in splits_of.items() if len(splits) > 1}


def repeated_images(entries, image_key):
    """``{normalized path: count}`` of the images that are listed more than once."""
    counts = Counter(os.path.normpath(entry[image_key]) for entry in entries)
    return {path: count for path, count in counts.items() if count > 1}


def missing_files(paths):
    """The ``paths`` that do not exist, in order. Each folder is listed only once, which is fast on network disks."""
    @functools.lru_cache(maxsize=None)
    def list_folder(folder):
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()

    def exists(path):
        folder, name = os.path.split(path)
        return name in list_folder(folder) or os.path.exists(path)
    return [path for path in paths if not exists(path)]


def renumber_pids(pids, source):
    """Renumber ``pids`` [N] to 0..C-1 in their order, and log it if they have gaps.

    Returns:
        ``(int64 [N], C)``.
    """
    unique, numbers = np.unique(np.asarray(pids, dtype=np.int64), return_inverse=True)
    if (unique != np.arange(len(unique))).any():
        logger.info("%s: training labels its %d identities 0 to %d, in the order of their numbers, which have gaps",
                    source, len(unique), len(unique) - 1)
    return numbers, len(unique)


def renumber_samples(samples, source):
    """Renumber the pids of training samples (:func:`renumber_pids`): ``(samples, set of pids)``."""
    numbers, count = renumber_pids([pid for pid, *_ in samples], source)
    return [(number, *rest) for number, (_, *rest) in zip(numbers.tolist(), samples)], set(range(count))


def limit_training_samples(samples, count, source, sizes=None):
    """Select the first ``count`` training samples, and renumber their identities from 0.

    Args:
        samples: training samples, one per caption.
        count: the number of samples to select.
        source: the annotation, for the log.
        sizes: the number of samples of each dataset, if ``samples`` joins several. Each contributes its proportion.

    Returns:
        ``(samples, set of pids)``.
    """
    sizes = sizes or [len(samples)]
    counts = proportional_counts(min(count, sum(sizes)), sizes)
    starts = itertools.accumulate(sizes[:-1], initial=0)
    selected = [sample for start, size in zip(starts, counts) for sample in samples[start:start + size]]
    by_dataset = f' ({" + ".join(map(str, counts))} of the datasets)' if len(sizes) > 1 else ''
    logger.info('--limit_train: the first %d of %d training captions%s', len(selected), len(samples), by_dataset)
    return renumber_samples(selected, source)


def proportional_counts(total, sizes):
    """Split ``total`` in proportion to ``sizes``, at least 1 for each if possible.

    >>> proportional_counts(10, [90, 30]), proportional_counts(3, [1000, 1])
    ([8, 2], [2, 1])
    """
    exact = [total * size / sum(sizes) for size in sizes]
    counts = [max(int(value), min(size, 1)) for value, size in zip(exact, sizes)]
    while sum(counts) < total:      # the largest remainder first
        counts[max(range(len(sizes)), key=lambda index: exact[index] - counts[index])] += 1
    while sum(counts) > total:
        counts[max(reversed(range(len(sizes))), key=counts.__getitem__)] -= 1
    return counts


# -- torch Datasets ----------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def default_tokenizer():
    return SimpleTokenizer()


def tokenize(caption, tokenizer, text_length=77, truncate=True):
    """Tokenize a caption to start, token ids, end and padding (0 for CLIP): int64 [text_length].

    A longer caption is truncated, and its last id is the end token.

    Raises:
        UserError: the caption has more than 10,000 characters, or it is too long and ``truncate`` is False.

    >>> from utils.simple_tokenizer import SimpleTokenizer
    >>> tokenize('a red coat', SimpleTokenizer(), text_length=8)
    tensor([49406,   320,   736,  7356, 49407,     0,     0,     0])
    """
    if len(caption) > MAX_CAPTION_LENGTH:
        raise UserError(f"caption of {len(caption):,} characters, and at most {MAX_CAPTION_LENGTH:,} are read: "
                        f"'{caption[:50]}...'")
    ids = tokenizer.encode(caption)
    if not truncate and (count := len(tokenizer.add_special_tokens(ids, MAX_CAPTION_LENGTH + 2))) > text_length:
        raise UserError(f"caption of {count} tokens is longer than the text length {text_length}: '{caption}'")
    ids = tokenizer.add_special_tokens(ids, text_length)
    result = torch.full((text_length,), getattr(tokenizer, 'pad_id', 0), dtype=torch.long)
    result[:len(ids)] = torch.tensor(ids)
    return result


MIN_CACHED_CAPTIONS = 50_000   # the smallest number of captions whose entries and tokens are cached


def tokenize_all(captions, text_length, truncate=True, tokenizer=None, folder=None):
    """Tokenize all captions before workers start, which then share the result: int32 [S, L].

    The tokens of at least 50,000 captions are cached in ``folder``, memory-mapped. They are computed again if a
    caption, the vocabulary or the length changes (:func:`datasets.array_cache.load_or_make_arrays`).
    """
    tokenizer = tokenizer or default_tokenizer()

    def compute():
        tokens = torch.zeros(len(captions), text_length, dtype=torch.int32)
        for row, caption in zip(tokens, captions):
            row.copy_(tokenize(caption, tokenizer, text_length, truncate))
        return tokens
    if folder is None or len(captions) < MIN_CACHED_CAPTIONS:
        return compute()
    strings = captions if isinstance(captions, Strings) else Strings.from_texts(captions)
    key = compute_key(strings.digest(), tokenizer.cache_key, text_length, truncate)
    return torch.from_numpy(load_or_make_arrays(folder, 'tokens', key, lambda: {'tokens': compute().numpy()})['tokens'])


class ImageDataset(Dataset):
    """The images of an evaluation split: ``dataset[i]`` is ``(pid, image)``.

    With a ``store`` (:class:`datasets.image_cache.ImageStore`) images are uint8 [3, H, W] as they are stored.

    Attributes:
        attributes: ``(labels int8 [N, A], token ids of the prompts [2A, L])`` if attributes are evaluated, else None.
        evaluates_attributes: whether evaluation measures attributes instead of retrieval.
        image_stats: mean and standard deviation of its images (:class:`utils.image_stats.ImageStats`).
    """

    attributes = None
    evaluates_attributes = False

    def __init__(self, image_pids, img_paths, transform=None, store=None, image_stats=None):
        self.image_pids, self.img_paths, self.transform, self.store = image_pids, img_paths, transform, store
        self.image_stats = image_stats

    def __len__(self):
        return len(self.image_pids)

    def __getitem__(self, index):
        if self.store is not None:
            return self.image_pids[index], self.store[self.img_paths[index]]
        image = read_image(self.img_paths[index])
        return self.image_pids[index], self.transform(image) if self.transform else image


class TextDataset(Dataset):
    """The queries of an evaluation split: ``dataset[i]`` is ``(pid, token ids [L])``."""

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
    """Training pairs: ``dataset[index]`` or ``dataset[index, seed]`` is a dict.

    The dict has ``pids, image_ids, index, images, caption_ids`` and the requested fields. All random numbers of a
    sample derive from ``seed``, by default from the index.

    Args:
        dataset: a list of ``(pid, image_id, image path, caption)``.
        transform: from a PIL image to a tensor.
        text_length, truncate: see :func:`tokenize`.
        fields: names of further fields that the active heads read, from :data:`datasets.fields.FIELDS` and
            :data:`IMAGE_FIELDS`.
        caption_masking: 'inplace': ``caption_ids`` are masked, as in IRRA's training, and ``mlm_ids`` equals them.
            'clean': ``caption_ids`` are not masked, and ``mlm_ids`` comes with ``mlm_labels``.
        masked_token_rate, masked_token_unchanged_rate: see :func:`datasets.masking.mask_tokens`.
        skip_broken: whether a sample whose image cannot be read becomes ``{'skipped': path}``, which :func:`collate`
            omits.
        attribute_tagger: the tagger of parts of speech (:func:`datasets.attributes.load_tagger`), for
            ``attributes_mask``, ``mlm_masking`` 'noun' and ``caption_filter``.
        mlm_masking: which tokens are masked. 'random': any. 'noun': mostly nouns and adjectives, as in SEN.
            'attention': the model masks (:mod:`model.heads.agm`), and captions are not masked here.
        caption_filter: the probability that a caption is reduced to its nouns, adjectives and pronouns (SEN), after
            truncation and before masking.
        store: a :class:`datasets.image_cache.ImageStore` that provides the images. ``images`` are uint8 [3, H, W] then,
            and ``augmentation_params`` are the parameters of
            :func:`datasets.device_augmentation.augment_on_device`.
        img_aug: whether ``augmentation_params`` crop and erase (:func:`datasets.transforms.build_transforms`).
        tokenizer: the tokenizer; by default CLIP's.
        rand_aug: a function that resizes a PIL image, for APTM's augmentation instead of ``transform``. Images are
            uint8 with ``augmentation_params`` then, as with a ``store``.
        labels: int8 [S, A], the attributes of each pair's image, for the field ``attribute_labels``.
        token_folder: the folder of the token cache (:func:`tokenize_all`).
        txt_aug: whether captions are augmented before masking: by :func:`datasets.augmentation.perturb_tokens`, or by
            :func:`datasets.augmentation.augment_tbps_caption` if ``preprocessing`` is 'tbps'.
        preprocessing: 'irra' or 'tbps', the value of ``--preparation``.
        image_stats: the mean and standard deviation of ``simclr_images``.
        back_translations: ``{(image_id, caption): back-translation}``, for TBPS-CLIP.
        components: ``(smallest image id, transform, image_stats)`` of each joined dataset, by increasing ids, instead
            of one ``transform`` and ``image_stats``. A sample with uint8 images then has ``image_stats``, float32 [2,
            3]: the mean and standard deviation of its dataset.

    Raises:
        UserError: a field is unknown. At indexing: an image cannot be read.
    """

    def __init__(self, dataset, transform=None, text_length=77, truncate=True, fields=(), caption_masking='clean',
                 masked_token_rate=0.8, masked_token_unchanged_rate=0.1, skip_broken=False, attribute_tagger='textblob',
                 mlm_masking='random', caption_filter=0.0, store=None, img_aug=False, tokenizer=None, rand_aug=None,
                 labels=None, token_folder=None, txt_aug=False, preprocessing='irra', image_stats=CLIP_STATS,
                 back_translations=None, components=None):
        for field in fields:
            if field not in FIELDS and field not in IMAGE_FIELDS:
                raise unknown_name_error('batch field, requested by a head and made by no dataset:', field,
                                         [*FIELDS, *IMAGE_FIELDS])
        if caption_masking not in ('inplace', 'clean'):
            raise unknown_name_error('caption masking', caption_masking, ('inplace', 'clean'))
        if mlm_masking not in ('random', 'attention', 'noun'):
            raise unknown_name_error('mlm masking', mlm_masking, ('random', 'attention', 'noun'))
        components = components or [(0, transform, image_stats)]
        self.first_image_ids, self.transforms, stats = map(list, zip(*components))
        self.transform, self.image_stats = self.transforms[0], stats[0]
        self.component_stats = [torch.tensor([component.mean, component.std]) for component in stats]   # [2, 3] each
        self.dataset, self.skip_broken = dataset, skip_broken
        self.store, self.img_aug, self.rand_aug, self.labels = store, img_aug, rand_aug, labels
        self.txt_aug, self.preprocessing, self.back_translations = txt_aug, preprocessing, back_translations or {}
        if txt_aug and preprocessing == 'tbps' and not self.back_translations:
            logger.info("no caption has a back-translation ('captions_bt', which TBPS-CLIP's train_reid.json has): "
                        'words are deleted, and no caption is replaced')
        self.tokenizer, self.text_length = tokenizer or default_tokenizer(), text_length
        self.fields, self.masks_in_place = set(fields), caption_masking == 'inplace'
        if 'mlm_labels' in self.fields and not self.masks_in_place:
            self.fields.add('mlm_ids')
        self.mlm_masking, self.caption_filter = mlm_masking, caption_filter
        self.simclr_transforms = None
        if 'simclr_images' in self.fields:
            size = store.img_size if store is not None else transform_size(self.transform)
            self.simclr_transforms = [simclr_transforms(size, (component.mean, component.std)) for component in stats]
        reads_masked = any(FIELDS[name].uses_masking for name in self.fields & FIELDS.keys())
        self.masks_captions = mlm_masking != 'attention' and (self.masks_in_place or reads_masked)
        self.field_names = [name for name, field in FIELDS.items() if (name == 'caption_ids' or name in self.fields)
                            and (self.masks_captions or not field.uses_masking)]
        self.mask_rates = masked_token_rate, masked_token_unchanged_rate
        self.mask_id = self.tokenizer.mask_id
        captions = get_captions(dataset)
        self.tokens = tokenize_all(captions, text_length, truncate, self.tokenizer, token_folder)
        warn_of_truncation(captions, self.tokens, self.tokenizer, 'training captions')
        uses_tags = any(FIELDS[name].uses_tags for name in self.field_names)
        if uses_tags or caption_filter or self.masks_captions and mlm_masking == 'noun':
            if preprocessing == 'tbps':
                raise UserError('--preparation tbps cleans captions, but the loss attribute, --mlm_masking noun and '
                                '--caption_filter tag the original captions: leave one of the two out')
            self.attribute_groups, self.parts_of_speech = annotate_all(
                captions, default_tokenizer(), load_tagger(attribute_tagger), text_length)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, derive_seed(key))
        pid, image_id, path, _ = self.dataset[index]
        try:
            image = self.image_fields(path, seed, bisect_right(self.first_image_ids, image_id) - 1)
        except UserError as error:
            if not self.skip_broken:
                raise UserError(f'{error} (python -m datasets.check lists all such images, '
                                '--skip_broken leaves them out)') from None
            return {'skipped': path}
        text = self.text_fields(index, random.Random(seed))
        return {'pids': pid, 'image_ids': image_id, 'index': index, **image, **text}

    def image_fields(self, path, seed, component=0):
        """Compute a sample's image fields: one view, and further views if a head requests them.

        ``component`` is the number of the joined dataset that the image belongs to.
        """
        image = read_image(path) if self.store is None else self.store[path]
        transform = self.transforms[component]
        fields = self.augment_view(image, seed, transform)
        if len(self.component_stats) > 1 and 'augmentation_params' in fields:
            fields['image_stats'] = self.component_stats[component]
        if 'second_images' in self.fields:
            second = self.augment_view(image, derive_seed(seed, SECOND_VIEW_KEY), transform)
            fields.update({f'second_{name}': value for name, value in second.items()})
        if 'simclr_images' in self.fields:
            pil_image = image if self.store is None else to_pil_image(image)
            views = [apply_seeded(self.simclr_transforms[component], pil_image, seed, key) for key in SIMCLR_VIEW_KEYS]
            fields['simclr_images'] = torch.stack(views)   # [2, 3, H, W]
        return fields

    def augment_view(self, image, seed, transform):
        """Compute ``images``, and ``augmentation_params`` if the device augments.

        ``image`` is a PIL image, or a uint8 tensor of the store.
        """
        if self.rand_aug is not None:
            image = image if self.store is not None else to_uint8_tensor(self.rand_aug(image))
            return dict(zip(('images', 'augmentation_params'), apply_rand_augment(image, seed)))
        if self.store is None:
            return {'images': apply_transform(image, seed, transform)}
        if self.preprocessing == 'tbps':   # datasets.device_augmentation has no TBPS-CLIP augmentation
            return {'images': apply_transform(to_pil_image(image), seed, transform)}
        return {'images': image, 'augmentation_params': sample_augmentation(self.store.img_size, self.img_aug, seed)}

    def tokenize_caption(self, caption):
        """Tokenize a caption, int64 [L]."""
        return tokenize(caption, self.tokenizer, self.text_length)

    def text_fields(self, index, rng):
        """Compute a sample's text fields (:mod:`datasets.fields`)."""
        sample = CaptionSample(self, index, rng)
        return {name: FIELDS[name](sample) for name in self.field_names}


def apply_transform(image, seed, transform):
    """Transform an image with random numbers of ``seed``. torch's global generator does not change."""
    if transform is None:
        return image
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPU
        return transform(image)


def transform_size(transform):
    """(H, W) of the images that a ``Compose`` returns."""
    return next(step.size for step in transform.transforms if isinstance(step, T.Resize))


# IRRA's name for the pairs that its --MLM trains on.
ImageTextMLMDataset = functools.partial(ImageTextDataset, fields=('mlm_ids', 'mlm_labels'), caption_masking='inplace')


def collate(samples):
    """Collate training samples to a batch.

    Samples with broken images are omitted, and the list 'skipped' has their paths. The batch has this key only if there
    are such samples, and no other key if there are no others.
    """
    complete = [sample for sample in samples if 'skipped' not in sample]
    skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
    batch = default_collate(complete) if complete else {}
    return {**batch, 'skipped': skipped} if skipped else batch

"""Read annotations: the base class of all datasets."""
import itertools
import logging
import os
import shlex

import numpy as np
from prettytable import PrettyTable

from datasets import array_cache
from datasets.annotation_checks import (SPLITS, gallery_notes, missing_files, repeated_images, shared_identities,
                                        special_captions, validate_entries)
from datasets.distractors import DISTRACTOR_PID
from datasets.entries import open_entries
from datasets.published_splits import split_note
from datasets.released_lists import aptm_list_files, read_aptm_list, read_tbps_list, tbps_list_files
from datasets.samples import renumber_pids
from datasets.side_texts import SideTexts
from utils.errors import UserError, describe_type
from utils.iotools import read_json

logger = logging.getLogger('Pedestal.dataset')


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
            the annotation's pids, and :data:`~datasets.distractors.DISTRACTOR_PID` for images that no caption matches.
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
    uncaptioned_splits = ()      # whose images can lack captions; they are in the gallery only
    released_stem = ''           # of APTM's lists <root>/finetune/<stem>_<split>.json, read without an annotation

    def __init__(self, root='', verbose=True, splits=SPLITS, skip_broken=False):
        self.root = root
        self.dataset_dir, self.anno_path = self.locate(root)
        self.img_dir = self.image_folder(self.dataset_dir)
        self.split_entries, annos = open_entries(type(self), self.anno_path, SPLITS,
                                                 array_cache.MIN_CACHED_CAPTIONS)
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
    def check_command(cls, root):
        """The command that lists all problems of the dataset, for messages.

        Example:
            >>> from datasets.cuhkpedes import CUHKPEDES
            >>> CUHKPEDES.check_command('my data')
            "python -m datasets.check --dataset_name CUHK-PEDES --root_dir 'my data'"
        """
        words = ['--dataset_name', cls.name, '--root_dir', root or '.', *cls.reading_options()]
        return f'python -m datasets.check {shlex.join(words)}'

    @classmethod
    def reading_options(cls):
        """The words of a command that say how the annotation is read."""
        return []

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
        validate_entries(entries, path, cls.image_key, cls.has_captions, cls.uncaptioned_splits)
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
            if len(missing) == len(entries):
                hint = f'; put the images below {self.img_dir}, or correct the paths in {self.anno_path}'
            raise UserError(f'{problem} ({self.check_command(self.root)} lists all){hint}')
        logger.warning('%s; they are left out', problem)
        return missing

    def _build_training_samples(self, entries):
        pids, count = renumber_pids(entries.ids - self.first_pid, self.anno_path)
        samples = entries.samples(pids, self.img_dir)
        return samples if self.is_memory_mapped else list(samples), set(range(count))

    def side_texts(self, key):
        """The side texts of the training captions, in the order of ``train``: :class:`datasets.side_texts.SideTexts`.

        Args:
            key: their key in the annotation, such as ``captions_bt``.
        """
        if self.is_memory_mapped and not self.train_annos.may_have_field(key):
            return SideTexts.from_values([''] * len(self.train))
        return SideTexts.from_values(text for entry in self.train_annos
                                     for text in entry.get(key) or [''] * len(entry['captions']))

    def _build_evaluation_samples(self, entries):
        pids = np.unique(entries.ids[entries.counts > 0])
        image_pids = np.where(np.isin(entries.ids, pids), entries.ids, DISTRACTOR_PID).tolist()
        return {'image_pids': image_pids, 'img_paths': list(entries.paths(self.img_dir)),
                'caption_pids': np.repeat(entries.ids, entries.counts).tolist(), 'captions': list(entries.captions())
                }, set(pids.tolist())

    def evaluation_samples(self, split):
        """The images and captions of a split to rank, with the annotation's pids.

        Args:
            split: train, val or test.

        Returns:
            ``{'image_pids', 'img_paths', 'caption_pids', 'captions'}``, as ``val`` and ``test``.
        """
        if split == 'train':     # made on demand, because training does not need it
            return self._build_evaluation_samples(self.split_entries[split])[0]
        return getattr(self, split)

    def format_counts(self):
        """Format a table of identities, images and captions in each split, and count images without captions."""
        table = PrettyTable(['split', 'identities', 'images', 'captions'])
        for split in SPLITS:
            table.add_row([split, *self.counts(split)])
        uncaptioned = {split: int((self.split_entries[split].counts == 0).sum()) for split in SPLITS}
        return '\n'.join([table.get_string(), *gallery_notes(uncaptioned)])

    def counts(self, split):
        """``(identities, images, captions)`` of a split. Identities are those of images with captions."""
        entries = self.split_entries[split]
        return len(np.unique(entries.ids[entries.counts > 0])), len(entries), int(entries.counts.sum())


def read_entries(path):
    """Read the entries of a JSON annotation without validating them."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f'{path} must hold a list of entries, and holds {describe_type(entries)}')
    if not entries:
        raise UserError(f'{path} holds no entries')
    return entries

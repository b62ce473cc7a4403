"""WebPerson, GA-DMS's images of persons from the web with two generated captions each."""
import glob
import os

import numpy as np

from datasets.annotation import BaseDataset
from datasets.annotation_checks import path_problem
from datasets.captions import caption_problem
from utils.errors import UserError
from utils.iotools import iterate_json_list

CAPTION_KEYS = 'caption1', 'caption2'
LINE_MARK = '/n'     # in captions, where the model that wrote them began a new line; it is removed


class WebPerson(BaseDataset):
    """WebPerson (EMNLP 2025): up to 5 million images from the web, for pretraining, with two generated captions each.

    ``<root>/WebPerson/*.json`` hold the annotation, ``<root>/WebPerson/images`` holds the images. Each caption has an
    identity of its own, so that the two captions of an image are negatives of each other, as in GA-DMS's training.
    """
    name = 'WebPerson'
    image_key = 'file_path'
    published = {'val': (0, 0, 0), 'test': (0, 0, 0)}

    @classmethod
    def locate(cls, root):
        folder = os.path.join(root, cls.name)
        files = annotation_files(folder)
        if not files:
            raise UserError(f"no annotation {os.path.join(folder, '*.json')} of WebPerson: point --root_dir at the "
                            f'folder that holds {cls.name}/ with images/ and the annotation, such as 100w.json')
        return folder, files[0]

    @classmethod
    def image_folder(cls, folder):
        return os.path.join(folder, 'images')

    @classmethod
    def read(cls, path, problems=None):
        captions = {}
        for file in cls.files(path):
            captions.update(read_captions(file))
        return [{'id': number, 'split': 'train', 'captions': captions[image], 'file_path': image}
                for number, image in enumerate(sorted(captions))]

    @classmethod
    def files(cls, path):
        return annotation_files(os.path.dirname(path))

    def _build_training_samples(self, entries):
        samples = entries.samples(np.zeros(len(entries)), self.img_dir)
        samples.pids = np.arange(len(samples), dtype=np.int32)
        return samples, range(len(samples))


def annotation_files(folder):
    """The annotation's files in ``folder``, in a fixed order."""
    return sorted(glob.glob(os.path.join(glob.escape(folder), '*.json')))


def read_captions(path):
    """Read one of WebPerson's lists ``[{image: {"caption1": .., "caption2": ..}}, ..]``: ``{image: its captions}``.

    Raises:
        UserError: an entry has another form, an impossible path or an empty caption.
    """
    captions = {}
    for number, row in enumerate(iterate_json_list(path)):
        for image, texts in row.items() if isinstance(row, dict) else [(None, None)]:
            if not isinstance(texts, dict) or not all(isinstance(texts.get(key), str) for key in CAPTION_KEYS):
                raise UserError(f'{path}: entry {number} (counted from 0) is not '
                                '{"<image>": {"caption1": "..", "caption2": ".."}}')
            captions[image] = [texts[key].replace(LINE_MARK, '') for key in CAPTION_KEYS]
            if problem := image_problem(image, captions[image]):
                raise UserError(f'{path}: the image {image!r} {problem}')
    if not captions:
        raise UserError(f'{path} holds no entries')
    return captions


def image_problem(image, captions):
    """Describe the problem of an image's path or captions; None if there is none."""
    for problem in filter(None, map(caption_problem, captions)):
        return f'has {problem}'
    return path_problem(image, 'path', 'images/')

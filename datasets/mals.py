"""MALS, APTM's generated pedestrians, and PA-100K, in the folder layout that APTM released."""
import os

import torch

from datasets.annotation import BaseDataset
from datasets.prompts import MALS as MALS_PROMPTS
from datasets.prompts import PA100K as PA100K_PROMPTS
from datasets.prompts import flatten_prompts
from datasets.released_lists import aptm_list_files, mals_list_files, read_aptm_list
from utils.errors import UserError


def find_image_folder(root, *names):
    """The first existing folder of ``<root>/images/<name>``, ``<root>/<name>``, ``<root>/../images/<name>``.

    If none exists, the first of them.
    """
    folders = [os.path.join(root, *parents, name)
               for parents in (('images',), (), (os.pardir, 'images')) for name in names]
    return next((folder for folder in folders if os.path.isdir(folder)), folders[0])


class MALS(BaseDataset):
    """MALS (Yang et al., ACM MM 2023): 1,510,330 generated training images, each with a caption and 27 attributes.

    ``<root>/gene_attrs/*_attrs.json`` hold the annotation, ``<root>/images/MALS`` holds the images.
    """
    name = 'MALS'
    image_key = 'file_path'
    published = {'train': (1510330, 1510330, 1510330), 'val': (0, 0, 0), 'test': (0, 0, 0)}

    @classmethod
    def locate(cls, root):
        lists = mals_list_files(root)
        if not lists:
            pattern = os.path.join(root, 'gene_attrs', '*_attrs.json')
            raise UserError(f'no lists {pattern} of MALS: point --root_dir at the folder that holds gene_attrs/')
        return root, lists[0]

    @classmethod
    def image_folder(cls, folder):
        return find_image_folder(folder, cls.name)

    @classmethod
    def read(cls, path, problems=None):
        entries = []
        for file in mals_list_files(os.path.dirname(os.path.dirname(path))):
            entries += read_aptm_list(file, 'train', len(MALS_PROMPTS), problems=problems)
        for number, entry in enumerate(entries):      # every image has its own identity
            entry['id'] = number
        return entries

    @classmethod
    def files(cls, path):
        return mals_list_files(os.path.dirname(os.path.dirname(path)))

    def attributes(self, split):
        return torch.from_numpy(self.split_entries[split].labels), MALS_PROMPTS


class PA100K(BaseDataset):
    """PA-100K (Liu et al., ICCV 2017): 100,000 images with 26 attributes, without captions, for attribute recognition.

    ``<root>/finetune/PA100K_<split>.json`` hold the annotation, ``<root>/images/pa100k`` holds the images. The captions
    of an evaluation split are the prompts of the attributes.
    """
    name = 'PA-100K'
    image_key = 'file_path'
    has_captions = False
    evaluates_attributes = True
    published = {'train': (80000, 80000, 80000), 'val': (10000, 10000, 10000), 'test': (10000, 10000, 10000)}

    @classmethod
    def locate(cls, root):
        lists = aptm_list_files(root, 'PA100K')
        if not lists:
            pattern = os.path.join(root, 'finetune', 'PA100K_<split>.json')
            raise UserError(f'no lists {pattern}: point --root_dir at the folder that holds finetune/')
        return root, next(iter(lists.values()))

    @classmethod
    def image_folder(cls, folder):
        return find_image_folder(folder, os.path.join('pa100k', 'release_data'), 'pa100k')

    @classmethod
    def read(cls, path, problems=None):
        entries = []
        for split, file in aptm_list_files(os.path.dirname(os.path.dirname(path)), 'PA100K').items():
            entries += read_aptm_list(file, split, len(PA100K_PROMPTS), has_captions=False, problems=problems)
        for number, entry in enumerate(entries):
            entry['id'] = number
        return entries

    @classmethod
    def files(cls, path):
        return list(aptm_list_files(os.path.dirname(os.path.dirname(path)), 'PA100K').values())

    def _build_evaluation_samples(self, entries):
        content, pids = super()._build_evaluation_samples(entries)
        prompts = flatten_prompts(PA100K_PROMPTS) if entries else []
        return {**content, 'captions': prompts, 'caption_pids': list(range(len(prompts)))}, pids

    def attributes(self, split):
        return torch.from_numpy(self.split_entries[split].labels), PA100K_PROMPTS

"""CUHK-PEDES, and synthetic pedestrians in its format."""
import os

import torch

from datasets.annotation import BaseDataset
from datasets.synthpedes.attributes import PROMPTS, labels_by_pid
from utils.errors import UserError
from utils.iotools import read_json


class CUHKPEDES(BaseDataset):
    """CUHK-PEDES (Li et al., CVPR 2017): 13,003 identities, mostly two captions an image."""
    name = 'CUHK-PEDES'
    released_stem = 'cuhk'
    annotations = ('reid_raw.json',)
    unusable_annotations = {
        'caption_all.json': "is CUHK-PEDES's annotation without splits: put reid_raw.json next to it, which has the "
                            'splits and comes in the same archive'}
    first_pid = 1
    published = {'train': (11003, 34054, 68126), 'val': (1000, 3078, 6158), 'test': (1000, 3074, 6156)}


class SynthPedes(CUHKPEDES):
    """Synthetic pedestrians of ``python -m datasets.synthpedes``, in the format of CUHK-PEDES."""
    name = 'synthpedes'
    released_stem = ''
    published = {}

    def attributes(self, split):
        """Attributes from ``attributes.json`` next to the annotation; None without this file."""
        path = os.path.join(self.dataset_dir, 'attributes.json')
        if not os.path.exists(path):
            return None
        labels = labels_by_pid(read_json(path), path)
        rows = [labels.get(pid) for pid in self.split_entries[split].ids.tolist()]
        if None in rows:
            raise UserError(f'{path} lacks identities of the annotation next to it: write both again with '
                            'python -m datasets.synthpedes')
        return torch.tensor(rows, dtype=torch.int8), PROMPTS

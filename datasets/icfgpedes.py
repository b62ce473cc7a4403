"""The ICFG-PEDES dataset."""
from datasets.annotation import BaseDataset


class ICFGPEDES(BaseDataset):
    """ICFG-PEDES (Ding et al., arXiv 2107.12666): 4,102 identities, one caption an image, no val split."""
    name = 'ICFG-PEDES'
    released_stem = 'icfg'
    annotations = ('ICFG-PEDES.json', 'ICFG_PEDES.json')
    captions_per_image = 1
    has_val = False
    published = {'train': (3102, 34674, 34674), 'val': (0, 0, 0), 'test': (1000, 19848, 19848)}

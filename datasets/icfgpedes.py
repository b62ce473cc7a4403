"""ICFG-PEDES."""
from datasets.bases import BaseDataset


class ICFGPEDES(BaseDataset):
    """ICFG-PEDES (Ding et al., arXiv 2107.12666): 4,102 identities, one caption an image, no val split."""
    name = 'ICFG-PEDES'
    annotations = ('ICFG-PEDES.json', 'ICFG_PEDES.json')

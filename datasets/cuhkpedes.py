"""CUHK-PEDES, and synthetic pedestrians in its format."""
from datasets.bases import BaseDataset


class CUHKPEDES(BaseDataset):
    """CUHK-PEDES (Li et al., CVPR 2017): 13,003 identities, mostly two captions an image."""
    name = 'CUHK-PEDES'
    annotations = ('reid_raw.json',)
    lookalikes = {'caption_all.json': "is CUHK-PEDES's annotation without splits: put reid_raw.json beside it, which has them and comes in "
                                      'the same archive'}
    first_pid = 1
    published = {'train': (11003, 34054, 68126), 'val': (1000, 3078, 6158), 'test': (1000, 3074, 6156)}


class SynthPedes(CUHKPEDES):
    """What ``python -m datasets.synthpedes`` writes by default."""
    name = 'synthpedes'
    published = {}

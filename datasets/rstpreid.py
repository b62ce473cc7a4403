"""The RSTPReid dataset."""
from datasets.annotation import BaseDataset


class RSTPReid(BaseDataset):
    """RSTPReid (Zhu et al., ACM Multimedia 2021): 4,101 identities, five images each, two captions an image."""
    name = 'RSTPReid'
    released_stem = 'rstp'
    annotations = ('data_captions.json',)
    image_key = 'img_path'
    published = {'train': (3701, 18505, 37010), 'val': (200, 1000, 2000), 'test': (200, 1000, 2000)}

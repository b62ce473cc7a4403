"""RSTPReid."""
from datasets.bases import BaseDataset


class RSTPReid(BaseDataset):
    """RSTPReid (Zhu et al., ACM Multimedia 2021): 4,101 identities, five images each, two captions an image."""
    name = 'RSTPReid'
    annotations = ('data_captions.json',)
    image_key = 'img_path'

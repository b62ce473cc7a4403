"""The names of IRRA's ``datasets.bases``, with IRRA's arguments."""
import functools

from datasets.annotation import BaseDataset
from datasets.images import ImageComponent, ImageDataset, ImageTransform, augment_on_host
from datasets.pairs import PairDataset
from datasets.text import CaptionMasking, CaptionTransform, TextDataset, tokenize, tokenize_samples
from utils.image_stats import CLIP_STATS
from utils.simple_tokenizer import default_tokenizer

__all__ = ['BaseDataset', 'ImageDataset', 'ImageTextDataset', 'ImageTextMLMDataset', 'TextDataset', 'tokenize']


class ImageTextDataset(PairDataset):
    """Training pairs with clean captions in CLIP's ids.

    Args:
        dataset: a list of ``(pid, image_id, image path, caption)``.
        transform: a function from a PIL image to a tensor.
        text_length, truncate: see :func:`tokenize`.
    """
    fields, masking = (), CaptionMasking()

    def __init__(self, dataset, transform=None, text_length=77, truncate=True):
        view = functools.partial(augment_on_host, transform=transform)
        tokens = tokenize_samples(dataset, None, text_length, truncate)
        super().__init__(dataset, ImageTransform([ImageComponent(0, view, CLIP_STATS)]),
                         CaptionTransform(dataset, tokens, default_tokenizer(), self.fields, self.masking))


class ImageTextMLMDataset(ImageTextDataset):
    """Training pairs as with IRRA's ``--MLM``: masked ``caption_ids``, equal ``mlm_ids``, and ``mlm_labels``."""
    fields, masking = ('mlm_ids', 'mlm_labels'), CaptionMasking('inplace')

"""Build training pairs for tests without the options of a run."""
import functools

from datasets.images import ImageComponent, ImageTransform, augment_on_host
from datasets.pairs import PairDataset, split_fields
from datasets.text import CaptionMasking, CaptionTransform, tokenize_samples
from utils.image_stats import CLIP_STATS
from utils.simple_tokenizer import default_tokenizer


def build_pairs(samples, transform=None, fields=(), text_length=77, augment=None, **masking):
    """Build a :class:`datasets.pairs.PairDataset` in CLIP's ids.

    Args:
        samples: a list of ``(pid, image_id, image path, caption)``.
        transform: a function from a PIL image to a tensor.
        fields: the names of further fields.
        text_length: the number of tokens of a caption.
        augment: see :class:`datasets.text.CaptionTransform`.
        masking: attributes of :class:`datasets.text.CaptionMasking`.
    """
    image_fields, text_fields = split_fields(fields)
    view = functools.partial(augment_on_host, transform=transform)
    images = ImageTransform([ImageComponent(0, view, CLIP_STATS)], image_fields)
    tokens = tokenize_samples(samples, text_length=text_length)
    captions = CaptionTransform(samples, tokens, default_tokenizer(), text_fields, CaptionMasking(**masking), augment)
    return PairDataset(samples, images, captions)

"""How images are resized and normalized: a property of a backbone, and for some backbones of a dataset."""
from typing import NamedTuple


class ImageStats(NamedTuple):
    """The statistics that normalize images, and the interpolation that resizes them.

    An image is resized first. Then each channel becomes ``(value - mean) / std``, with values from 0 to 1.

    Attributes:
        mean: mean of each channel, red, green and blue.
        std: standard deviation of each channel.
        fill: normalized values that random erasing writes in training.
        interpolation: 'bilinear' or 'bicubic'.
    """
    mean: tuple
    std: tuple
    fill: tuple
    interpolation: str = 'bilinear'


# IRRA's reference implementation erases with the mean's values, but after normalization: they show as light gray.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STATS = ImageStats(CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711), CLIP_MEAN)

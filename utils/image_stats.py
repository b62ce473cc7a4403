"""How images come to a model: what backbones say and datasets do."""
from typing import NamedTuple


class Pixels(NamedTuple):
    """Images are resized by ``interpolation`` (bilinear or bicubic), then each channel is (value - mean) / std. What is erased in training
    gets the numbers ``fill``, after that."""
    mean: tuple
    std: tuple
    fill: tuple
    interpolation: str = 'bilinear'


# Of CLIP's training images. IRRA's released code fills with the mean's numbers, which are a light grey there and not the mean.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP = Pixels(CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711), CLIP_MEAN)
# Of ImageNet, as TBPS-CLIP takes them; its training images are resized bilinearly, and black is erased before they are normalised.
TBPS = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.485, 0.456, 0.406), 'bicubic')

"""APTM's augmentation of training images, built from torchvision's operations.

All operations but the erasing work on uint8 tensors. An image of the image cache is therefore augmented to the same
numbers as an image that has just been read and resized.
"""
import math

import torch
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from datasets.device_augmentation import CROP_PADDING
from datasets.transforms import FLIP_PROBABILITY

OPERATION_COUNT, OPERATION_PROBABILITY = 2, 0.5   # operations drawn with replacement; each is applied with this chance
FACTOR, SHEAR, SHIFT, ANGLE = 1.36, 0.21, 7, 21.0
GRAY_FILL = [128.0]                               # color outside the moved or rotated image
ERASE_PROBABILITY, AREA_RANGE, ASPECT_RANGE = 0.6, (0.02, 0.4), (0.3, 1 / 0.3)


def uniform(low, high):
    return low + (high - low) * torch.rand(()).item()


def random_sign():
    return 1 if torch.rand(()) < 0.5 else -1


def affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    return F.affine(image, 0.0, list(translate), 1.0, list(shear), InterpolationMode.BILINEAR, GRAY_FILL, center=[0, 0])


def shear_angle():
    return math.degrees(math.atan(SHEAR)) * random_sign()


OPERATIONS = (
    lambda image: image,
    F.autocontrast,
    F.equalize,
    lambda image: F.adjust_brightness(image, FACTOR),
    lambda image: F.adjust_sharpness(image, FACTOR),
    lambda image: affine(image, shear=(shear_angle(), 0.0)),
    lambda image: affine(image, shear=(0.0, shear_angle())),
    lambda image: affine(image, translate=(SHIFT * random_sign(), 0)),
    lambda image: affine(image, translate=(0, SHIFT * random_sign())),
    lambda image: F.rotate(image, ANGLE * random_sign(), InterpolationMode.BILINEAR, fill=GRAY_FILL),
)


def rand_augment(image):
    """Apply RandAugment (Cubuk et al., NeurIPS 2020) with APTM's operations and strengths: uint8 [3, H, W] -> the same.

    Random numbers come from torch's global generator.
    """
    for number in torch.randint(len(OPERATIONS), (OPERATION_COUNT,)).tolist():
        if torch.rand(()) < OPERATION_PROBABILITY:
            image = OPERATIONS[number](image)
    return image


def sample_erased_rectangle(height, width):
    """Sample ``(top, left, height, width)`` of the rectangle to erase; zeros in 40% of the draws.

    The rectangle covers 2 to 40% of the image, and its aspect ratio is uniform.
    """
    if torch.rand(()) >= ERASE_PROBABILITY:
        return 0, 0, 0, 0
    for _ in range(100):
        area, ratio = uniform(*AREA_RANGE) * height * width, uniform(*ASPECT_RANGE)
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows < height and columns < width:
            top, left = torch.randint(height - rows + 1, ()).item(), torch.randint(width - columns + 1, ()).item()
            return top, left, rows, columns
    return 0, 0, 0, 0


def rand_augment_view(image, seed, resize):
    """Make a view of a training image as APTM does: mirror and augment it, and sample a rectangle that is erased later.

    torch's global generator does not change.

    Args:
        image: a PIL image, or a resized image, uint8 [3, H, W].
        seed: the seed of all random numbers.
        resize: a function that resizes a PIL image.

    Returns:
        ``{'images', 'augmentation_params'}``: uint8 [3, H, W], and int32 [7] as of
        :func:`datasets.transforms.sample_augmentation`, in which only the erased rectangle is set.
    """
    image = image if isinstance(image, torch.Tensor) else F.pil_to_tensor(resize(image))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)   # torch.manual_seed would also reseed the GPU
        if torch.rand(1) < FLIP_PROBABILITY:
            image = image.flip(-1)
        image = rand_augment(image)
        rectangle = sample_erased_rectangle(*image.shape[1:])
    params = torch.tensor([0, CROP_PADDING, CROP_PADDING, *rectangle], dtype=torch.int32)
    return {'images': image, 'augmentation_params': params}

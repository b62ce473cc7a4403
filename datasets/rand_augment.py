"""APTM's augmentation of training images, by torchvision's operations.

Everything but the erasing works on uint8 tensors, so that an image from the image cache is augmented to the very same numbers as one that
has just been read and resized.
"""
import math

import torch
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

CHOICES, CHANCE = 2, 0.5        # operations drawn for an image, with replacement, and each one's chance to be done
FACTOR, SHEAR, SHIFT, ANGLE = 1.36, 0.21, 7, 21.0
GREY = [128.0]                  # what comes into the picture from outside
ERASED, AREA, ASPECT = 0.6, (0.02, 0.4), (0.3, 1 / 0.3)


def uniform(low, high):
    return low + (high - low) * torch.rand(()).item()


def random_sign():
    return 1 if torch.rand(()) < 0.5 else -1


def affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    return F.affine(image, 0.0, list(translate), 1.0, list(shear), InterpolationMode.BILINEAR, GREY, center=[0, 0])


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
    lambda image: F.rotate(image, ANGLE * random_sign(), InterpolationMode.BILINEAR, fill=GREY),
)


def rand_augment(image):
    """RandAugment (Cubuk et al., NeurIPS 2020) with APTM's operations and strengths: uint8 [3, H, W] -> the same. Draws from torch's
    global generator."""
    for number in torch.randint(len(OPERATIONS), (CHOICES,)).tolist():
        if torch.rand(()) < CHANCE:
            image = OPERATIONS[number](image)
    return image


def sample_erased_rectangle(height, width):
    """``(top, left, height, width)`` of what is to be erased, in 60% of the draws; else zeros. An area of 2 to 40% with sides at a uniform
    ratio."""
    if torch.rand(()) >= ERASED:
        return 0, 0, 0, 0
    for _ in range(100):
        area, ratio = uniform(*AREA) * height * width, uniform(*ASPECT)
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows < height and columns < width:
            return (torch.randint(height - rows + 1, ()).item(), torch.randint(width - columns + 1, ()).item(), rows, columns)
    return 0, 0, 0, 0

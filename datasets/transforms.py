"""Image transforms from a PIL image to the model's input."""
import torch
from torchvision import transforms as T

from datasets.augmentation import tbps_transforms
from datasets.device_augmentation import CROP_PADDING
from datasets.rand_augment import rand_augment, sample_erased_rectangle
from utils.image_stats import CLIP_STATS

MEAN, STD = CLIP_STATS.mean, CLIP_STATS.std   # IRRA's names

FLIP_PROBABILITY = ERASE_PROBABILITY = 0.5
ERASED_AREA = {'scale': (0.02, 0.4), 'ratio': (0.3, 3.3)}   # fraction of the image's area; height over width


def build_transforms(img_size=(384, 128), aug=False, is_train=True, image_stats=CLIP_STATS):
    """Build IRRA's ``Compose`` from a PIL image to a normalized float tensor [3, H, W].

    Evaluation only resizes. Training also flips; with ``aug`` it pads, crops and erases as IRRA does. IRRA erases after
    normalization and fills with the mean, which is a light gray there. :func:`sample_augmentation` and
    :func:`datasets.device_augmentation.augment_on_device` do the same to a batch of resized images.

    Args:
        img_size: (H, W) in pixels.
        aug: whether training images are cropped and erased.
        is_train: whether the images are for training.
        image_stats: the backbone's mean, standard deviation, fill value and interpolation.
    """
    img_size = tuple(img_size)
    steps = [build_resize(img_size, image_stats.interpolation)]
    if is_train:
        steps += [T.RandomHorizontalFlip(FLIP_PROBABILITY)]
    if is_train and aug:
        steps += [T.Pad(CROP_PADDING), T.RandomCrop(img_size)]
    steps += [T.ToTensor(), T.Normalize(image_stats.mean, image_stats.std)]
    if is_train and aug:
        steps += [T.RandomErasing(p=ERASE_PROBABILITY, **ERASED_AREA, value=image_stats.fill)]
    return T.Compose(steps)


def build_preprocessing(args, image_stats, is_train):
    """Build the ``Compose`` that ``--preparation`` names."""
    if args.preparation == 'tbps':
        return tbps_transforms(args.img_size, args.img_aug, is_train)
    return build_transforms(args.img_size, is_train and args.img_aug, is_train, image_stats)


def build_resize(img_size, interpolation):
    """Build a transform that resizes to (H, W)."""
    return T.Resize(tuple(img_size), T.InterpolationMode(interpolation))


def sample_augmentation(img_size, aug, seed):
    """Sample the random numbers of ``build_transforms(img_size, aug)`` under ``torch.manual_seed(seed)``.

    :func:`datasets.device_augmentation.augment_on_device` applies them. torch's global generator does not change.

    Returns:
        int32 [7]: whether the image is mirrored (0, 1); top and left of the crop in the padded image; top, left, height
        and width of the erased rectangle. A crop at (10, 10) is not moved. A height of 0 erases nothing.
    """
    height, width = img_size
    corner, rectangle = (CROP_PADDING, CROP_PADDING), (0, 0, 0, 0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPU
        is_mirrored = int(torch.rand(1) < FLIP_PROBABILITY)
        if aug:
            padded = blank_image(height + 2 * CROP_PADDING, width + 2 * CROP_PADDING)
            corner = T.RandomCrop.get_params(padded, (height, width))[:2]
        if aug and torch.rand(1) < ERASE_PROBABILITY:
            *sampled, _ = T.RandomErasing.get_params(blank_image(height, width), **ERASED_AREA, value=[0.0])
            # If ten rectangles don't fit, torchvision returns the whole image, which means that nothing is erased.
            rectangle = sampled if sampled[2] < height else rectangle
    return torch.tensor([is_mirrored, *corner, *rectangle], dtype=torch.int32)


def to_uint8_tensor(image):
    """Convert a PIL image to uint8 [3, H, W]."""
    return T.functional.pil_to_tensor(image)


def apply_rand_augment(image, seed):
    """Flip and augment a resized image as APTM does, and sample the rectangle that is erased later.

    torch's global generator does not change.

    Args:
        image: uint8 [3, H, W].
        seed: the seed of all random numbers.

    Returns:
        ``(image, augmentation_params)``: uint8 [3, H, W], and int32 [7] as of :func:`sample_augmentation`, in which
        only the erased rectangle is set.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if torch.rand(1) < FLIP_PROBABILITY:
            image = image.flip(-1)
        image = rand_augment(image)
        rectangle = sample_erased_rectangle(*image.shape[1:])
        return image, torch.tensor([0, CROP_PADDING, CROP_PADDING, *rectangle], dtype=torch.int32)


def blank_image(height, width):
    """An image [3, height, width] of zeros that shares one number's memory."""
    return torch.zeros(1).expand(3, height, width)

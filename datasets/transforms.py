"""From a PIL image to the model's input."""
import torch
from torchvision import transforms as T

from datasets.augmentation import tbps_transforms
from datasets.rand_augment import sample_erased_rectangle, rand_augment
from datasets.device_augmentation import CROP_PADDING
from utils import pixels as known_pixels

MEAN, STD = known_pixels.CLIP.mean, known_pixels.CLIP.std   # under IRRA's users' names

FLIPPED = ERASED = 0.5                                     # the chance of each
RECTANGLE = {'scale': (0.02, 0.4), 'ratio': (0.3, 3.3)}    # what is erased: share of the area, height over width


def build_transforms(img_size=(384, 128), aug=False, is_train=True, pixels=known_pixels.CLIP):
    """A ``Compose`` from a PIL image to a float tensor [3, H, W] with a backbone's mean and deviation.

    Evaluation resizes only, training also flips, and with ``aug`` pads, crops and erases as IRRA's released code does:
    the erased rectangle is filled after normalising, with the mean's numbers, which are a light grey there and not the
    mean. Behind the resizing, :func:`sample_augmentation` and :func:`datasets.device_augmentation.augment_on_device` do the same to a batch.
    """
    img_size = tuple(img_size)
    steps = [resize(img_size, pixels)]
    if is_train:
        steps += [T.RandomHorizontalFlip(FLIPPED)]
    if is_train and aug:
        steps += [T.Pad(CROP_PADDING), T.RandomCrop(img_size)]
    steps += [T.ToTensor(), T.Normalize(pixels.mean, pixels.std)]
    if is_train and aug:
        steps += [T.RandomErasing(p=ERASED, **RECTANGLE, value=pixels.fill)]
    return T.Compose(steps)


def build_preprocessing(args, pixels, is_train):
    """The ``Compose`` that ``--preparation`` names."""
    if getattr(args, 'preparation', 'irra') == 'tbps':
        return tbps_transforms(args.img_size, args.img_aug, is_train)
    return build_transforms(args.img_size, is_train and args.img_aug, is_train, pixels)


def resize(img_size, pixels):
    return T.Resize(tuple(img_size), T.InterpolationMode(pixels.interpolation))


def sample_augmentation(img_size, aug, seed):
    """The draws of ``build_transforms(img_size, aug)`` under ``torch.manual_seed(seed)``, for :func:`datasets.device_augmentation.augment_on_device`.

    Returns:
        int32 [7]: mirrored or not (0, 1); top and left of the crop in the padded image (10, 10: not moved); top, left, height
        and width of the erased rectangle (height 0: none). torch's global generator is as it was afterwards.
    """
    height, width = img_size
    crop, rectangle = (CROP_PADDING, CROP_PADDING), (0, 0, 0, 0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU, too
        mirrored = int(torch.rand(1) < FLIPPED)
        if aug:
            crop = T.RandomCrop.get_params(blank(height + 2 * CROP_PADDING, width + 2 * CROP_PADDING), (height, width))[:2]
        if aug and torch.rand(1) < ERASED:
            *found, _ = T.RandomErasing.get_params(blank(height, width), **RECTANGLE, value=[0.0])
            # torchvision gives up after ten rectangles that don't fit, and names the whole image for none
            rectangle = found if found[2] < height else rectangle
    return torch.tensor([mirrored, *crop, *rectangle], dtype=torch.int32)


def as_tensor(image):
    """A PIL image -> uint8 [3, H, W]."""
    return T.functional.pil_to_tensor(image)


def sample_rand_augmentation(image, seed):
    """APTM's augmentation of a resized image, uint8 [3, H, W]: ``(the flipped and augmented image, its view)``.

    The view, for :func:`datasets.device_augmentation.augment_on_device`, is what is to be erased; see :func:`sample_augmentation`. torch's global generator is as it was
    afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if torch.rand(1) < FLIPPED:
            image = image.flip(-1)
        image = rand_augment(image)
        return image, torch.tensor([0, CROP_PADDING, CROP_PADDING, *sample_erased_rectangle(*image.shape[1:])], dtype=torch.int32)


def blank(height, width):
    """An image [3, height, width] that takes no room."""
    return torch.zeros(1).expand(3, height, width)

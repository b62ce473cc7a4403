"""From the image cache's uint8 images to the model's input, a whole batch at once and on the device that holds it."""
import functools

import torch
import torch.nn.functional as F

from utils import pixels as known_pixels

CROP_PADDING = 10   # black pixels around an image before it is cropped


@functools.lru_cache(maxsize=None)
def device_constants(device, pixels):
    """Mean, deviation and what is put where something is erased, [3, 1, 1] each. Made once for a device: a copy to it waits for it."""
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (pixels.mean, pixels.std, pixels.fill))


def augment_on_device(images, views=None, pixels=known_pixels.CLIP, statistics=None):
    """What :func:`datasets.transforms.build_transforms` does behind the resizing, on the CPU to the same bits.

    Nothing here reads a value back to the host, so a GPU is not waited for.

    Args:
        images: uint8 [B, 3, H, W].
        views: the samples' own draws, whole numbers [B, 7] of :func:`datasets.transforms.sample_augmentation`; None: as they are.
        pixels: mean and standard deviation, and the color of what is erased.
        statistics: mean and standard deviation of each sample, float32 [B, 2, 3], instead of those of ``pixels``.

    Returns:
        float32 [B, 3, H, W] on the images' device, normalized.
    """
    mean, std, fill = device_constants(images.device, pixels)
    if statistics is not None:
        mean, std = statistics[..., None, None].unbind(1)                    # [B, 3, 1, 1] each
    if views is None:
        return normalize(images, mean, std)
    flip, top, left, *rectangle = views.long().unbind(1)                     # [B] each
    return erase(normalize(crop(images, flip, top, left), mean, std), *rectangle, fill)


def normalize(images, mean, std):
    return images.float().div_(255).sub_(mean).div_(std)


def crop(images, flip, top, left):
    """uint8 [B, 3, H, W], some of them mirrored, and each moved within its black border."""
    height, width = images.shape[2:]
    padded = F.pad(images, (CROP_PADDING,) * 4)                                   # [B, 3, H + 20, W + 20]
    rows = position_range(top, height)                                                 # [B, H]
    columns = position_range(left, width)                                              # [B, W]
    columns = torch.where(flip[:, None] != 0, padded.shape[3] - 1 - columns, columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]        # [B, H, W]
    places = places.flatten(1)[:, None].expand(-1, 3, -1)                    # [B, 3, H W]
    return padded.flatten(2).gather(2, places).view_as(images)


def erase(pixels, top, left, height, width, fill):
    """float32 [B, 3, H, W] with a rectangle of each image filled in place; the released code fills it with the mean's numbers
    although the pixels are normalised."""
    rows, columns = (torch.arange(size, device=pixels.device) for size in pixels.shape[2:])
    rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])         # [B, H]
    columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])   # [B, W]
    inside = rows[:, None, :, None] & columns[:, None, None, :]              # [B, 1, H, W]
    return torch.where(inside, fill, pixels, out=pixels)


def position_range(start, size):
    """[B] -> [B, size]: start, start + 1, ..."""
    return start[:, None] + torch.arange(size, device=start.device)

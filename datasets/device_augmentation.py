"""Augment and normalize the image cache's uint8 images, a batch at a time, on the device that holds them."""
import functools

import torch
import torch.nn.functional as F

from utils.image_stats import CLIP_STATS

CROP_PADDING = 10   # black pixels around an image before it is cropped


@functools.lru_cache(maxsize=None)
def device_constants(device, image_stats):
    """Mean, standard deviation and fill value of ``image_stats`` on a device, [3, 1, 1] each.

    They are cached because every copy to a GPU would wait for it.
    """
    return tuple(torch.tensor(values, device=device).view(3, 1, 1)
                 for values in (image_stats.mean, image_stats.std, image_stats.fill))


def augment_on_device(images, augmentation_params=None, image_stats=CLIP_STATS, sample_stats=None):
    """Flip, crop, normalize and erase a batch, as :func:`datasets.transforms.build_transforms` does after resizing.

    On a CPU the result is bit-identical to the transform's. No value is read back to the host, so a GPU never blocks.

    Args:
        images: uint8 [B, 3, H, W].
        augmentation_params: integers [B, 7] of :func:`datasets.transforms.sample_augmentation`. None: normalize only.
        image_stats: mean and standard deviation, and the fill value of erased rectangles.
        sample_stats: mean and standard deviation of each sample, float32 [B, 2, 3]. They replace those of
            ``image_stats``.

    Returns:
        float32 [B, 3, H, W] on the images' device, normalized.
    """
    mean, std, fill = device_constants(images.device, image_stats)
    if sample_stats is not None:
        mean, std = sample_stats[..., None, None].unbind(1)                  # [B, 3, 1, 1] each
    if augmentation_params is None:
        return normalize(images, mean, std)
    flip, top, left, *rectangle = augmentation_params.long().unbind(1)       # [B] each
    return erase(normalize(crop(images, flip, top, left), mean, std), *rectangle, fill)


def normalize(images, mean, std):
    """Scale uint8 images to 0..1 and normalize them, float32 [B, 3, H, W]."""
    return images.float().div_(255).sub_(mean).div_(std)


def crop(images, flip, top, left):
    """Pad each image, crop it at ``top`` and ``left``, and mirror it if ``flip`` is not 0: uint8 [B, 3, H, W]."""
    height, width = images.shape[2:]
    padded = F.pad(images, (CROP_PADDING,) * 4)                              # [B, 3, H + 20, W + 20]
    rows = position_range(top, height)                                       # [B, H]
    columns = position_range(left, width)                                    # [B, W]
    columns = torch.where(flip[:, None] != 0, padded.shape[3] - 1 - columns, columns)
    positions = rows[:, :, None] * padded.shape[3] + columns[:, None, :]     # [B, H, W]
    positions = positions.flatten(1)[:, None].expand(-1, 3, -1)              # [B, 3, H W]
    return padded.flatten(2).gather(2, positions).view_as(images)


def erase(images, top, left, height, width, fill):
    """Fill a rectangle of each image in place: float32 [B, 3, H, W].

    As in IRRA's reference implementation, the fill value is the mean, although the images are normalized already.
    """
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])             # [B, H]
    columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])   # [B, W]
    is_inside = rows[:, None, :, None] & columns[:, None, None, :]               # [B, 1, H, W]
    return torch.where(is_inside, fill, images, out=images)


def position_range(start, size):
    """[B] -> [B, size]: start, start + 1, ..."""
    return start[:, None] + torch.arange(size, device=start.device)

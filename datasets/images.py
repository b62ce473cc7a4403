"""Read images and make the image fields of samples."""
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from datasets.augmentation import apply_seeded, simclr_transforms
from datasets.transforms import apply_transform
from utils.image_stats import ImageStats
from utils.iotools import read_image
from utils.seeding import derive_seed

IMAGE_FIELDS = 'second_images', 'simclr_images'   # image fields for heads; datasets.fields has the text fields
SECOND_VIEW_KEY, SIMCLR_VIEW_KEYS = 1, (2, 3)     # the views' seeds derive from the sample's seed and these keys


class ImageDataset(Dataset):
    """The images of an evaluation split: ``dataset[i]`` is ``(pid, image)``.

    With an ``image_cache`` (:class:`datasets.image_cache.ImageCache`), its images are returned: uint8 [3, H, W].

    Attributes:
        attributes: ``(labels int8 [N, A], token ids of the prompts [2A, L])`` if attributes are evaluated, else None.
        evaluates_attributes: whether evaluation measures attributes instead of retrieval.
        image_stats: mean and standard deviation of its images (:class:`utils.image_stats.ImageStats`).
    """

    attributes = None
    evaluates_attributes = False

    def __init__(self, image_pids, img_paths, transform=None, image_cache=None, image_stats=None):
        self.image_pids, self.img_paths, self.transform = image_pids, img_paths, transform
        self.image_cache, self.image_stats = image_cache, image_stats

    def __len__(self):
        return len(self.image_pids)

    def __getitem__(self, index):
        if self.image_cache is not None:
            return self.image_pids[index], self.image_cache[self.img_paths[index]]
        image = read_image(self.img_paths[index])
        return self.image_pids[index], self.transform(image) if self.transform else image


class ImageComponent(NamedTuple):
    """How the images of one dataset become views. If several datasets are joined, each has its own settings.

    Attributes:
        first_image_id: the smallest image id of the dataset.
        make_view: a function from ``(image, seed)`` to a dict with ``images``, and with ``augmentation_params`` if the
            device augments. The image is a PIL image, or uint8 [3, H, W] of the image cache.
        image_stats: the mean and standard deviation of the dataset's images.
    """
    first_image_id: int
    make_view: Callable
    image_stats: ImageStats


class ImageTransform:
    """Reads a training pair's image and computes its image fields: ``transform(path, image_id, seed)`` is a dict.

    The dict has ``images`` [3, H, W] and the requested fields. If joined datasets have different statistics, images
    for :func:`datasets.device_augmentation.augment_on_device` come with ``image_stats``, float32 [2, 3].

    Args:
        components: a list of :class:`ImageComponent`, one for each joined dataset, by increasing image ids.
        fields: names of the image fields that heads request, from :data:`IMAGE_FIELDS`.
        image_cache: the :class:`datasets.image_cache.ImageCache` that provides the images, instead of their files.
        img_size: (H, W) of ``simclr_images``.
    """

    def __init__(self, components, fields=(), image_cache=None, img_size=None):
        self.components, self.fields, self.image_cache = components, fields, image_cache
        self.first_image_ids = [component.first_image_id for component in components]
        stats = [component.image_stats for component in components]
        self.image_stats = stats[0]
        self.component_stats = [torch.tensor([one.mean, one.std]) for one in stats] if len(stats) > 1 else None
        if 'simclr_images' in fields:
            self.simclr_transforms = [simclr_transforms(img_size, (one.mean, one.std)) for one in stats]

    def __call__(self, path, image_id, seed):
        image = read_image(path) if self.image_cache is None else self.image_cache[path]
        number = bisect_right(self.first_image_ids, image_id) - 1
        make_view = self.components[number].make_view
        sample = make_view(image, seed)
        if self.component_stats and 'augmentation_params' in sample:
            sample['image_stats'] = self.component_stats[number]
        if 'second_images' in self.fields:
            second = make_view(image, derive_seed(seed, SECOND_VIEW_KEY))
            sample.update({f'second_{name}': value for name, value in second.items()})
        if 'simclr_images' in self.fields:
            pil_image = image if self.image_cache is None else to_pil_image(image)
            views = [apply_seeded(self.simclr_transforms[number], pil_image, seed, key) for key in SIMCLR_VIEW_KEYS]
            sample['simclr_images'] = torch.stack(views)   # [2, 3, H, W]
        return sample


def augment_on_host(image, seed, transform):
    """Make a view with a transform of PIL images, or without any: ``{'images': ...}``."""
    if transform is None:
        return {'images': image}
    image = to_pil_image(image) if isinstance(image, torch.Tensor) else image
    return {'images': apply_transform(image, seed, transform)}


def augment_on_device_later(image, seed, sample_augmentation):
    """Make a view that :func:`datasets.device_augmentation.augment_on_device` completes.

    Args:
        image: uint8 [3, H, W] of the image cache.
        seed: the seed of all random numbers.
        sample_augmentation: a function from the seed to ``augmentation_params``, int32 [7].
    """
    return {'images': image, 'augmentation_params': sample_augmentation(seed)}

"""The training pairs of the data loader."""
from torch.utils.data import Dataset, default_collate

from datasets.fields import FIELDS
from datasets.images import IMAGE_FIELDS
from utils.errors import UserError, unknown_name_error
from utils.seeding import derive_seed


class PairDataset(Dataset):
    """Training pairs: ``dataset[index]`` or ``dataset[index, seed]`` is a dict.

    The dict has ``pids, image_ids, index`` and the fields of both transforms, at least ``images`` and ``caption_ids``.
    All random numbers of a sample derive from ``seed``, by default from the index.

    Args:
        samples: a sequence of ``(pid, image_id, image path, caption)``.
        image_transform: a :class:`datasets.images.ImageTransform`.
        text_transform: a :class:`datasets.text.CaptionTransform`.
        skip_broken: whether a sample whose image cannot be read becomes ``{'skipped': path}``, which :func:`collate`
            omits.

    Attributes:
        noise: the report of :func:`datasets.noise.add_caption_noise`, or None.

    Raises:
        UserError: at indexing: an image cannot be read.
    """

    noise = None

    def __init__(self, samples, image_transform, text_transform, skip_broken=False):
        self.samples, self.skip_broken = samples, skip_broken
        self.image_transform, self.text_transform = image_transform, text_transform

    @property
    def image_stats(self):
        """The mean and standard deviation of its images (of the first dataset, if several are joined)."""
        return self.image_transform.image_stats

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, derive_seed(key))
        pid, image_id, path, _ = self.samples[index]
        try:
            image_fields = self.image_transform(path, image_id, seed)
        except UserError as error:
            if not self.skip_broken:
                raise UserError(f'{error} (python -m datasets.check lists all such images, '
                                '--skip_broken leaves them out)') from None
            return {'skipped': path}
        return {'pids': pid, 'image_ids': image_id, 'index': index, **image_fields, **self.text_transform(index, seed)}


def split_fields(requested):
    """Split the fields that heads request: ``(image fields, text fields)``.

    Raises:
        UserError: a field is unknown.
    """
    for name in requested:
        if name not in FIELDS and name not in IMAGE_FIELDS:
            raise unknown_name_error('batch field, requested by a head and made by no dataset:', name,
                                     [*FIELDS, *IMAGE_FIELDS])
    return ([name for name in requested if name in IMAGE_FIELDS],
            [name for name in requested if name in FIELDS])


def collate(samples):
    """Collate training samples to a batch.

    Samples with broken images are omitted, and the list 'skipped' has their paths. The batch has this key only if there
    are such samples, and no other key if there are no others.
    """
    complete = [sample for sample in samples if 'skipped' not in sample]
    skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
    batch = default_collate(complete) if complete else {}
    return {**batch, 'skipped': skipped} if skipped else batch

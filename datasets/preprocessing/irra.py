"""The preprocessing of IRRA (Jiang and Ye, CVPR 2023) and of the methods that build on it."""
from datasets.augmentation import perturb_caption
from datasets.preprocessing.base import Preprocessing
from datasets.transforms import build_transforms, sample_augmentation


class Irra(Preprocessing):
    """Images are mirrored, and with ``--img_aug`` cropped and erased. ``--txt_aug`` perturbs tokens as RDE does."""

    augments_on_device = True

    def train_transform(self, image_stats):
        return build_transforms(self.img_size, self.args.img_aug, is_train=True, image_stats=image_stats)

    def sample_augmentation(self, seed):
        return sample_augmentation(self.img_size, self.args.img_aug, seed)

    def caption_augmentation(self, side_texts):
        return perturb_caption if self.args.txt_aug else None

"""The base class of all preprocessing families."""
import functools

from datasets.images import augment_on_device_later, augment_on_host
from datasets.rand_augment import rand_augment_view
from datasets.transforms import build_resize, build_transforms
from utils.errors import UserError
from utils.image_stats import CLIP_STATS
from utils.simple_tokenizer import default_tokenizer


class ClipInputs:
    """CLIP's tokenizer and image statistics, for scripts that pass no backbone."""

    @staticmethod
    def tokenizer(args, captions=None):
        return default_tokenizer()

    @staticmethod
    def image_stats(args, dataset=None):
        return CLIP_STATS

    @staticmethod
    def test_caption(dataset, caption):
        return caption


class Preprocessing:
    """Turns images and captions into inputs of a model.

    This class resizes and normalizes images and tokenizes captions as the backbone does, without augmentation. A
    family overrides the methods that it needs.

    Args:
        args: the options.
        backbone: see :func:`datasets.preprocessing.build_preprocessing`.

    Attributes:
        augments_on_device: whether the images of the image cache are augmented in batches, on the device
            (:meth:`sample_augmentation`), instead of one by one with :meth:`train_transform`.
        side_text_keys: the annotation keys of the side texts that :meth:`caption_augmentation` reads
            (:mod:`datasets.side_texts`).
    """

    augments_on_device = False
    side_text_keys = ()

    def __init__(self, args, backbone=None):
        if backbone is None and args.backbone != 'clip':
            raise UserError(f'the data loaders are built for CLIP, and --backbone is {args.backbone}: pass its class, '
                            'build_dataloader(args, backbone_class(args)), with backbone_class of model.backbones')
        self.args, self.backbone, self.img_size = args, backbone or ClipInputs, tuple(args.img_size)

    # -- images --------------------------------------------------------------------------------------------------------

    def image_stats(self, dataset=None):
        """The :class:`~utils.image_stats.ImageStats` of a dataset's images; None: of images of no dataset."""
        return self.backbone.image_stats(self.args, dataset)

    def cache_interpolation(self, is_train):
        """The interpolation that resizes images for the image cache."""
        return self.image_stats().interpolation

    def test_transform(self, image_stats):
        """Build the transform of images that are not augmented: from a PIL image to a float tensor [3, H, W]."""
        return build_transforms(self.img_size, is_train=False, image_stats=image_stats)

    def train_transform(self, image_stats):
        """Build the transform of training images: from a PIL image to a float tensor [3, H, W].

        It draws from torch's default generator, which is seeded for each image.
        """
        return self.test_transform(image_stats)

    def sample_augmentation(self, seed):
        """Sample the parameters of one image for :func:`datasets.device_augmentation.augment_on_device`: int32 [7]."""
        raise NotImplementedError

    def build_view(self, image_stats, is_cached):
        """Build the function that makes views of training images (:class:`datasets.images.ImageComponent`).

        Args:
            image_stats: the statistics of the images.
            is_cached: whether the images come from the image cache, resized, as uint8 [3, H, W].
        """
        if self.args.rand_aug:
            return functools.partial(rand_augment_view, resize=build_resize(self.img_size, image_stats.interpolation))
        if is_cached and self.augments_on_device:
            return functools.partial(augment_on_device_later, sample_augmentation=self.sample_augmentation)
        return functools.partial(augment_on_host, transform=self.train_transform(image_stats))

    # -- captions ------------------------------------------------------------------------------------------------------

    def tokenizer(self, captions=None):
        """The tokenizer. ``captions`` returns the training captions, for a vocabulary that is built from them."""
        return self.backbone.tokenizer(self.args, captions)

    def train_text_length(self, captions, tokenizer):
        """The number of tokens that training captions are cut to: ``--text_length``, as in evaluation."""
        return self.args.text_length

    def test_caption(self, dataset, caption):
        """A caption of a dataset's val or test split as evaluation reads it."""
        return self.backbone.test_caption(dataset, caption)

    def caption_augmentation(self, side_texts):
        """The function that augments training captions (:class:`datasets.text.CaptionTransform`), or None.

        It reads side texts by ``sample.side_text(key)``.

        Args:
            side_texts: ``{key: SideTexts}`` of the keys in :attr:`side_text_keys` (:mod:`datasets.side_texts`).
        """

    def validate_tagging(self):
        """Raise :class:`~utils.errors.UserError` if parts of speech of the original captions are of no use."""

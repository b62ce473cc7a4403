"""The preprocessing of TBPS-CLIP (Cao et al., AAAI 2024)."""
import logging

import torch
# The first version of torchvision's transforms: v2 computes the color jitter of float tensors with other last bits.
from torchvision import transforms as T

from datasets.preprocessing.base import Preprocessing
from datasets.side_texts import BACK_TRANSLATIONS
from utils.errors import UserError
from utils.image_stats import ImageStats
from utils.simple_tokenizer import CleaningTokenizer, SimpleTokenizer, default_tokenizer, remove_punctuation

logger = logging.getLogger('Pedestal.dataset')

# Training images are resized bilinearly, and erased with black before they are normalized.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TBPS_STATS = ImageStats(*IMAGENET, fill=IMAGENET[0], interpolation='bicubic')


class Tbps(Preprocessing):
    """Normalization with ImageNet's statistics, captions without punctuation, and TBPS-CLIP's augmentations.

    ``--img_aug`` draws two of six augmentations per image. ``--txt_aug`` uses back-translations and deletes words.
    """

    side_text_keys = BACK_TRANSLATIONS,

    def image_stats(self, dataset=None):
        return TBPS_STATS

    def cache_interpolation(self, is_train):
        return 'bilinear' if is_train else TBPS_STATS.interpolation

    def train_transform(self, image_stats):
        return tbps_transforms(self.img_size, self.args.img_aug)

    def tokenizer(self, captions=None):
        tokenizer = super().tokenizer(captions)
        return default_tokenizer(CleaningTokenizer) if isinstance(tokenizer, SimpleTokenizer) else tokenizer

    def caption_augmentation(self, side_texts):
        if not self.args.txt_aug:
            return None
        if side_texts[BACK_TRANSLATIONS].missing_count == len(side_texts[BACK_TRANSLATIONS]):
            logger.info("no caption has a back-translation ('captions_bt', which TBPS-CLIP's train_reid.json has): "
                        'words are deleted, and no caption is replaced')
        return augment_sample

    def validate_tagging(self):
        raise UserError('--preparation tbps cleans captions, but the loss attribute, --mlm_masking noun and '
                        '--caption_filter tag the original captions: leave one of the two out')


# -- captions ----------------------------------------------------------------------------------------------------------

def augment_sample(sample):
    """Augment the caption of a :class:`datasets.fields.CaptionSample`: ``(ids [L], token positions)``."""
    caption = augment_caption(sample.caption, sample.rng, sample.side_text(BACK_TRANSLATIONS))
    return sample.transform.tokenize(caption), sample.token_positions


def augment_caption(caption, rng, back_translation='', translation_probability=0.1, deletion_probability=0.05):
    """Augment a training caption as TBPS-CLIP does.

    The caption is replaced by its back-translation with probability ``translation_probability``, if there is one. Then
    each word is deleted with probability ``deletion_probability``. At least one word stays, and a caption of one word
    never changes.
    """
    use_translation = rng.random() < translation_probability
    use_translation = use_translation and remove_punctuation(back_translation)
    words = remove_punctuation(back_translation if use_translation else caption).split()
    if len(words) < 2:
        return ' '.join(words)
    remaining = [word for word in words if rng.random() >= deletion_probability]
    return ' '.join(remaining or [rng.choice(words)])


# -- images ------------------------------------------------------------------------------------------------------------

class RandomChoices(torch.nn.Module):
    """Apply ``count`` of the transforms, drawn with replacement, in the drawn order."""

    def __init__(self, choices, count=2):
        super().__init__()
        self.choices, self.count = torch.nn.ModuleList(choices), count

    def forward(self, image):
        for choice in torch.randint(len(self.choices), (self.count,)).tolist():
            image = self.choices[choice](image)
        return image


def tbps_transforms(img_size, aug=False):
    """Build TBPS-CLIP's ``Compose`` of training images: from a PIL image to a normalized float tensor [3, H, W].

    Images are resized bilinearly. With ``aug`` it draws two of six augmentations with replacement; pixels outside the
    image are black.
    """
    img_size = tuple(img_size)
    augmentation = RandomChoices([
        T.ColorJitter(0.1, 0.1, 0.1, 0), T.RandomRotation(15),
        T.RandomResizedCrop(img_size, (0.9, 1.0), antialias=True), T.RandomGrayscale(0.1),
        T.RandomHorizontalFlip(0.5), T.RandomErasing(0.5, scale=(0.1, 0.2), value=0)])
    augmentations = [augmentation] if aug else []
    return T.Compose([T.Resize(img_size), T.ToTensor(), *augmentations, T.Normalize(*IMAGENET)])

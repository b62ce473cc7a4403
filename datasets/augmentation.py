"""Augmentations beyond IRRA's: captions of RDE and TBPS-CLIP, images of TBPS-CLIP, and the views of SimCLR.

Caption augmentations draw from a ``random.Random``. Image augmentations draw from torch's default generator, which the
caller seeds (:func:`apply_seeded`).
"""
import torch
from torchvision import transforms as T

from utils.image_stats import TBPS_STATS
from utils.seeding import derive_seed
from utils.simple_tokenizer import remove_punctuation

# -- captions ----------------------------------------------------------------------------------------------------------

PERTURB_PROBABILITY = 0.2
MASKED_BELOW, REPLACED_BELOW = 0.6, 0.8   # cumulative: 60% of perturbed tokens are masked, 20% replaced, 20% removed


def perturb_tokens(ids, rng, mask_id):
    """Mask, replace and remove content tokens as RDE's ``--txt_aug`` does (Qin et al., CVPR 2024).

    A short caption can lose all its words.

    Args:
        ids: a list of token ids, zeros at its end. Content tokens are those from 1 to ``mask_id - 1``.
        rng: a ``random.Random``.
        mask_id: the id of the mask token.

    Returns:
        ``(ids, positions)``: a list as long as ``ids``, in which tokens after a removed one move up, and the positions
        in ``ids`` of the tokens that remain.
    """
    remaining, positions = [], []
    for position, token in enumerate(ids):
        if 0 < token < mask_id and rng.random() < PERTURB_PROBABILITY:
            draw = rng.random()
            if draw >= REPLACED_BELOW:
                continue
            token = mask_id if draw < MASKED_BELOW else rng.randrange(1, mask_id)
        remaining.append(token)
        positions.append(position)
    return remaining + [0] * (len(ids) - len(remaining)), positions


def augment_tbps_caption(caption, rng, back_translation='', translation_probability=0.1, deletion_probability=0.05):
    """Augment a training caption as TBPS-CLIP does (Cao et al., AAAI 2024).

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

IMAGENET = TBPS_STATS.mean, TBPS_STATS.std


class RandomChoices(torch.nn.Module):
    """Apply ``count`` of the transforms, drawn with replacement, in the drawn order."""

    def __init__(self, choices, count=2):
        super().__init__()
        self.choices, self.count = torch.nn.ModuleList(choices), count

    def forward(self, image):
        for choice in torch.randint(len(self.choices), (self.count,)).tolist():
            image = self.choices[choice](image)
        return image


def tbps_transforms(img_size, aug=False, is_train=True):
    """Build TBPS-CLIP's ``Compose`` from a PIL image to a float tensor [3, H, W] with ImageNet's normalization.

    Training resizes bilinearly. With ``aug`` it draws two of six augmentations with replacement; pixels outside the
    image are black. Evaluation resizes bicubically.
    """
    img_size = tuple(img_size)
    if not is_train:
        resize = T.Resize(img_size, T.InterpolationMode.BICUBIC, antialias=True)
        return T.Compose([resize, T.ToTensor(), T.Normalize(*IMAGENET)])
    augmentation = RandomChoices([
        T.ColorJitter(0.1, 0.1, 0.1, 0), T.RandomRotation(15),
        T.RandomResizedCrop(img_size, (0.9, 1.0), antialias=True), T.RandomGrayscale(0.1),
        T.RandomHorizontalFlip(0.5), T.RandomErasing(0.5, scale=(0.1, 0.2), value=0)])
    augmentations = [augmentation] if aug else []
    return T.Compose([T.Resize(img_size), T.ToTensor(), *augmentations, T.Normalize(*IMAGENET)])


class RandomGaussianBlur(torch.nn.Module):
    """PIL's Gaussian blur with a radius drawn uniformly from ``min_radius`` to ``max_radius`` pixels."""

    def __init__(self, min_radius=0.1, max_radius=2.0):
        super().__init__()
        self.bounds = min_radius, max_radius

    def forward(self, image):
        from PIL import ImageFilter
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(*self.bounds))))


def simclr_transforms(img_size, mean_and_std=IMAGENET):
    """Build SimCLR's augmentation (Chen et al., ICML 2020) with TBPS-CLIP's settings.

    It maps a PIL image in its original size to a normalized float tensor [3, H, W].
    """
    return T.Compose([
        T.RandomResizedCrop(tuple(img_size), (0.2, 1.0), antialias=True),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), T.RandomGrayscale(0.2),
        T.RandomApply([RandomGaussianBlur()], 0.5), T.RandomHorizontalFlip(0.5),
        T.ToTensor(), T.Normalize(*mean_and_std)])


def apply_seeded(transform, image, *keys):
    """Return ``transform(image)`` with random numbers that derive from the integers ``keys``.

    torch's global generator does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*keys))   # torch.manual_seed would also reseed the GPU
        return transform(image)

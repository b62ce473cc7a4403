"""Augmentations beyond IRRA's: RDE's of captions, TBPS-CLIP's of captions and images, SimCLR's views.

What is random in a caption's follows from a ``random.Random``, what is random in an image's from torch's default generator, which the
caller seeds (:func:`seeded`).
"""
import torch
from torchvision import transforms as T

from utils.pixels import TBPS
from utils.seeding import derive_seed
from utils.simple_tokenizer import without_marks

# -- captions ----------------------------------------------------------------------------------------------------------

# The chance of a token; of the chosen ones up to here are masked, then replaced, and the rest removed.
DISTURBED, MASKED, REPLACED = 0.2, 0.6, 0.8


def perturb_tokens(ids, rng, mask_id):
    """RDE's ``--txt_aug`` (Qin et al., CVPR 2024): content tokens are masked, replaced or removed, and nothing keeps a word, so that a
    short caption can lose all of them.

    Args:
        ids: a list of token ids, zeros at its end. Content tokens are those from 1 to ``mask_id - 1``.
        rng: a ``random.Random``.

    Returns:
        ``(ids, places)``: a list as long as ``ids``, in which what stands behind a removed token moves up, and the places in ``ids``
        of those that are left.
    """
    kept, places = [], []
    for place, token in enumerate(ids):
        if 0 < token < mask_id and rng.random() < DISTURBED:
            draw = rng.random()
            if draw >= REPLACED:
                continue
            token = mask_id if draw < MASKED else rng.randrange(1, mask_id)
        kept.append(token)
        places.append(place)
    return kept + [0] * (len(ids) - len(kept)), places


def augment_tbps_caption(caption, rng, translated='', back_translation=0.1, deletion=0.05):
    """A training caption as TBPS-CLIP (Cao et al., AAAI 2024) draws it anew each time: replaced by its back-translation with the chance
    ``back_translation``, where there is one, and then each word deleted with the chance ``deletion``. One random word always stays,
    and a caption of one word stays as it is."""
    use = rng.random() < back_translation
    words = without_marks(translated if use and without_marks(translated) else caption).split()
    if len(words) < 2:
        return ' '.join(words)
    kept = [word for word in words if rng.random() >= deletion]
    return ' '.join(kept or [rng.choice(words)])


# -- images ------------------------------------------------------------------------------------------------------------

IMAGENET = TBPS.mean, TBPS.std


class RandomChoices(torch.nn.Module):
    """``count`` of the transforms, drawn with replacement, in the drawn order."""

    def __init__(self, choices, count=2):
        super().__init__()
        self.choices, self.count = torch.nn.ModuleList(choices), count

    def forward(self, image):
        for choice in torch.randint(len(self.choices), (self.count,)).tolist():
            image = self.choices[choice](image)
        return image


def tbps_transforms(img_size, aug=False, is_train=True):
    """TBPS-CLIP's ``Compose`` from a PIL image to a float tensor [3, H, W] with ImageNet's mean and deviation.

    Training resizes bilinearly and, with ``aug``, draws two of six augmentations, of which the same may come twice; what lies outside
    of the image is black. Evaluation resizes bicubically.
    """
    img_size = tuple(img_size)
    if not is_train:
        return T.Compose([T.Resize(img_size, T.InterpolationMode.BICUBIC, antialias=True), T.ToTensor(), T.Normalize(*IMAGENET)])
    draws = [RandomChoices([T.ColorJitter(0.1, 0.1, 0.1, 0), T.RandomRotation(15), T.RandomResizedCrop(img_size, (0.9, 1.0), antialias=True),
                        T.RandomGrayscale(0.1), T.RandomHorizontalFlip(0.5), T.RandomErasing(0.5, scale=(0.1, 0.2), value=0)])]
    return T.Compose([T.Resize(img_size), T.ToTensor(), *(draws if aug else []), T.Normalize(*IMAGENET)])


class RandomGaussianBlur(torch.nn.Module):
    """PIL's Gaussian blur with a radius drawn between two bounds."""

    def __init__(self, least=0.1, most=2.0):
        super().__init__()
        self.bounds = least, most

    def forward(self, image):
        from PIL import ImageFilter
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(*self.bounds))))


def simclr_transforms(img_size, mean_and_deviation=IMAGENET):
    """SimCLR's augmentation (Chen et al., ICML 2020) with TBPS-CLIP's settings: from a PIL image as it was read to [3, H, W]."""
    return T.Compose([
        T.RandomResizedCrop(tuple(img_size), (0.2, 1.0), antialias=True), T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        T.RandomGrayscale(0.2), T.RandomApply([RandomGaussianBlur()], 0.5), T.RandomHorizontalFlip(0.5), T.ToTensor(), T.Normalize(*mean_and_deviation)])


def apply_seeded(transform, image, *keys):
    """``transform(image)`` with what is random in it following from the integers ``keys``; torch's generator is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*keys))   # torch.manual_seed would reseed the GPU, too
        return transform(image)

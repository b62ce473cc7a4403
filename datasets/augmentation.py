"""Augmentations for heads and options of several families: captions as in RDE, and the views of SimCLR.

Caption augmentations draw from a ``random.Random``. Image augmentations draw from torch's default generator, which the
caller seeds (:func:`apply_seeded`).
"""
import torch
from torchvision import transforms as T

from utils.seeding import derive_seed

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


def perturb_caption(sample):
    """Apply :func:`perturb_tokens` to a :class:`datasets.fields.CaptionSample`: ``(ids [L], token positions)``."""
    ids, remaining = perturb_tokens(sample.ids.tolist(), sample.rng, sample.transform.mask_id)
    positions = range(len(ids)) if sample.token_positions == slice(None) else sample.token_positions
    return torch.tensor(ids), [positions[position] for position in remaining if position < len(positions)]


# -- images ------------------------------------------------------------------------------------------------------------

class RandomGaussianBlur(torch.nn.Module):
    """PIL's Gaussian blur with a radius drawn uniformly from ``min_radius`` to ``max_radius`` pixels."""

    def __init__(self, min_radius=0.1, max_radius=2.0):
        super().__init__()
        self.bounds = min_radius, max_radius

    def forward(self, image):
        from PIL import ImageFilter
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(*self.bounds))))


def simclr_transforms(img_size, mean_and_std):
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

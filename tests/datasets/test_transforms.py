import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

from datasets.transforms import MEAN, STD, build_transforms


@pytest.fixture(scope='module')
def image():
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (90, 40, 3), dtype=np.uint8))


def names(compose):
    return [type(step).__name__ for step in compose.transforms]


def normalised(image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_numbers_are_clips():
    assert MEAN == (0.48145466, 0.4578275, 0.40821073) and STD == (0.26862954, 0.26130258, 0.27577711)


def test_order():
    resize, end = ['Resize'], ['ToTensor', 'Normalize']
    assert names(build_transforms(is_train=False)) == names(build_transforms(aug=True, is_train=False)) == resize + end
    assert names(build_transforms()) == resize + ['RandomHorizontalFlip'] + end
    assert names(build_transforms(aug=True)) == \
        resize + ['RandomHorizontalFlip', 'Pad', 'RandomCrop'] + end + ['RandomErasing']


def test_evaluation_is_pils_bilinear_and_normalised(image):
    result = build_transforms((48, 16), is_train=False)(image)
    expected = normalised(image.resize((16, 48), Image.Resampling.BILINEAR))
    assert result.shape == (3, 48, 16) and result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_default_size(image):
    assert build_transforms()(image).shape == build_transforms(aug=True)(image).shape == (3, 384, 128)
    assert build_transforms([48, 16], aug=True)(image).shape == (3, 48, 16)


def test_without_augmentation_half_are_flipped(image):
    plain = build_transforms((48, 16), is_train=False)(image)
    flips = []
    for seed in range(200):
        torch.manual_seed(seed)
        result = build_transforms((48, 16))(image)
        flips.append(torch.equal(result, plain.flip(2)))
        assert flips[-1] or torch.equal(result, plain)
    assert 75 < sum(flips) < 125


def augmented(image, size, seed):
    """The published order, step by step, with the same draws."""
    torch.manual_seed(seed)
    image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    if torch.rand(1) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded = Image.new('RGB', (size[1] + 20, size[0] + 20))  # black
    padded.paste(image, (10, 10))
    top, left = int(torch.randint(0, 21, (1,))), int(torch.randint(0, 21, (1,)))
    result = normalised(padded.crop((left, top, left + size[1], top + size[0])))
    if torch.rand(1) < 0.5:
        i, j, h, w, _ = T.RandomErasing.get_params(result, (0.02, 0.4), (0.3, 3.3), [0.0])
        result[:, i:i + h, j:j + w] = torch.tensor(MEAN).view(3, 1, 1)
    return result


def test_augmentation_step_by_step(image):
    transform = build_transforms((48, 16), aug=True)
    for seed in range(40):
        torch.manual_seed(seed)
        result = transform(image)
        torch.testing.assert_close(result, augmented(image, (48, 16), seed), rtol=1e-6, atol=1e-6)


def test_erased_rectangles_have_the_published_numbers_and_areas():
    transform, black = build_transforms((64, 32), aug=True), Image.new('RGB', (32, 64))
    areas = []
    for seed in range(300):
        torch.manual_seed(seed)
        result = transform(black)
        erased = (result - torch.tensor([0.4815, 0.4578, 0.4082]).view(3, 1, 1)).abs().amax(0) < 1e-4
        areas.append(erased.float().mean().item())
        rows, columns = erased.any(1).sum().item(), erased.any(0).sum().item()
        assert erased.sum() == rows * columns  # one rectangle
        if erased.any():
            assert 0.2 < rows / columns < 4
    hit = [area for area in areas if area]
    assert 110 < len(hit) < 190
    assert 0.01 < min(hit) < 0.05 and 0.35 < max(hit) < 0.42


def test_crop_reaches_10_pixels_beyond_each_edge():
    transform, white = build_transforms((48, 16), aug=True), Image.new('RGB', (16, 48), 'white')
    tops, lefts = set(), set()
    black = normalised(Image.new('RGB', (1, 1)))[0, 0, 0]
    for seed in range(400):
        torch.manual_seed(seed)
        outside = transform(white)[0] == black
        tops.add(int(outside.all(1).sum()))
        lefts.add(int(outside.all(0).sum()))
    assert max(tops) == max(lefts) == 10 and min(tops) == min(lefts) == 0


def test_pad_fills_with_black():
    steps = {type(step).__name__: step for step in build_transforms(aug=True).transforms}
    padded = F.pad(Image.new('RGB', (1, 1), 'white'), steps['Pad'].padding, steps['Pad'].fill)
    assert padded.size == (21, 21) and padded.getpixel((0, 0)) == (0, 0, 0)

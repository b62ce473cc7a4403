import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from datasets.transforms import MEAN, STD, build_transforms, sample_augmentation
from utils.seeding import derive_seed
from datasets.device_augmentation import augment_on_device

NOTHING = torch.tensor([[0, 10, 10, 0, 0, 0, 0]])   # neither mirrored nor moved nor erased
DRAWS = 4000


def noise(height, width):
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image):
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def augment_with_torchvision(image, size, aug, seeds):
    """[S, 3, H, W]: torchvision's own pipeline."""
    transform, results = build_transforms(size, aug), []
    for seed in seeds:
        torch.manual_seed(seed)
        results.append(transform(image))
    return torch.stack(results)


# -- the same images as torchvision's, to the last bit -----------------------------------------------------------------

@pytest.mark.parametrize('size, aug, count', [((48, 16), True, 400), ((48, 16), False, 200), ((16, 100), True, 200),
                                              ((384, 128), True, 48),
                                              ((384, 128), False, 8)])
def test_the_seed_gives_what_torchvision_makes_of_it(size, aug, count):
    image, seeds = noise(*size), [derive_seed(1, n) for n in range(count)]
    params = torch.stack([sample_augmentation(size, aug, seed) for seed in seeds])
    assert params.shape == (count, 7) and params.dtype == torch.int32
    assert torch.equal(augment_on_device(pixels(image).expand(count, -1, -1, -1), params),
                       augment_with_torchvision(image, size, aug, seeds))


def test_resized_images():
    image = noise(90, 40)
    resized = pixels(image.resize((16, 48), Image.Resampling.BILINEAR))[None]
    assert torch.equal(augment_on_device(resized, sample_augmentation((48, 16), True, 5)[None]),
                       augment_with_torchvision(image, (48, 16), True, [5]))
    assert torch.equal(augment_on_device(resized)[0], build_transforms((48, 16), is_train=False)(image))


def test_rectangles_that_never_fit_are_left_out():
    erased = sum(bool(sample_augmentation((4, 400), True, seed)[5]) for seed in range(400))
    assert 0 < erased < 120   # torchvision tries ten times, for half of the images


def test_without_augmentation_images_are_only_mirrored():
    params = torch.stack([sample_augmentation((48, 16), False, seed) for seed in range(200)])
    assert torch.equal(params[:, 1:], NOTHING[:, 1:].expand(200, -1).int())
    assert 70 < params[:, 0].sum() < 130


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    one = sample_augmentation((48, 16), True, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(sample_augmentation((48, 16), True, 3), one)


# -- augment_on_device -------------------------------------------------------------------------------------------------

def augment_naively(image, sample_params):
    """One image [3, H, W], pixel by pixel."""
    flip, top, left, erase_top, erase_left, erase_height, erase_width = sample_params
    _, height, width = image.shape
    result = torch.empty(image.shape)
    for channel in range(3):
        for row in range(height):
            for column in range(width):
                y, x = row + top - 10, column + left - 10
                x = x if not 0 <= x < width or not flip else width - 1 - x
                value = image[channel, y, x].item() if 0 <= y < height and 0 <= x < width else 0
                result[channel, row, column] = (value / 255 - MEAN[channel]) / STD[channel]
                if erase_top <= row < erase_top + erase_height and erase_left <= column < erase_left + erase_width:
                    result[channel, row, column] = MEAN[channel]
    return result


def test_each_step_against_a_plain_computation():
    image = pixels(noise(13, 12))
    params = [[0, 10, 10, 0, 0, 0, 0], [1, 10, 10, 0, 0, 0, 0], [0, 0, 20, 0, 0, 0, 0], [1, 20, 3, 0, 0, 0, 0],
             [0, 10, 10, 2, 3, 4, 5], [1, 7, 12, 9, 8, 4, 4]]
    batch = augment_on_device(image.expand(len(params), -1, -1, -1), torch.tensor(params))
    for result, sample_params in zip(batch, params):
        torch.testing.assert_close(result, augment_naively(image, sample_params), rtol=1e-5, atol=1e-5)


def test_result_and_arguments():
    images = torch.stack([pixels(noise(48, 16)), pixels(noise(48, 16)).flip(0)])
    params = torch.stack([sample_augmentation((48, 16), True, seed) for seed in (1, 2)])
    before = images.clone(), params.clone()
    result = augment_on_device(images, params)
    assert result.dtype == torch.float32 and result.shape == images.shape
    assert torch.equal(images, before[0]) and torch.equal(params, before[1])
    assert torch.equal(result, augment_on_device(images, params.long()))
    assert torch.equal(result[1:], augment_on_device(images[1:], params[1:]))
    assert torch.equal(augment_on_device(images), augment_on_device(images, NOTHING.expand(2, -1)))


def test_nothing_is_read_back_from_the_device():
    # Tensors of the meta device have no values: an item(), a nonzero() or a boolean index raises.
    images = torch.empty(4, 3, 48, 16, dtype=torch.uint8, device='meta')
    params = torch.empty(4, 7, dtype=torch.int32, device='meta')
    for result in (augment_on_device(images, params), augment_on_device(images)):
        assert result.device.type == 'meta' and result.shape == (4, 3, 48, 16) and result.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_without_waiting_for_it():
    images = torch.stack([pixels(noise(384, 128))] * 16)
    params = torch.stack([sample_augmentation((384, 128), True, seed) for seed in range(16)])
    on_gpu = images.cuda(), params.cuda()
    augment_on_device(*on_gpu)   # makes the constants
    torch.cuda.set_sync_debug_mode('error')
    try:
        result = augment_on_device(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    torch.testing.assert_close(result.cpu(), augment_on_device(images, params), rtol=1e-6, atol=1e-6)


# -- the distribution of the draws, whatever the seed ------------------------------------------------------------------

@pytest.fixture(scope='module')
def drawn():
    """int64 [DRAWS, 7] for 384x128, with seeds as the samplers give them."""
    return torch.stack([sample_augmentation((384, 128), True, derive_seed(1, 1, index, 0))
                        for index in range(DRAWS)]).long()


def test_half_are_mirrored_and_half_erased_independently(drawn):
    mirrored, erased = drawn[:, 0] == 1, drawn[:, 5] > 0
    for chosen in (mirrored, erased, mirrored ^ erased):
        assert abs(chosen.float().mean() - 0.5) < 0.04   # 5 standard deviations
    assert drawn[:, 0].max() == 1 and drawn[:, 0].min() == 0


@pytest.mark.parametrize('field', [1, 2])
def test_crops_are_uniform_over_all_offsets(drawn, field):
    counts = drawn[:, field].bincount(minlength=21)
    assert len(counts) == 21
    expected = DRAWS / 21
    # chi-square with 20 degrees of freedom: one seed in 100,000
    assert ((counts - expected) ** 2 / expected).sum() < 60
    mirrored = drawn[drawn[:, 0] == 1, field].double()
    assert abs(mirrored.mean() - 10) < 0.7


def test_vertical_and_horizontal_offsets_are_independent(drawn):
    assert abs(torch.corrcoef(drawn[:, 1:3].double().t())[0, 1]) < 0.08


def distance(one, other):
    """Kolmogorov and Smirnov's: the largest difference between two samples' cumulative distributions."""
    one, other = one.sort().values, other.sort().values
    both = torch.cat([one, other])
    below = [torch.searchsorted(values, both, right=True) / len(values) for values in (one, other)]
    return (below[0] - below[1]).abs().max().item()


def shares_and_ratios(rectangles):
    """[S, 2] heights and widths -> fractions of the area [S] and heights over widths [S]."""
    height, width = rectangles.double().unbind(1)
    return height * width / (384 * 128), height / width


def torchvisions_rectangles(count):
    torch.manual_seed(0)
    image = torch.zeros(1).expand(3, 384, 128)
    return torch.tensor([T.RandomErasing.get_params(image, (0.02, 0.4), (0.3, 3.3), [0.0])[2:4] for _ in range(count)])


def plain_rectangles(count):
    """Area uniform, ratio uniform in its logarithm, drawn again if it doesn't fit."""
    rng, rectangles = np.random.RandomState(0), []
    while len(rectangles) < count:
        area, ratio = rng.uniform(0.02, 0.4) * 384 * 128, math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < 384 and width < 128:
            rectangles.append((height, width))
    return torch.tensor(rectangles)


@pytest.mark.parametrize('rectangles', [torchvisions_rectangles, plain_rectangles])
def test_rectangles_have_torchvisions_areas_and_ratios(drawn, rectangles):
    ours = drawn[drawn[:, 5] > 0, 5:]
    limit = 2.47 * math.sqrt(1 / len(ours) + 1 / 6000)   # one seed in 100,000
    assert limit < 0.065
    for mine, theirs in zip(shares_and_ratios(ours), shares_and_ratios(rectangles(6000))):
        assert distance(mine, theirs) < limit
    shares, ratios = shares_and_ratios(ours)
    assert 0.019 < shares.min() < 0.022 and 0.39 < shares.max() < 0.405
    assert 0.27 < ratios.min() < 0.33 and 3.2 < ratios.max() < 3.6


def test_rectangles_lie_anywhere_in_the_image(drawn):
    for column, extent, size in ((3, 5, 384), (4, 6, 128)):
        at, length = drawn[drawn[:, 5] > 0][:, [column, extent]].unbind(1)
        assert (at >= 0).all() and (at + length <= size).all()
        shares = (at + 0.5) / (size - length + 1)
        uniform = (torch.arange(10000) + 0.5) / 10000
        assert distance(shares, uniform) < 2.47 * math.sqrt(1 / len(shares) + 1 / 10000)


def test_each_sample_has_a_draw_of_its_own(drawn):
    erased = drawn[drawn[:, 5] > 0]
    assert len(erased.unique(dim=0)) == len(erased)

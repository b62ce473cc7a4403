"""APTM's augmentation of images."""
import torch

from datasets.rand_augment import OPERATIONS, sample_erased_rectangle, rand_augment


def picture():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 96, 32), generator=generator, dtype=torch.uint8)


def test_each_operation_keeps_size_and_type():
    for operation in OPERATIONS:
        torch.manual_seed(0)
        result = operation(picture())
        assert result.shape == (3, 96, 32) and result.dtype == torch.uint8


def test_translation_is_by_seven_pixels_with_grey():
    torch.manual_seed(0)
    moved = OPERATIONS[7](picture())
    right = torch.equal(moved[:, :, 7:], picture()[:, :, :-7]) and bool((moved[:, :, :7] == 128).all())
    left = torch.equal(moved[:, :, :-7], picture()[:, :, 7:]) and bool((moved[:, :, -7:] == 128).all())
    assert right or left


def test_two_operations_each_half_of_the_time():
    torch.manual_seed(0)
    same = sum(torch.equal(rand_augment(picture()), picture()) for _ in range(400)) / 400
    # Not done twice (a quarter), or the identity; equalising and contrast change little of noise, but something.
    assert 0.25 < same < 0.42


def test_erased_rectangles():
    torch.manual_seed(0)
    drawn = [sample_erased_rectangle(384, 128) for _ in range(800)]
    there = [(top, left, height, width) for top, left, height, width in drawn if height]
    assert abs(len(there) / 800 - 0.6) < 0.05
    for top, left, height, width in there:
        assert 0 <= top <= 384 - height and 0 <= left <= 128 - width
        assert 0.019 < height * width / (384 * 128) < 0.41 and 0.28 < height / width < 3.5

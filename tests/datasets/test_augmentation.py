"""RDE's and TBPS-CLIP's augmentations: the draws, their rates, and that a seed repeats them."""
import random

import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from datasets.augmentation import apply_seeded, perturb_tokens, simclr_transforms
from datasets.preprocessing import build_preprocessing
from datasets.preprocessing.tbps import IMAGENET, RandomChoices, augment_caption, tbps_transforms
from tests.support import options
from utils.simple_tokenizer import remove_punctuation

MASK = 49405
CAPTION = [49406, *range(1000, 1020), 49407, *[0] * 10]


def image():
    generator = torch.Generator().manual_seed(0)
    return T.functional.to_pil_image(torch.randint(0, 256, (3, 90, 40), generator=generator, dtype=torch.uint8))


def test_disturbed_tokens_are_masked_replaced_and_removed_as_often_as_released():
    rng, counts, total = random.Random(0), {'masked': 0, 'removed': 0, 'replaced': 0}, 0
    for _ in range(2000):
        ids, positions = perturb_tokens(CAPTION, rng, MASK)
        assert len(positions) == len(CAPTION) - (20 - ids.index(49407) + 1)
        content = ids[1:ids.index(49407)]
        assert ids[0] == 49406 and len(ids) == len(CAPTION) and not any(ids[ids.index(49407) + 1:])
        counts['masked'] += content.count(MASK)
        counts['removed'] += 20 - len(content)
        counts['replaced'] += sum(token not in CAPTION and token != MASK for token in content)
        assert all(0 < token <= MASK for token in content)
        total += 20
    rates = [counts[name] / total for name in ('masked', 'removed', 'replaced')]
    assert rates == pytest.approx([0.12, 0.04, 0.04], abs=0.005)


def test_disturbed_tokens_follow_from_the_seed_and_masks_are_left_alone():
    assert perturb_tokens(CAPTION, random.Random(3), MASK) == perturb_tokens(CAPTION, random.Random(3), MASK)
    masks = [49406, MASK, MASK, 49407, 0]
    assert all(perturb_tokens(masks, random.Random(seed), MASK)[0] == masks for seed in range(50))
    assert any(perturb_tokens([49406, 5, 49407], random.Random(seed), MASK)[0] == [49406, 49407, 0]
               for seed in range(200))


def test_captions_are_cleaned():
    assert remove_punctuation(' A  "Man"; (tall): wears #1 * jeans!~. End.') == 'a man tall wears 1 jeans end'
    assert remove_punctuation('word ' * 90) == ' '.join(['word'] * 77)
    assert remove_punctuation('.') == ''


def test_words_are_deleted_and_captions_exchanged_for_their_back_translations():
    rng, words, translated = random.Random(0), 0, 0
    for _ in range(4000):
        drawn = augment_caption('a b c d e f g h i j', rng, 'k l m n o p q r s t').split()
        translated += drawn[0] >= 'k'
        words += len(drawn)
    assert translated / 4000 == pytest.approx(0.1, abs=0.015) and words / 40000 == pytest.approx(0.95, abs=0.005)


def test_something_always_stays_of_a_caption():
    seeds = [random.Random(seed) for seed in range(100)]
    assert {augment_caption('Coat.', rng, deletion_probability=1.0) for rng in seeds} == {'coat'}
    assert {augment_caption('red coat', rng, deletion_probability=1.0) for rng in seeds} == {'red', 'coat'}
    assert {augment_caption('red coat', rng, back_translation=' . ', translation_probability=1.0,
                                 deletion_probability=0.0) for rng in seeds} == {'red coat'}
    assert augment_caption('', seeds[0]) == ''


def test_two_are_drawn_with_replacement_in_any_order():
    class Add(torch.nn.Module):
        def __init__(self, letter):
            super().__init__()
            self.letter = letter

        def forward(self, word):
            return word + self.letter
    torch.manual_seed(0)
    drawn = {RandomChoices([Add(letter) for letter in 'abc'])('') for _ in range(200)}
    assert drawn == {x + y for x in 'abc' for y in 'abc'}


@pytest.mark.parametrize('make', [lambda: tbps_transforms((64, 48), aug=True),
                                  lambda: simclr_transforms((64, 48), IMAGENET)])
def test_a_seed_repeats_an_image_and_leaves_the_generator_alone(make):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (apply_seeded(make(), image(), *keys) for keys in ((7, 1), (7, 1), (7, 2)))
    assert torch.equal(torch.rand(3), expected)
    assert first.shape == (3, 64, 48) and torch.equal(first, again) and not torch.equal(first, other)


def test_without_augmentation_an_image_is_resized_and_normalised():
    plain = T.functional.to_tensor(image().resize((48, 64), Image.BILINEAR))
    torch.testing.assert_close(tbps_transforms((64, 48))(image()), T.functional.normalize(plain, *IMAGENET))
    bicubic = T.functional.to_tensor(image().resize((48, 64), Image.BICUBIC))
    preprocessing = build_preprocessing(options(preparation='tbps', img_size=(64, 48)))
    torch.testing.assert_close(preprocessing.test_transform(preprocessing.image_stats())(image()),
                               T.functional.normalize(bicubic, *IMAGENET))


def test_each_of_the_six_augmentations_is_used_and_holes_are_black():
    transform = tbps_transforms((64, 48), aug=True).transforms[2]
    assert [type(choice).__name__ for choice in transform.choices] == [
        'ColorJitter', 'RandomRotation', 'RandomResizedCrop', 'RandomGrayscale', 'RandomHorizontalFlip',
        'RandomErasing']
    white = torch.ones(3, 64, 48)
    torch.manual_seed(1)
    rotated, erased = transform.choices[1](white), T.RandomErasing(1.0, scale=(0.1, 0.2), value=0)(white)
    assert rotated.min() == erased.min() == 0
    areas = [1 - float(transform.choices[5](white).mean()) for _ in range(100)]
    assert all(area == 0 or 0.08 < area < 0.22 for area in areas) and 0.3 < sum(area == 0 for area in areas) / 100 < 0.7

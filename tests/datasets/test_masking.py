import random

import pytest

from datasets.masking import mask_tokens
from utils.simple_tokenizer import SimpleTokenizer

MASK, START, END = 49405, 49406, 49407


WORDS = random.Random(0)


def caption(length, padding=5):
    return [START] + [WORDS.randrange(1, MASK) for _ in range(length)] + [END] + [0] * padding


def kinds(ids, masked, labels):
    """Number of content tokens that were chosen and are now the mask, unchanged, other."""
    chosen = [(old, new) for old, new, label in zip(ids, masked, labels) if label]
    mask, same = sum(new == MASK for _, new in chosen), sum(new == old for old, new in chosen)
    return mask, same, len(chosen) - mask - same


def test_labels_are_the_chosen_tokens_and_nothing_else_changes():
    rng = random.Random(1)
    for _ in range(300):
        ids = caption(30)
        masked, labels = mask_tokens(ids, rng, MASK)
        assert len(masked) == len(labels) == len(ids)
        for position, (old, new, label) in enumerate(zip(ids, masked, labels)):
            assert label in (0, old)
            assert label or new == old
            assert label == 0 or 1 <= position <= 30
            assert new in (START, END) if old in (START, END) else new == 0 if old == 0 else 0 < new <= MASK
        assert any(labels)


def test_shares():
    """15% of the tokens, 80/10/10; 4 standard deviations around them."""
    rng, total, counts = random.Random(2), 0, [0, 0, 0]
    for _ in range(2000):
        ids = caption(60)
        counts = [a + b for a, b in zip(counts, kinds(ids, *mask_tokens(ids, rng, MASK)))]
        total += 60
    chosen = sum(counts)
    assert abs(chosen / total - 0.15) < 4 * (0.15 * 0.85 / total) ** 0.5
    for count, share in zip(counts, (0.8, 0.1, 0.1)):
        assert abs(count / chosen - share) < 4 * (share * (1 - share) / chosen) ** 0.5


@pytest.mark.parametrize('rates, share', [
    ((1.0, 0.0), (1, 0, 0)), ((0.0, 1.0), (0, 1, 0)), ((0.0, 0.0), (0, 0, 1)), ((0.5, 0.5), (.5, .5, 0))])
def test_rates(rates, share):
    rng, counts = random.Random(3), [0, 0, 0]
    for _ in range(500):
        ids = caption(60)
        counts = [a + b for a, b in zip(counts, kinds(ids, *mask_tokens(ids, rng, MASK, *rates)))]
    for count, expected in zip(counts, share):
        assert abs(count / sum(counts) - expected) < 0.05 and (count > 0) == (expected > 0)


def test_short_captions_have_at_least_the_first_token_masked():
    rng, forced = random.Random(4), 0
    for _ in range(400):
        masked, labels = mask_tokens([START, 320, 736, END, 0], rng, MASK, 0.0, 1.0)  # chosen by chance: unchanged
        assert any(labels)
        if masked == [START, MASK, 736, END, 0]:
            assert labels == [0, 320, 0, 0, 0]
            forced += 1
        else:
            assert masked == [START, 320, 736, END, 0]
    assert abs(forced / 400 - 0.85 ** 2) < 0.1


def test_captions_without_content():
    for ids in ([START, END, 0, 0], [START, MASK, END], []):
        assert mask_tokens(ids, random.Random(0), MASK) == (ids, [0] * len(ids))


def test_masks_that_are_in_the_caption_already_are_no_content():
    rng = random.Random(5)
    for _ in range(200):
        masked, labels = mask_tokens([START, MASK, 320, END], rng, MASK)
        assert masked[1] == MASK and labels == [0, 0, 320, 0]


def test_random_tokens_are_words_of_the_whole_vocabulary():
    decoder, rng = SimpleTokenizer().decoder, random.Random(6)
    drawn = [new for _ in range(400) for new, label in zip(*mask_tokens(caption(60), rng, MASK, 0.0, 0.0)) if label]
    drawn = [new for new in drawn if new != MASK]
    assert all(0 < new < MASK and not decoder[new].startswith('<|') for new in drawn)
    assert min(drawn) < 100 and max(drawn) > MASK - 100 and abs(sum(drawn) / len(drawn) / MASK - 0.5) < 0.03


class Edge(random.Random):
    """Chooses every token and draws the lowest or the highest number allowed."""
    lowest = True

    def random(self):
        return 0.0

    def randrange(self, start, stop):
        return start if self.lowest else stop - 1


def test_random_tokens_at_the_edges_are_neither_padding_nor_special():
    rng = Edge(0)
    assert mask_tokens([START, 320, END], rng, MASK, 0.0, 0.0)[0] == [START, 1, END]
    rng.lowest = False
    assert mask_tokens([START, 320, END], rng, MASK, 0.0, 0.0)[0] == [START, MASK - 1, END]


def test_result_follows_from_the_generator_alone():
    ids = caption(40)
    state, original = random.getstate(), list(ids)
    assert mask_tokens(ids, random.Random(9), MASK) == mask_tokens(ids, random.Random(9), MASK)
    assert mask_tokens(ids, random.Random(9), MASK) != mask_tokens(ids, random.Random(10), MASK)
    assert ids == original and random.getstate() == state

"""APTM's masking of captions."""
import random
from collections import Counter

import pytest

from datasets.whole_word_masking import MAX_POSITIONS, mask_whole_words

MASK, VOCAB = 103, 1000
CONTINUES = frozenset(range(500, 600))


def draw(ids, seed):
    return mask_whole_words(ids, random.Random(seed), MASK, CONTINUES, VOCAB)


@pytest.mark.parametrize('length, count', [(56, 10), (40, 10), (20, 5), (14, 4), (4, 1), (2, 1)])
def test_a_quarter_of_the_places_at_most_ten_and_never_the_first(length, count):
    ids = [101] + list(range(200, 200 + length - 1))
    for seed in range(50):
        masked, positions, labels = draw(ids, seed)
        assert len(masked) == length and len(positions) == len(labels) == MAX_POSITIONS
        chosen = [position for position, label in zip(positions, labels) if label != -100]
        assert len(chosen) == len(set(chosen)) == count
        assert 0 not in chosen and masked[0] == 101
        assert [ids[position] for position in chosen] == labels[:count]
        assert positions[count:] == [0] * (MAX_POSITIONS - count)
        assert all(masked[position] == ids[position] for position in range(length) if position not in chosen)


def test_words_are_taken_whole():
    ids = [101, 200, 201, 501, 502, 203, 204, 205] + list(range(210, 240))       # 201 501 502 is one word
    masked_counts = [len({2, 3, 4} & set(draw(ids, seed)[1])) for seed in range(200)]
    complete, partial = masked_counts.count(3), sum(map(bool, masked_counts))
    assert complete > 0.7 * partial > 50          # in parts only if the last draw is cut to the count


def test_a_word_that_is_the_whole_caption_is_cut_to_the_count():
    _, positions, labels = draw([101, 200, 501, 502, 503, 504, 505, 506], 0)
    assert sum(label != -100 for label in labels) == 2 and all(position > 0 for position in positions[:2])


def test_padding_is_masked_and_predicted_as_released():
    ids = [101, 200, 201] + [0] * 53
    assert any(0 in draw(ids, seed)[2] for seed in range(20))


def test_shares_of_mask_random_and_kept():
    ids = [101] + list(range(200, 255))
    fate = Counter()
    for seed in range(600):
        masked, positions, _ = draw(ids, seed)
        fate.update('mask' if masked[position] == MASK else 'kept' if masked[position] == ids[position] else 'other'
                    for position in positions)
    total = sum(fate.values())
    assert abs(fate['mask'] / total - 0.8) < 0.02 and abs(fate['other'] / total - 0.1) < 0.015
    assert abs(fate['kept'] / total - 0.1) < 0.015


def test_runs_make_neighbours_likelier_than_chance():
    ids = [101] + list(range(200, 255))
    pairs = sum(len({position + 1 for position in positions} & set(positions))
                for positions in (draw(ids, seed)[1] for seed in range(300)))
    assert pairs / 300 > 10 * 9 / 55 * 1.15


def test_the_same_draw_for_the_same_seed():
    ids = [101] + list(range(200, 255))
    assert draw(ids, 3) == draw(ids, 3) != draw(ids, 4)

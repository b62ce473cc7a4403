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
        masked, places, labels = draw(ids, seed)
        assert len(masked) == length and len(places) == len(labels) == MAX_POSITIONS
        chosen = [place for place, label in zip(places, labels) if label != -100]
        assert len(chosen) == len(set(chosen)) == count
        assert 0 not in chosen and masked[0] == 101
        assert [ids[place] for place in chosen] == labels[:count]
        assert places[count:] == [0] * (MAX_POSITIONS - count)
        assert all(masked[place] == ids[place] for place in range(length) if place not in chosen)


def test_words_are_taken_whole():
    ids = [101, 200, 201, 501, 502, 203, 204, 205] + list(range(210, 240))       # 201 501 502 is one word
    taken = [len({2, 3, 4} & set(draw(ids, seed)[1])) for seed in range(200)]
    whole, some = taken.count(3), sum(map(bool, taken))
    assert whole > 0.7 * some > 50          # in parts only where the last of what was drawn is cut to the count


def test_a_word_that_is_the_whole_caption_is_cut_to_the_count():
    _, places, labels = draw([101, 200, 501, 502, 503, 504, 505, 506], 0)
    assert sum(label != -100 for label in labels) == 2 and all(place > 0 for place in places[:2])


def test_padding_is_masked_and_predicted_as_released():
    ids = [101, 200, 201] + [0] * 53
    assert any(0 in draw(ids, seed)[2] for seed in range(20))


def test_shares_of_mask_random_and_kept():
    ids = [101] + list(range(200, 255))
    fate = Counter()
    for seed in range(600):
        masked, places, _ = draw(ids, seed)
        fate.update('mask' if masked[place] == MASK else 'kept' if masked[place] == ids[place] else 'other' for place in places)
    total = sum(fate.values())
    assert abs(fate['mask'] / total - 0.8) < 0.02 and abs(fate['other'] / total - 0.1) < 0.015 and abs(fate['kept'] / total - 0.1) < 0.015


def test_runs_make_neighbours_likelier_than_chance():
    ids = [101] + list(range(200, 255))
    pairs = sum(len({place + 1 for place in places} & set(places)) for places in (draw(ids, seed)[1] for seed in range(300)))
    assert pairs / 300 > 10 * 9 / 55 * 1.15


def test_the_same_draw_for_the_same_seed():
    ids = [101] + list(range(200, 255))
    assert draw(ids, 3) == draw(ids, 3) != draw(ids, 4)

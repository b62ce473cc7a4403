"""The second stage's scores."""
import pytest
import torch

from utils.errors import UserError
from utils.reranking import combined, rerank


def first_stage():
    return torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.3, 0.4, 0.2, 0.1]])


def test_only_the_best_are_scored_and_lead():
    asked = []

    def match(caption, images):
        asked.append((caption, images.tolist()))
        return torch.tensor([0.0, 5.0])
    scores = rerank(first_stage(), 2, match)
    assert asked == [(0, [0, 2]), (1, [1, 0])]
    assert scores[0].argsort(descending=True).tolist() == [2, 0, 3, 1]      # the rest in the first stage's order
    assert scores[1].argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_a_caption_does_not_depend_on_others_unless_asked():
    match = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([-50.0, 60.0])}

    def scores(rows, score):
        return rerank(first_stage()[rows], 2, lambda caption, images: match[rows[caption]], score, progress=False)
    assert torch.equal(scores([0, 1], 'caption')[0], scores([0], 'caption')[0])
    assert not torch.allclose(scores([0, 1], 'released')[0], scores([0], 'released')[0])


def test_released_score_by_hand():
    second, first = torch.tensor([[1.0, 3.0], [0.0, 4.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.25]])
    torch.testing.assert_close(combined(second, first, 'released'), second / 4 + 0.002 * first)
    torch.testing.assert_close(combined(second, first)[0], torch.tensor([0.002, 1.0]))


def test_equal_scores_are_no_nan():
    assert torch.isfinite(combined(torch.ones(2, 3), torch.ones(2, 3))).all()
    assert torch.isfinite(combined(torch.ones(2, 3), torch.ones(2, 3), 'released')).all()


@pytest.mark.parametrize('count', [0, 5, -1])
def test_a_count_outside_the_gallery(count):
    with pytest.raises(UserError, match='the gallery holds 4 images'):
        rerank(first_stage(), count, None)

"""Scores of re-ranking."""
import pytest
import torch

from utils.errors import UserError
from utils.reranking import global_bounds, combine_scores, score_candidates


def first_stage():
    return torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.3, 0.4, 0.2, 0.1]])


def rerank(similarity, match, score='caption', rows=1):
    """Compute re-ranked scores [Q, G] for the two best images, in slabs of ``rows`` captions."""
    best, scores = score_candidates(similarity.split(rows), 2, similarity.shape[1], match, progress=False)
    return torch.cat(list(combine_scores(similarity.split(rows), best, scores, score,
                                         global_bounds(similarity.split(rows)), temperature=0.1)))


def test_only_the_best_are_scored_and_lead():
    asked = []

    def match(caption, images):
        asked.append((caption, images.tolist()))
        return torch.tensor([0.0, 5.0])
    scores = rerank(first_stage(), match)
    assert asked == [(0, [0, 2]), (1, [1, 0])]
    assert scores[0].argsort(descending=True).tolist() == [2, 0, 3, 1]      # the rest in the first stage's order
    assert scores[1].argsort(descending=True).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('score', ['caption', 'released', 'itm', 'sum'])
def test_slabs_change_nothing(score):
    match = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([-50.0, 60.0])}
    assert torch.equal(*(rerank(first_stage(), lambda caption, images: match[caption], score, rows) for rows in (1, 2)))


def test_a_caption_does_not_depend_on_others_unless_asked():
    match = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([-50.0, 60.0])}

    def scores(rows, score):
        return rerank(first_stage()[rows], lambda caption, images: match[rows[caption]], score)
    assert torch.equal(scores([0, 1], 'caption')[0], scores([0], 'caption')[0])
    assert not torch.allclose(scores([0, 1], 'released')[0], scores([0], 'released')[0])


def test_released_score_by_hand():
    first, second = torch.tensor([[0.5, 0.0], [1.0, 0.25]]), torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    found = rerank(first, lambda caption, images: second[caption, images], 'released')
    torch.testing.assert_close(found, second / 4 + 0.002 * first)


def test_sum_of_log_odds_and_cosine_over_the_temperature_by_hand():
    def ranking(log_odds):
        return rerank(first_stage()[:1], lambda caption, images: log_odds, 'sum')[0].argsort(descending=True).tolist()
    assert ranking(torch.tensor([0.0, 0.9])) == [0, 2, 3, 1]        # 9.0 and 8.9
    assert ranking(torch.tensor([0.0, 1.1])) == [2, 0, 3, 1]        # 9.0 and 9.1


def test_scores_of_pairs_alone_order_the_best_images():
    """No score is rounded, equal scores keep the first stage's order, and so do the other images."""
    match = {0: torch.tensor([1e8, 1e8 + 8]), 1: torch.tensor([-3.0, -3.0])}
    scores = rerank(first_stage(), lambda caption, images: match[caption], 'itm')
    assert scores[0].argsort(descending=True).tolist() == [2, 0, 3, 1]
    assert scores[1].argsort(descending=True).tolist() == [1, 0, 2, 3]
    reverse = rerank(-first_stage(), lambda caption, images: -match[caption], 'itm')
    assert reverse[0].argsort(descending=True).tolist() == [1, 3, 2, 0]
    assert scores[0, 1] == first_stage()[0, 1] and scores[0, [0, 2]].min() > 1


def test_equal_scores_are_no_nan():
    for score in ('caption', 'released', 'itm'):
        assert torch.isfinite(rerank(torch.ones(2, 3), lambda caption, images: torch.ones(2), score)).all()


@pytest.mark.parametrize('count', [0, 5, -1])
def test_a_count_outside_the_gallery(count):
    with pytest.raises(UserError, match='the gallery holds 4 images'):
        score_candidates([first_stage()], count, 4, None)

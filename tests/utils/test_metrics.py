"""Ranking against the released results and a plain loop; ties, NaN, and the check that embeddings stand alone."""
import pytest
import torch
from torch.utils.data import DataLoader

from tests.support import golden
from utils import metrics
from utils.errors import UserError
from utils.metrics import Evaluator, check_independence, rank, rank_relevant, summary


@pytest.mark.parametrize('case', ['small', 'cuhk_like', 'one_relevant', 'many'])
def test_released_figures(case):
    vectors, _ = golden('metrics')
    cmc, m_ap, m_inp, _ = rank(vectors[f'{case}/similarity'], vectors[f'{case}/q_pids'], vectors[f'{case}/g_pids'])
    torch.testing.assert_close(cmc, vectors[f'{case}/cmc'], rtol=1e-5, atol=1e-5)
    assert float(m_ap) == pytest.approx(float(vectors[f'{case}/mAP']), rel=1e-5)
    assert float(m_inp) == pytest.approx(float(vectors[f'{case}/mINP']), rel=1e-5)


def plain_rank(similarity, q_pids, g_pids, max_rank):
    """Rank-k, mAP and mINP in percent, one query after the other."""
    cmc, precisions, penalties = [0.0] * max_rank, [], []
    for row, pid in zip(similarity.tolist(), q_pids.tolist()):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        places = [place for place, j in enumerate(order, 1) if g_pids[j] == pid]
        for k in range(1, max_rank + 1):
            cmc[k - 1] += 100 * (places[0] <= k) / len(q_pids)
        precisions.append(sum(hits / place for hits, place in enumerate(places, 1)) / len(places))
        penalties.append(len(places) / places[-1])
    return cmc, 100 * sum(precisions) / len(q_pids), 100 * sum(penalties) / len(q_pids)


@pytest.mark.parametrize('queries, gallery, levels', [(1, 1, 0), (9, 4, 0), (40, 33, 0), (40, 33, 4), (25, 60, 2)])
def test_plain_loop_agrees_ties_included(queries, gallery, levels):
    generator = torch.Generator().manual_seed(queries + gallery)
    similarity = torch.rand(queries, gallery, generator=generator)
    if levels:  # few different values: most comparisons are ties
        similarity = (similarity * levels).floor()
    g_pids = torch.randint(0, max(1, gallery // 4), (gallery,), generator=generator)
    q_pids = g_pids[torch.randint(0, gallery, (queries,), generator=generator)]
    cmc, m_ap, m_inp, indices = rank(similarity, q_pids, g_pids)
    expected = plain_rank(similarity, q_pids, g_pids, 10)
    assert cmc.tolist() == pytest.approx(expected[0], rel=1e-5)
    assert (float(m_ap), float(m_inp)) == pytest.approx(expected[1:], rel=1e-5)
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :10]
    assert torch.equal(indices, order)


def test_blocks_do_not_change_the_figures(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    similarity, g_pids = torch.rand(50, 20, generator=generator), torch.arange(20) % 5
    q_pids = torch.arange(50) % 5
    whole = summary(similarity, q_pids, g_pids)
    monkeypatch.setattr(metrics, 'BLOCK', 60)
    assert summary(similarity, q_pids, g_pids) == whole


def test_without_map_only_cmc_and_indices_come_back():
    cmc, indices = rank(torch.eye(4), torch.arange(4), torch.arange(4), max_rank=3, get_mAP=False)
    assert cmc.tolist() == [100, 100, 100] and indices.shape == (4, 3)


def test_ties_are_counted_where_they_decide():
    similarity = torch.tensor([[1.0, 1.0, 0.0],    # the relevant image ties with another: counts
                               [0.5, 0.2, 0.2],    # two others tie: nothing hangs on it
                               [0.1, 0.2, 0.3]])
    assert rank_relevant(similarity, torch.tensor([1, 0, 2]), torch.tensor([0, 1, 2])).ties == 1


def test_nan_is_an_error_not_a_rank():
    similarity = torch.eye(3)
    similarity[1, 2] = float('nan')
    with pytest.raises(UserError, match='1 of 9 similarities are NaN'):
        rank(similarity, torch.arange(3), torch.arange(3))


def test_query_without_a_match_is_an_error():
    with pytest.raises(UserError, match='no gallery item of their identity'):
        rank(torch.eye(3), torch.tensor([0, 1, 7]), torch.arange(3))


class Toy(torch.nn.Module):
    """Embeds vectors as themselves, or, if ``leaks``, mixed with their batch."""

    def __init__(self, leaks=False):
        super().__init__()
        self.leaks, self.anchor = leaks, torch.nn.Parameter(torch.zeros(1))

    def encode_image(self, x):
        return x + x.mean(dim=0) if self.leaks else x + 0

    encode_text = encode_image


class Pairs(torch.utils.data.Dataset):
    def __init__(self, vectors, pids):
        self.vectors, self.pids = vectors, pids

    def __len__(self):
        return len(self.pids)

    def __getitem__(self, i):
        return self.pids[i], self.vectors[i]


def loaders(noise=0.1):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 16, generator=generator)
    pids = torch.arange(12).repeat_interleave(3)
    sides = [centres[pids] + noise * torch.randn(36, 16, generator=generator) for _ in range(2)]
    return [DataLoader(Pairs(side, pids.tolist()), batch_size=8) for side in sides]


def test_evaluator():
    images, texts = loaders()
    evaluator = Evaluator(images, texts)
    assert evaluator.eval(Toy().train(), i2t_metric=True) == 100.0
    assert set(evaluator.results) == {'t2i', 'i2t'} and evaluator.results['i2t']['R1'] == 100.0
    qfeats, gfeats, qids, gids = evaluator._compute_embedding(Toy())
    assert torch.equal(gfeats, images.dataset.vectors) and torch.equal(qids, gids) and qids.tolist() == images.dataset.pids


def test_evaluation_leaves_the_model_in_its_mode():
    model = Toy().train()
    Evaluator(*loaders()).eval(model)
    assert model.training


def test_broken_embeddings_are_an_error():
    images, texts = loaders()
    texts.dataset.vectors[5] = float('inf')
    with pytest.raises(UserError, match='1 of 36 caption embeddings are NaN or infinite'):
        Evaluator(images, texts).eval(Toy())


@pytest.mark.parametrize('leaks', [False, True])
def test_independence_of_the_batch(leaks):
    found = check_independence(Toy(leaks), *loaders())
    assert found.holds is not leaks
    assert ('DEPEND ON THE BATCH' in str(found)) is leaks


def test_a_leak_is_found_from_the_evaluations_own_embeddings():
    """The sample alone could look clean in a batch of its own; the evaluation's embeddings are what must be reproduced."""
    images, texts = loaders()
    evaluator = Evaluator(images, texts)
    qfeats, gfeats, _, _ = evaluator._compute_embedding(Toy(leaks=True))
    assert not check_independence(Toy(leaks=False), images, texts, (qfeats, gfeats)).holds

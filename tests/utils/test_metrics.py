"""Ranking against reference results and a plain loop; ties, NaN, and the check of independent embeddings."""
import json
import subprocess
import sys
import tracemalloc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from processor.evaluation import evaluate_embeddings
from processor.independence import check_independence
from tests.support import HANG_TIMEOUT, ROOT, golden, golden_cases
from utils import ranking
from utils.errors import UserError
from processor.evaluation import Evaluator
from utils.metrics import rank
from utils.retrieval_metrics import compute_metrics
from utils.ranking import rank_embeddings, rank_relevant


@pytest.mark.parametrize('file, case', golden_cases('metrics*', 'similarity'))
def test_released_figures(file, case):
    vectors, _ = golden(file)
    cmc, m_ap, m_inp, _ = rank(vectors[f'{case}/similarity'], vectors[f'{case}/q_pids'], vectors[f'{case}/g_pids'])
    torch.testing.assert_close(cmc, vectors[f'{case}/cmc'], rtol=1e-5, atol=1e-5)
    assert float(m_ap) == pytest.approx(float(vectors[f'{case}/mAP']), rel=1e-5)
    assert float(m_inp) == pytest.approx(float(vectors[f'{case}/mINP']), rel=1e-5)


def plain_rank(similarity, q_pids, g_pids, max_rank):
    """Compute Rank-k, mAP and mINP in percent, query by query."""
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
    expected = compute_metrics(similarity, q_pids, g_pids)
    monkeypatch.setattr(ranking, 'BLOCK', 60)
    assert compute_metrics(similarity, q_pids, g_pids) == expected


def test_without_map_only_cmc_and_indices_come_back():
    cmc, indices = rank(torch.eye(4), torch.arange(4), torch.arange(4), max_rank=3, get_mAP=False)
    assert cmc.tolist() == [100, 100, 100] and indices.shape == (4, 3)


def test_ties_are_counted_where_they_decide():
    similarity = torch.tensor([[1.0, 1.0, 0.0],    # the relevant image ties with another: counts
                               [0.5, 0.2, 0.2],    # two others tie: does not count
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


# -- ranking embeddings ------------------------------------------------------------------------------------------------

def exact_embeddings(count, generator, width=64):
    """Draw ones and minus ones, [count, width].

    With a width of 4^n, all computations of cosine similarities are exact.
    """
    return torch.randint(0, 2, (count, width), generator=generator) * 2.0 - 1


def plain_ranking(similarity, q_pids, g_pids, max_rank=10):
    """Compute (ranks, counts, top, ties) of a :class:`Ranking` as lists, by sorting each row."""
    ranks, counts, top, ties = [], [], [], 0
    for row, pid in zip(similarity.tolist(), q_pids.tolist()):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        places = [place for place, j in enumerate(order) if g_pids[j] == pid]
        ranks, counts, top = ranks + places, counts + [len(places)], top + [order[:max_rank]]
        others = {value for value, other in zip(row, g_pids.tolist()) if other != pid}
        ties += bool({row[order[place]] for place in places} & others)
    return ranks, counts, top, ties


def as_lists(ranking):
    return ranking.ranks.tolist(), ranking.counts.tolist(), ranking.top.tolist(), ranking.ties


@pytest.mark.parametrize('slab, block', [(1 << 26, 1 << 20), (700, 1 << 20), (1 << 26, 700), (2000, 700), (1, 1)])
@pytest.mark.parametrize('queries, gallery, identities, width', [
    (1, 1, 1, 64), (1, 40, 5, 64), (23, 4, 3, 64), (23, 16, 2, 64), (30, 159, 40, 1024), (30, 160, 160, 64),
    (31, 161, 4, 64),
    (31, 333, 60, 4)])
def test_embeddings_in_slabs_rank_as_a_plain_sort_does(monkeypatch, slab, block, queries, gallery, identities, width):
    """Test one or many relevant items, duplicates, few and many ties, and slabs of any size."""
    generator = torch.Generator().manual_seed(queries + gallery)
    gfeats, g_pids = exact_embeddings(gallery, generator, width), torch.arange(gallery) % identities
    gfeats[gallery // 2:gallery // 2 + gallery // 4] = gfeats[:gallery // 4]
    q_pids = g_pids[torch.randint(0, gallery, (queries,), generator=generator)]
    qfeats = exact_embeddings(queries, generator, width)
    similarity = qfeats @ gfeats.t() / width
    monkeypatch.setattr(ranking, 'SLAB', slab)
    monkeypatch.setattr(ranking, 'BLOCK', block)
    expected = plain_ranking(similarity, q_pids, g_pids)
    assert as_lists(rank_embeddings(qfeats, gfeats, q_pids, g_pids)) == expected
    scale = 2.0 ** torch.randint(-4, 5, (gallery, 1), generator=generator)
    assert as_lists(rank_embeddings(4 * qfeats.double(), scale.half() * gfeats.half(), q_pids.tolist(),
                                    g_pids.numpy())) == expected
    for given in (similarity, similarity.t().contiguous().t(), similarity.half()):
        assert as_lists(rank_relevant(given, q_pids, g_pids)) == expected


def test_a_collapsed_model_ranks_in_gallery_order():
    g_pids = torch.arange(300) % 100
    ranking = rank_embeddings(torch.ones(100, 4), torch.ones(300, 4), torch.arange(100), g_pids, max_rank=3)
    assert ranking.ties == 100 and ranking.top.tolist() == [[0, 1, 2]] * 100
    assert ranking.ranks.reshape(100, 3).tolist() == [[pid, pid + 100, pid + 200] for pid in range(100)]


def test_an_embedding_of_zeros_is_like_nothing():
    gfeats = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert rank_embeddings(gfeats[1:2], gfeats, [0], [0, 1, 2]).top.tolist() == [[1, 0, 2]]
    assert rank_embeddings(gfeats[:1], gfeats, [0], [0, 1, 2]).ties == 1


def test_both_directions_from_embeddings():
    generator = torch.Generator().manual_seed(3)
    qfeats, gfeats = exact_embeddings(50, generator), exact_embeddings(20, generator)
    qids, gids = torch.arange(50) % 10, torch.arange(20) % 10
    similarity = qfeats @ gfeats.t() / 64
    results = evaluate_embeddings(qfeats, gfeats, qids, gids, True)
    assert results == {'t2i': compute_metrics(similarity, qids, gids),
                       'i2t': compute_metrics(similarity.t(), gids, qids)}
    assert json.loads(json.dumps(results)) == results


class Watch(TorchDispatchMode):
    """Records the largest new tensor, and the precision of matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.precisions = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        if function is torch.ops.aten.mm.out:
            self.precisions.add(torch.get_float32_matmul_precision())
        return result


def test_a_large_gallery_is_ranked_without_a_similarity_matrix(monkeypatch):
    """There are 32 MB of similarities, in slabs of 4 MB. No tensor is larger than the embeddings."""
    monkeypatch.setattr(ranking, 'SLAB', 1 << 20)
    generator = torch.Generator().manual_seed(0)
    gfeats, g_pids = exact_embeddings(200_000, generator, width=16), torch.arange(200_000) // 2
    chosen = torch.arange(0, 200_000, 5000)
    qfeats, q_pids = gfeats[chosen], g_pids[chosen]
    tracemalloc.start()
    ranked = rank_embeddings(qfeats, gfeats, q_pids, g_pids)
    peak = tracemalloc.get_traced_memory()[1]    # of NumPy
    tracemalloc.stop()
    with Watch() as watch:
        rank_embeddings(qfeats, gfeats, q_pids, g_pids)
    assert watch.largest <= gfeats.nbytes < 16 << 20 and peak <= 16 << 20
    assert as_lists(ranked) == as_lists(rank_relevant(qfeats @ gfeats.t() / 16, q_pids, g_pids))


@pytest.mark.parametrize('allowed', ['highest', 'high', 'medium'])
def test_embeddings_are_compared_in_full_precision(allowed):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        with Watch() as watch:
            rank_embeddings(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3))
        assert watch.precisions == {'highest'} and torch.get_float32_matmul_precision() == allowed
        with pytest.raises(UserError):
            rank_embeddings(torch.eye(3), torch.eye(3), torch.arange(3) + 1, torch.arange(3))
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_full_precision_whichever_way_it_was_lowered():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, 'fp32_precision'):
        pytest.skip('this PyTorch has one interface to the precision alone')
    before = matmul.fp32_precision
    matmul.fp32_precision = 'tf32'
    try:
        with ranking.full_precision():
            assert matmul.fp32_precision == 'ieee'
        assert matmul.fp32_precision == 'tf32'
    finally:
        matmul.fp32_precision = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_embeddings_on_a_gpu():
    generator = torch.Generator().manual_seed(5)
    qfeats, gfeats, pids = exact_embeddings(90, generator), exact_embeddings(90, generator), torch.arange(90) // 3
    expected = plain_ranking(qfeats @ gfeats.t() / 64, pids, pids)
    assert as_lists(rank_embeddings(qfeats.cuda(), gfeats.cuda(), pids.cuda(), pids)) == expected


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_broken_embeddings_are_not_ranked(bad):
    feats = torch.eye(4)
    feats[2, 1] = bad
    with pytest.raises(UserError, match='4 of 16 similarities are NaN'):
        rank_embeddings(feats, torch.eye(4), torch.arange(4), torch.arange(4))
    with pytest.raises(UserError, match='4 of 16 similarities are NaN'):
        rank_embeddings(torch.eye(4), feats, torch.arange(4), torch.arange(4))


def test_embeddings_and_identities_of_other_numbers():
    with pytest.raises(UserError, match='3 and 4 embeddings for 3 queries and 3 gallery items'):
        rank_embeddings(torch.eye(4)[:3], torch.eye(4), torch.arange(3), torch.arange(3))
    with pytest.raises(UserError, match=r'shape \[3, 4\] for 3 queries and 3 gallery items'):
        rank_relevant(torch.eye(4)[:3], torch.arange(3), torch.arange(3))


# -- evaluation --------------------------------------------------------------------------------------------------------

class Toy(torch.nn.Module):
    """Returns vectors as their embeddings, mixed with their batch if ``leaks``."""

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
    assert torch.equal(gfeats, images.dataset.vectors)
    assert torch.equal(qids, gids) and qids.tolist() == images.dataset.pids


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
    assert found.is_independent is not leaks
    assert ('DEPEND ON THE BATCH' in str(found)) is leaks


def test_a_leak_is_found_from_the_evaluations_own_embeddings():
    """The sample alone might pass in its own batch, so the embeddings of the evaluation are compared."""
    images, texts = loaders()
    evaluator = Evaluator(images, texts)
    qfeats, gfeats, _, _ = evaluator._compute_embedding(Toy(leaks=True))
    assert not check_independence(Toy(leaks=False), images, texts, (qfeats, gfeats)).is_independent


def test_irras_path_of_the_evaluator_needs_no_other_import_before_it():
    code = 'from utils.metrics import Evaluator; import utils.metrics; print(Evaluator.__module__, utils.metrics.rank)'
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                             timeout=HANG_TIMEOUT)
    assert process.stdout.startswith('processor.evaluation <function rank'), process.stderr

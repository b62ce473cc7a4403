"""Re-ranking by k-reciprocal neighbors and by query expansion, against dense computations from the papers."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils import k_reciprocal
from utils.errors import UserError
from utils.k_reciprocal import NeighborGraph, k_reciprocal_slabs
from utils.query_expansion import expand_queries
from utils.rerank_options import KReciprocal, PairScores, QueryExpansion
from utils.reranking import reranked_slabs


def draw(count, seed, people=7, noise=0.5):
    """Embeddings [count, 16] around the centers of some people, so that they have common neighbors."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(people, 16, generator=torch.Generator().manual_seed(99))
    noise = noise * torch.randn(count, 16, generator=generator)
    return F.normalize(centers[torch.arange(count) % people] + noise, dim=1)


def nearest(distance, first):
    """Samples by ascending distance [N], ``first`` at the start, equal ones in their order."""
    order = np.argsort(distance, kind='stable')
    return np.concatenate([[first], order[order != first]])


def dense_distance(queries, gallery, settings):
    """Section 3 of the paper, with dense vectors, one sample at a time: the final distances [Q, G].

    With ``neighbors='gallery'``, each query joins the images alone, and the images' own vectors are without it.
    """
    if settings.neighbors == 'split':
        return dense_joint(torch.cat([queries, gallery]).numpy(), len(queries), settings)
    return np.concatenate([dense_joint(torch.cat([query[None], gallery]).numpy(), 1, settings, is_guest=True)
                           for query in queries])


def dense_joint(samples, query_count, settings, is_guest=False):
    count = len(samples)
    squared = np.clip(2 - 2 * samples @ samples.T.astype(np.float64), 0, None)
    np.fill_diagonal(squared, 0)
    members = slice(query_count, None) if is_guest else slice(None)
    original = squared / squared[:, members].max(axis=1, keepdims=True)
    order = [nearest(squared[i], i) for i in range(count)]
    if is_guest:     # the images know no query; a query is among an image's neighbors if it is nearer than the last one
        order = [order[0], *(row[row != 0] for row in order[1:])]

    def is_neighbor(i, of, k):
        if is_guest and i == 0 and of != 0:
            return squared[of, 0] < squared[of, order[of][k]]
        return i in order[of][:k + 1]

    def reciprocal(i, k):
        return [int(j) for j in order[i][:k + 1] if is_neighbor(i, j, k)]

    vectors = np.zeros((count, count))
    for i in range(count):
        own = reciprocal(i, settings.k1)
        expanded = set(own)
        for j in own:
            candidates = reciprocal(j, round(settings.k1 / 2))
            if len(set(candidates) & set(own)) > 2 / 3 * len(candidates):
                expanded |= set(candidates)
        columns = sorted(expanded)
        weights = np.exp(-original[i, columns])
        vectors[i, columns] = weights / weights.sum()
    if settings.k2 > 1:
        vectors = np.stack([vectors[row[:settings.k2]].mean(axis=0) for row in order])
    jaccard = np.zeros((query_count, count))
    for q in range(query_count):
        for i in range(count):
            jaccard[q, i] = 1 - np.minimum(vectors[q], vectors[i]).sum() / np.maximum(vectors[q], vectors[i]).sum()
    final = (1 - settings.original_weight) * jaccard + settings.original_weight * original[:query_count]
    return final[:, query_count:]


@pytest.mark.parametrize('settings', [
    KReciprocal(5, 3), KReciprocal(8, 1, 0.0), KReciprocal(3, 6, 0.5), KReciprocal(6, 4, neighbors='split'),
    KReciprocal(9, 1, neighbors='split')], ids=str)
def test_distances_are_those_of_a_dense_computation(settings, monkeypatch):
    queries, gallery = draw(9, 1), draw(30, 2)
    for name in ('SLAB', 'COMPARISONS', 'SUMS', 'ENTRIES'):     # several blocks of everything
        monkeypatch.setattr(k_reciprocal, name, {'SLAB': 4 * 30, 'COMPARISONS': 2000, 'SUMS': 40, 'ENTRIES': 7}[name])
    slabs = list(k_reciprocal_slabs(queries, gallery, settings))
    assert len(slabs) > 1
    np.testing.assert_allclose(-torch.cat(slabs).numpy(), dense_distance(queries, gallery, settings), atol=1e-6)


@pytest.mark.parametrize('neighbors', ['gallery', 'split'])
def test_equal_samples_keep_their_order(neighbors):
    """Coordinates are multiples of 1/8, so that similarities are exact and many are equal."""
    corners = torch.tensor([[1., 0, 0, 0], [0, 1, 0, 0], [.5, .5, .5, .5], [.5, .5, -.5, .5], [0, 0, 1, 0]])
    gallery, queries = corners[torch.arange(15) % 5], corners[[2, 0, 3]]
    settings = KReciprocal(4, 3, neighbors=neighbors)
    found = torch.cat(list(k_reciprocal_slabs(queries, gallery, settings)))
    np.testing.assert_allclose(-found.numpy(), dense_distance(queries, gallery, settings), atol=1e-6)


def test_a_captions_ranking_depends_on_other_captions_only_if_asked():
    queries, gallery = draw(9, 1), draw(30, 2)
    for settings, is_equal in ((KReciprocal(5, 3), True), (QueryExpansion(3), True),
                               (KReciprocal(5, 3, neighbors='split'), False)):
        together = torch.cat(list(reranked_slabs(queries, gallery, settings)))
        alone = torch.cat(list(reranked_slabs(queries[4:5], gallery, settings)))
        assert torch.allclose(together[4:5], alone, atol=1e-6) == is_equal
        assert settings.uses_other_queries != is_equal == ('other queries' not in settings.title)


def test_images_with_the_captions_neighbors_move_up():
    """Image 6 is nearer than image 5, but its neighbors are other images than the caption's."""
    degrees = torch.tensor([0., 5, 7, 8, 9, 14, -13, -20, -21, -22, -23]) * torch.pi / 180
    caption, *gallery = torch.stack([torch.cos(degrees), torch.sin(degrees)], dim=1).split(1)
    gallery = torch.cat(gallery)
    ranked, = k_reciprocal_slabs(caption, gallery, KReciprocal(4, 1))
    assert (caption @ gallery.t())[0].topk(6).indices.tolist() == [0, 1, 2, 3, 5, 4]
    assert ranked[0].topk(6).indices.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_graph_is_used_for_several_searches():
    queries, gallery = draw(3, 1), draw(30, 2)
    settings, graph = KReciprocal(5, 3), NeighborGraph(gallery, 5, 3)
    for query in queries.split(1):
        assert torch.equal(*(next(k_reciprocal_slabs(query, source, settings)) for source in (graph, gallery)))


def test_equal_embeddings_are_no_nan():
    slab, = k_reciprocal_slabs(torch.ones(2, 1), torch.ones(6, 1), KReciprocal(3, 2))
    assert slab.isfinite().all()


@pytest.mark.parametrize('alpha', [0.0, 3.0])
def test_an_expanded_query_is_the_mean_with_its_best_images(alpha):
    queries, gallery = draw(4, 1), draw(30, 2)
    expanded = expand_queries(queries, gallery, QueryExpansion(3, alpha))
    for query, found in zip(queries, expanded):
        scores, images = (gallery @ query).topk(3)
        total = query + sum(score ** alpha * gallery[image] for score, image in zip(scores, images))
        torch.testing.assert_close(found, total / total.norm())
    opposite = expand_queries(-gallery[:1], gallery[:1], QueryExpansion(1))     # a negative similarity adds nothing
    torch.testing.assert_close(opposite, -gallery[:1])


@pytest.mark.parametrize('settings, images, captions, sentence', [
    (KReciprocal(), 20, 900, 'among 20 images, which are too few for --rerank_k1 20: give a number from 1 to 19'),
    (KReciprocal(5, 9), 8, 2, '--rerank_k2 9: give a number from 1 to 8'),
    (KReciprocal(neighbors='split'), 12, 8, 'among 12 images and 8 captions, which .* a number from 1 to 19'),
    (KReciprocal(), 1, 1, 'it needs at least 2'),
    (QueryExpansion(9), 8, 1, '--expansion_images 9: the gallery holds 8 images; give a number from 1 to 8'),
    (PairScores(9), 8, 1, '--rerank 9: the gallery holds 8 images; give a number from 1 to 8')])
def test_galleries_that_are_too_small(settings, images, captions, sentence):
    with pytest.raises(UserError, match=sentence):
        settings.check_sizes(images, captions)

"""The losses against values and gradients of the reference implementations, and against plain loops."""
import math
from functools import partial

import pytest
import torch

from model import objectives
from tests.support import golden, golden_cases

LOSSES = {
    'sdm': lambda image, text, pids: objectives.sdm(image, text, pids, scale=50.0),
    'itc': lambda image, text, pids: objectives.itc(image, text, scale=50.0),
    'cmpm': objectives.cmpm,
    'cmt': lambda image, text, pids: objectives.cmt(image, text, scale=50.0),
}


def gradients(name, vectors, case, dtype=torch.float32):
    """The loss and its gradients for images and captions, computed in ``dtype``."""
    image, text = (vectors[f'{case}/{side}'].to(dtype).clone().requires_grad_() for side in ('image', 'text'))
    loss = LOSSES[name](image, text, vectors[f'{case}/pids'])
    loss.backward()
    return loss, image.grad, text.grad


@pytest.fixture
def in_float64(monkeypatch):
    """Objectives convert to float32 by ``Tensor.float``; here that keeps float64."""
    def apply():
        monkeypatch.setattr(torch.Tensor, 'float', lambda x: x if x.is_floating_point() else x.double())
    return apply


@pytest.mark.parametrize('file, case', golden_cases('objectives*', 'image'))
@pytest.mark.parametrize('name', LOSSES)
def test_value_and_gradients_are_those_of_the_reference(name, file, case, in_float64):
    """Gradients are within 1e-5 of the exact ones. The reference's own rounding, up to 1.2e-5, comes on top of that."""
    vectors, _ = golden(file)
    loss, *ours = gradients(name, vectors, case)
    assert loss.item() == pytest.approx(vectors[f'{case}/{name}'].item(), rel=1e-5, abs=1e-6)
    in_float64()
    _, *exact = gradients(name, vectors, case, torch.float64)
    for gradient, precise, side in zip(ours, exact, ('image', 'text')):
        official = vectors[f'{case}/{name}/grad_{side}']
        bound = 1e-5 * official.norm() + 1e-6
        rounding = (official - precise).norm()
        assert rounding <= 2 * bound      # else float64 computes something else than the reference
        assert (gradient - precise).norm() <= bound and (gradient - official).norm() <= bound + rounding


def batch(seed=0, size=6, width=5):
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(size, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return image, text, torch.tensor([3, 1, 3, 2, 1, 3][:size])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def plain_sdm(image, text, pids, scale):
    total = 0.0
    for queries, gallery in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            exponents = [math.exp(scale * cosine(query, other)) for other in gallery]
            same = [float(pid == pids[i]) for pid in pids]
            for e, y in zip(exponents, same):
                p, q = e / sum(exponents), y / sum(same)
                total += p * (math.log(p) - math.log(q + 1e-8)) / len(queries)
    return total


def plain_itc(image, text, scale):
    total = 0.0
    for queries, gallery in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            exponents = [math.exp(scale * cosine(query, other)) for other in gallery]
            total -= math.log(exponents[i] / sum(exponents)) / len(queries) / 2
    return total


def plain_cmpm(image, text, pids):
    total = 0.0
    for queries, gallery in ((image, text), (text, image)):
        for i, query in enumerate(queries):
            products = [sum(x * y for x, y in zip(query, other)) for other in gallery]
            exponents = [math.exp(product / math.sqrt(sum(y * y for y in other)))
                         for product, other in zip(products, gallery)]
            same = [float(pid == pids[i]) for pid in pids]
            for e, y in zip(exponents, same):
                p, q = e / sum(exponents), y / math.sqrt(sum(same))
                total += p * (math.log(p) - math.log(q + 1e-8)) / len(queries)
    return total


@pytest.mark.parametrize('seed', range(3))
def test_plain_loops_agree(seed):
    image, text, pids = batch(seed)
    lists = image.tolist(), text.tolist()
    expected = plain_sdm(*lists, pids.tolist(), 4.0)
    assert objectives.sdm(image, text, pids, scale=4.0).item() == pytest.approx(expected, rel=1e-5)
    assert objectives.itc(image, text, scale=4.0).item() == pytest.approx(plain_itc(*lists, 4.0), rel=1e-5)
    assert objectives.cmt(image, text, scale=4.0).item() == pytest.approx(plain_itc(*lists, 20.0), rel=1e-5)
    assert objectives.cmpm(image, text, pids).item() == pytest.approx(plain_cmpm(*lists, pids.tolist()), rel=1e-5)


def test_perfect_match_is_the_minimum_of_sdm():
    _, text, _ = batch()
    pids = torch.arange(6)
    matched = objectives.sdm(text, text, pids, scale=50.0)
    assert matched < objectives.sdm(text.roll(1, 0), text, pids, scale=50.0)


def test_identity_is_the_mean_of_both_cross_entropies():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    pids = torch.tensor([0, 2])
    plain = [-math.log(math.exp(row[pid]) / sum(map(math.exp, row)))
             for row, pid in zip(logits.tolist(), pids.tolist())]
    expected = (sum(plain) / 2 + math.log(3)) / 2
    assert objectives.identity(logits, torch.zeros(2, 3), pids).item() == pytest.approx(expected, rel=1e-6)


def test_masked_language_modeling_of_no_words_is_0():
    assert objectives.masked_language_modeling(torch.empty(0, 7), torch.empty(0, dtype=torch.long)).item() == 0


def test_losses_are_float32_under_autocast():
    image, text, pids = (value.float() if value.is_floating_point() else value for value in batch())
    exact = objectives.sdm(image, text, pids, scale=50.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(objectives.sdm(image, text, pids, scale=50.0), exact)
        assert objectives.sdm(image.bfloat16(), text.bfloat16(), pids, scale=50.0).dtype == torch.float32


def test_accuracy():
    assert objectives.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])).item() == 0.75


# -- RDE, TBPS-CLIP and FMFA: cases that the reference vectors do not contain

def grads(loss, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*tensors)
    value.sum().backward()
    return value, [tensor.grad for tensor in tensors]


def plain_tal(image, text, pids, tau, margin):
    """One pair at a time, with Python numbers."""
    losses = []
    for i, pid in enumerate(pids):
        total = 0.0
        for scores in ([cosine(text[i], other) for other in image], [cosine(image[i], other) for other in text]):
            positives = [s for s, other in zip(scores, pids) if other == pid]
            negatives = [s for s, other in zip(scores, pids) if other != pid]
            positive = sum(s * math.exp(s / tau) for s in positives) / sum(math.exp(s / tau) for s in positives)
            total += max(0.0, margin - positive + tau * math.log(sum(math.exp(s / tau) for s in negatives)))
        losses.append(total)
    return losses


@pytest.mark.parametrize('seed', range(3))
def test_per_pair_losses_agree_with_loops_and_with_the_batch_losses(seed):
    image, text, pids = batch(seed)
    expected = plain_tal(image.tolist(), text.tolist(), pids.tolist(), 0.1, 0.2)
    losses = objectives.tal(image, text, pids, tau=0.1, margin=0.2, reduction='none')
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert objectives.sdm(image, text, pids, scale=4.0, reduction='none').mean().item() == pytest.approx(
        objectives.sdm(image, text, pids, scale=4.0).item(), rel=1e-5)
    assert objectives.itc(image, text, scale=4.0, reduction='none').mean().item() == pytest.approx(
        objectives.itc(image, text, scale=4.0).item(), rel=1e-5)


@pytest.mark.parametrize('loss', [
    partial(objectives.sdm, scale=4.0), partial(objectives.tal, tau=0.1, margin=0.2), objectives.trl,
    lambda image, text, pids, **settings: objectives.itc(image, text, scale=4.0, **settings)])
def test_reductions_are_those_of_pytorch(loss):
    image, text, pids = batch()
    each = loss(image, text, pids, reduction='none')
    assert each.shape == (len(pids),)
    torch.testing.assert_close(loss(image, text, pids, reduction='mean'), each.mean())
    torch.testing.assert_close(loss(image, text, pids, reduction='sum'), each.sum())


@pytest.mark.parametrize('loss', [objectives.tal, objectives.trl])
def test_a_batch_of_one_identity(loss):
    image, text, _ = batch()
    value, gradients = grads(lambda image, text: loss(image, text, torch.zeros(6)), image, text)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if loss is objectives.tal:
        assert not value.any() and not any(gradient.any() for gradient in gradients)


def test_a_hardest_negative_below_zero_counts_as_zero():
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    small, large = (objectives.trl(image, image, torch.tensor([0, 1]), margin=margin, reduction='none').tolist()
                    for margin in (0.3, 1.3))
    assert small == [0.0, 0.0] and large == pytest.approx([0.6, 0.6])


def test_a_small_temperature_does_not_overflow():
    image, text, pids = batch()
    value, gradients = grads(lambda image, text: objectives.tal(image, text, pids, tau=1e-3), image, text)
    assert value.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


def test_noisy_pairs_do_not_count():
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert objectives.reduce_clean_pairs(losses, torch.tensor([1.0, 0.0, 1.0]), 'sum') == 5
    assert objectives.reduce_clean_pairs(losses, torch.tensor([1.0, 0.0, 1.0]), 'mean') == 2.5
    assert all(objectives.reduce_clean_pairs(losses, torch.zeros(3), reduction) == 0 for reduction in ('mean', 'sum'))


def test_scale_is_clamped_and_keeps_its_gradient():
    for start, expected in ((math.log(50), 50), (math.log(200), 100)):
        log_scale = torch.tensor(start, requires_grad=True)
        scale = objectives.clamped_scale(log_scale)
        scale.backward()
        assert scale.item() == pytest.approx(expected, rel=1e-6)
        assert log_scale.grad.item() == pytest.approx(math.exp(start), rel=1e-6)


def test_words_with_equal_scores_select_the_mean_of_all_patches():
    patches, words = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 5, 4)
    grouped = objectives.group_patches_by_word(patches, words)
    torch.testing.assert_close(grouped, patches.mean(dim=1, keepdim=True).expand(2, 5, 4))
    value, (gradient,) = grads(lambda words: objectives.explicit_alignment(patches, words), words)
    assert value.isfinite() and gradient.isfinite().all()

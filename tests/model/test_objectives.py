"""The losses against the released implementations' values and gradients, and against plain loops."""
import math

import pytest
import torch

from model import objectives
from tests.support import double_precision, golden, golden_cases

LOSSES = {
    'sdm': lambda image, text, pids: objectives.sdm(image, text, pids, scale=50.0),
    'itc': lambda image, text, pids: objectives.itc(image, text, scale=50.0),
    'cmpm': objectives.cmpm,
    'cmt': lambda image, text, pids: objectives.cmt(image, text, scale=50.0),
}


@pytest.mark.parametrize('file, case', golden_cases('objectives*', 'image'))
@pytest.mark.parametrize('name', LOSSES)
def test_value_and_gradients_are_the_released_ones(name, file, case):
    """In float64, since the released values have rounding of their own: up to 4.8e-6, for sdm's gradient of 0.39 in one_identity."""
    vectors, _ = golden(file)
    with double_precision():
        loss, *gradients = value_and_gradients(name, vectors, case, torch.float64)
    assert loss == pytest.approx(vectors[f'{case}/{name}'].item(), rel=1e-5, abs=1e-6)
    for ours, side in zip(gradients, ('image', 'text'), strict=True):
        official = vectors[f'{case}/{name}/grad_{side}']
        assert (ours - official).norm() <= 1e-5 * official.norm() + 1e-6


@pytest.mark.parametrize('file, case', golden_cases('objectives*', 'image'))
@pytest.mark.parametrize('name', LOSSES)
def test_float32_is_precise_enough(name, file, case):
    """A logit is 50 cosines: its rounding of 50 * 6e-8 is a relative error of 3e-6 in each probability."""
    vectors, _ = golden(file)
    loss, *gradients = value_and_gradients(name, vectors, case, torch.float32)
    with double_precision():
        exact_loss, *exact_gradients = value_and_gradients(name, vectors, case, torch.float64)
    assert loss == pytest.approx(exact_loss, rel=1e-5, abs=1e-6)
    for ours, exact in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == torch.float32 and (ours - exact).norm() <= 2e-5 * exact.norm() + 2e-6


def value_and_gradients(name, vectors, case, dtype):
    image, text = (vectors[f'{case}/{side}'].to(dtype, copy=True).requires_grad_() for side in ('image', 'text'))
    loss = LOSSES[name](image, text, vectors[f'{case}/pids'])
    loss.backward()
    return loss.item(), image.grad, text.grad


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
            exponents = [math.exp(sum(x * y for x, y in zip(query, other)) / math.sqrt(sum(y * y for y in other))) for other in gallery]
            same = [float(pid == pids[i]) for pid in pids]
            for e, y in zip(exponents, same):
                p, q = e / sum(exponents), y / math.sqrt(sum(same))
                total += p * (math.log(p) - math.log(q + 1e-8)) / len(queries)
    return total


@pytest.mark.parametrize('seed', range(3))
def test_plain_loops_agree(seed):
    image, text, pids = batch(seed)
    lists = image.tolist(), text.tolist()
    assert objectives.sdm(image, text, pids, scale=4.0).item() == pytest.approx(plain_sdm(*lists, pids.tolist(), 4.0), rel=1e-5)
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
    plain = [-math.log(math.exp(row[pid]) / sum(map(math.exp, row))) for row, pid in zip(logits.tolist(), pids.tolist())]
    uniform = math.log(3)
    assert objectives.identity(logits, torch.zeros(2, 3), pids).item() == pytest.approx((sum(plain) / 2 + uniform) / 2, rel=1e-6)


def test_masked_language_modelling_of_nothing_is_zero():
    assert objectives.masked_language_modelling(torch.empty(0, 7), torch.empty(0, dtype=torch.long)).item() == 0


def test_losses_are_float32_under_autocast():
    image, text, pids = (value.float() if value.is_floating_point() else value for value in batch())
    exact = objectives.sdm(image, text, pids, scale=50.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(objectives.sdm(image, text, pids, scale=50.0), exact)
        assert objectives.sdm(image.bfloat16(), text.bfloat16(), pids, scale=50.0).dtype == torch.float32


def test_accuracy():
    assert objectives.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])).item() == 0.75


# -- RDE, TBPS-CLIP and FMFA: what their vectors do not show ---------------------------------------------------------------

def grads(loss, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*tensors)
    value.sum().backward()
    return value, [tensor.grad for tensor in tensors]


def plain_tal(image, text, pids, tau, margin):
    """One pair at a time, in plain numbers."""
    losses = []
    for i, pid in enumerate(pids):
        total = 0.0
        for scores in ([cosine(text[i], other) for other in image], [cosine(image[i], other) for other in text]):
            own = [s for s, other in zip(scores, pids) if other == pid]
            others = [s for s, other in zip(scores, pids) if other != pid]
            positive = sum(s * math.exp(s / tau) for s in own) / sum(math.exp(s / tau) for s in own)
            total += max(0.0, margin - positive + tau * math.log(sum(math.exp(s / tau) for s in others)))
        losses.append(total)
    return losses


@pytest.mark.parametrize('seed', range(3))
def test_per_pair_losses_agree_with_loops_and_with_the_batch_losses(seed):
    image, text, pids = batch(seed)
    expected = plain_tal(image.tolist(), text.tolist(), pids.tolist(), 0.1, 0.2)
    assert objectives.tal(image, text, pids, tau=0.1, margin=0.2).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert objectives.sdm_per_pair(image, text, pids, scale=4.0).mean().item() == pytest.approx(
        objectives.sdm(image, text, pids, scale=4.0).item(), rel=1e-5)
    assert objectives.infonce_per_pair(image, text, scale=4.0).mean().item() == pytest.approx(
        objectives.itc(image, text, scale=4.0).item(), rel=1e-5)


@pytest.mark.parametrize('loss', [objectives.tal, objectives.trl])
def test_a_batch_of_one_identity(loss):
    image, text, _ = batch()
    value, gradients = grads(lambda image, text: loss(image, text, torch.zeros(6)), image, text)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if loss is objectives.tal:
        assert not value.any() and not any(gradient.any() for gradient in gradients)


def test_a_hardest_negative_below_zero_counts_as_zero():
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    assert objectives.trl(image, image, torch.tensor([0, 1]), margin=0.3).tolist() == [0.0, 0.0]
    assert objectives.trl(image, image, torch.tensor([0, 1]), margin=1.3).tolist() == pytest.approx([0.6, 0.6])


def test_a_small_temperature_does_not_overflow():
    image, text, pids = batch()
    value, gradients = grads(lambda image, text: objectives.tal(image, text, pids, tau=1e-3), image, text)
    assert value.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


def test_pairs_that_do_not_count():
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert objectives.of_clean_pairs(losses, torch.tensor([1.0, 0.0, 1.0]), mean=False) == 5
    assert objectives.of_clean_pairs(losses, torch.tensor([1.0, 0.0, 1.0]), mean=True) == 2.5
    assert all(objectives.of_clean_pairs(losses, torch.zeros(3), mean=mean) == 0 for mean in (True, False))


def test_temperature_is_clamped_and_goes_on_learning():
    for start, expected in ((math.log(50), 50), (math.log(200), 100)):
        log_scale = torch.tensor(start, requires_grad=True)
        scale = objectives.clamped_scale(log_scale)
        scale.backward()
        assert scale.item() == pytest.approx(expected, rel=1e-6) and log_scale.grad.item() == pytest.approx(math.exp(start), rel=1e-6)


def test_words_to_which_all_patches_are_the_same_gather_their_mean():
    patches, words = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 5, 4)
    torch.testing.assert_close(objectives.gathered_patches(patches, words), patches.mean(dim=1, keepdim=True).expand(2, 5, 4))
    value, (gradient,) = grads(lambda words: objectives.explicit_alignment(patches, words), words)
    assert value.isfinite() and gradient.isfinite().all()

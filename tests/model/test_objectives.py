"""The losses against the released implementations' values and gradients, and against plain loops."""
import math

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


@pytest.mark.parametrize('file, case', golden_cases('objectives*', 'image'))
@pytest.mark.parametrize('name', LOSSES)
def test_value_and_gradients_are_the_released_ones(name, file, case):
    vectors, _ = golden(file)
    image = vectors[f'{case}/image'].clone().requires_grad_()
    text = vectors[f'{case}/text'].clone().requires_grad_()
    loss = LOSSES[name](image, text, vectors[f'{case}/pids'])
    loss.backward()
    assert loss.item() == pytest.approx(vectors[f'{case}/{name}'].item(), rel=1e-5, abs=1e-6)
    for ours, official in ((image.grad, vectors[f'{case}/{name}/grad_image']), (text.grad, vectors[f'{case}/{name}/grad_text'])):
        assert (ours - official).norm() <= 1e-5 * official.norm() + 1e-6


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

"""CONQUER's losses by a second computation, and its heads; test_golden_method_losses.py has the reference values."""
import math

import pytest
import torch
import torch.nn.functional as F

from model import objectives
from model.build import total_loss
from model.heads import conquer
from model.loss_names import parse_loss_names
from processor.build import build_step
from tests.support import assert_falls, compute_gradients, golden_archive, golden_json, small_batch, small_model
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.options import get_args
from utils.seeding import seed_all

COST = torch.tensor(-1.0), torch.tensor(1.0)


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('conquer') / 'clip.pt')


def pairs(size, width=16, seed=0, noise=1.0):
    """Embeddings of pairs: images, and captions that are images with noise. They learn."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, width, generator=generator)
    text = image + noise * torch.randn(size, width, generator=generator)
    return image.requires_grad_(), text.requires_grad_()


def noisy_batch(noisy=4, size=6, seed=0):
    """A batch whose first pairs are noisy."""
    return {**small_batch(size, seed), 'clean': (torch.arange(size) >= noisy).float()}


def plain_plan(cost, rounds=1000, regularization=0.07):
    """Sinkhorn's algorithm entry by entry, with POT's stop."""
    size = len(cost)
    kernel = [[math.exp(-value / regularization) for value in row] for row in cost.tolist()]
    x = [1 / size] * size
    for number in range(rounds):
        y = [1 / size / sum(kernel[i][j] * x[i] for i in range(size)) for j in range(size)]
        x = [1 / size / sum(kernel[i][j] * y[j] for j in range(size)) for i in range(size)]
        columns = [sum(x[i] * kernel[i][j] for i in range(size)) * y[j] for j in range(size)]
        if number % 10 == 0 and math.hypot(*(column - 1 / size for column in columns)) < 1e-9:
            break
    return [[x[i] * kernel[i][j] * y[j] for j in range(size)] for i in range(size)]


def plain_rematching(image, text, transposed, temperature=0.07):
    """The loss of noisy pairs, entry by entry."""
    cosine, size = objectives.cosine_similarity(image.double(), text.double()), len(image)
    plan = plain_plan((1 - cosine).clamp(min=0))
    p_image, p_text = (cosine / temperature).softmax(1).tolist(), (cosine.t() / temperature).softmax(1).tolist()
    total = 0
    for i in range(size):
        for j in range(size):
            by_image = plan[i][j] / (sum(plan[i]) + 1e-8)
            row, column = (j, i) if transposed else (i, j)
            by_text = plan[row][column] / (sum(plan[k][column] for k in range(size)) + 1e-8)
            for q, p in ((by_image, p_image[i][j]), (by_text, p_text[i][j])):
                total += q * math.log(q / p) + p * math.log(p / (q + 1e-8))
    return total / size


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize('size, noise, seed', [(2, 1.0, 1), (5, 1.0, 2), (9, 3.0, 3)])
def test_rematching_is_that_of_a_plain_loop(size, noise, seed, transposed):
    """Pairs that are not noisy change nothing, wherever they are in the batch."""
    image, text = pairs(size, seed=seed, noise=noise)
    expected = plain_rematching(image, text, transposed)
    others = pairs(4, seed=9)
    rows = torch.randperm(size + 4, generator=torch.Generator().manual_seed(seed))
    is_noisy = (torch.arange(size + 4) < size)[rows]
    batch = [torch.cat([own, other])[rows] for own, other in zip((image, text), others)]
    loss = objectives.rematching(*batch, is_noisy, *COST, transposed=transposed)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    loss.backward()
    alone = [tensor.detach().clone().requires_grad_() for tensor in (image, text)]
    objectives.rematching(*alone, torch.ones(size, dtype=torch.bool), *COST, transposed=transposed).backward()
    for ours, expected in zip((image, text), alone):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)
    assert not others[0].grad.any() and not others[1].grad.any()


def test_the_transposed_plan_matters_only_if_the_plan_is_not_symmetric():
    image, text = pairs(5, seed=3, noise=3.0)
    is_noisy = torch.ones(5, dtype=torch.bool)

    def losses(text):
        return [objectives.rematching(image, text, is_noisy, *COST, transposed=value).item() for value in (False, True)]
    released, transposed = losses(text)
    assert released > 3 * transposed
    released, transposed = losses(image)
    assert released == pytest.approx(transposed, abs=1e-6)


@pytest.mark.parametrize('noisy', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_fewer_than_two_noisy_pairs_give_zero_without_gradient(noisy, dtype):
    image, text = pairs(6)
    loss = objectives.rematching(image.to(dtype), text.to(dtype), torch.arange(6) < noisy, *COST)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.abs() < 1e-6 and not image.grad.any() and not text.grad.any()


@pytest.mark.parametrize('size', [1, 2, 7])
def test_complementary_contrast_is_that_of_a_plain_loop(size):
    image, text = pairs(size)
    cosine = objectives.cosine_similarity(image.double(), text.double()).tolist()
    expected = 0
    for i in range(size):
        for row in (cosine[i], [other[i] for other in cosine]):
            weights = [math.exp(value / 0.1) for value in row]
            expected -= sum(math.log(1 - weight / sum(weights)) for j, weight in enumerate(weights) if j != i)
    assert objectives.complementary_contrast(image, text).item() == pytest.approx(expected / size, rel=1e-4)


@pytest.mark.parametrize('size, noise', [(2, 0.1), (9, 1.0), (40, 0.3), (64, 5.0)])
def test_the_plan_is_that_of_pot(size, noise):
    ot = pytest.importorskip('ot')
    image, text = pairs(size, noise=noise)
    cost = (1 - objectives.cosine_similarity(image, text)).detach()
    masses = torch.full((size,), 1 / size, dtype=torch.float64).numpy()
    expected = torch.from_numpy(ot.sinkhorn(masses, masses, cost.numpy(), 0.07, warn=False))
    plan = objectives.transport_plan(cost, torch.ones(size, dtype=torch.bool))
    torch.testing.assert_close(plan.double(), expected, rtol=1e-5, atol=1e-7 / size)


def test_heads_by_name():
    assert parse_loss_names('ccl+rematch') == [conquer.CCL, conquer.Rematch]


def test_losses_are_those_of_the_models_embeddings(archive):
    batch = noisy_batch()
    model = small_model(archive, 'tal+ccl+rematch', ccd=True, ccl_weight=0.2, rematch_weight=3.0,
                        rematch_transposed=True).eval()
    results, encoded = model(batch), model.encode(batch)
    torch.testing.assert_close(results['ccl_loss'],
                               0.2 * objectives.complementary_contrast(encoded.image, encoded.text))
    expected = 3 * objectives.rematching(encoded.image, encoded.text, batch['clean'] == 0, *COST, transposed=True)
    torch.testing.assert_close(results['rematch_loss'], expected)
    assert expected > 1e-3 and model(small_batch())['rematch_loss'] == 0     # no pair is noisy


@pytest.mark.parametrize('loss_names, settings', [
    ('tal+sdm+ccl+rematch', {'temperature': 0.1, 'rematch_transposed': True}),
    ('tal+tse+ccl+rematch', {'rematch_cost': 'learned', 'tse_mode': 'train'})])
def test_they_overfit_a_batch_with_other_losses(archive, loss_names, settings):
    model, batch = small_model(archive, loss_names, ccd=True, **settings).train(), noisy_batch(2)
    step = build_step(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    assert_falls((total_loss(step(batch)) for _ in range(60)), 0.05)


def test_rematch_overfits_a_batch_alone(archive):
    """The softmax becomes the plan. test_heads.py trains ccl."""
    model, batch = small_model(archive, 'tal+rematch', ccd=True).train(), noisy_batch(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def losses():
        for _ in range(30):
            loss = model(batch)['rematch_loss']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss
    assert_falls(losses(), 0.05)


def test_micro_batches_give_the_gradients_of_the_batch(archive):
    gradients = []
    for micro_batch in (None, 4):
        model = small_model(archive, 'tal+ccl+rematch', ccd=True, rematch_cost='learned', temperature=0.1).train()
        seed_all(3)
        compute_gradients(model, noisy_batch(), micro_batch)
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_learned_cost_makes_steps_of_adam():
    cost = conquer.TransportCost()
    weight, bias = (torch.nn.Parameter(torch.tensor(value)) for value in conquer.COST_START)
    adam = torch.optim.Adam([weight, bias], lr=2e-6)
    for seed in range(200):
        cosine = objectives.cosine_similarity(*pairs(8, seed=seed)).detach()
        images, captions = torch.randint(8, (2, 3), generator=torch.Generator().manual_seed(seed))
        cost.train_step(cosine, images, captions)
        entries = {(i, j) for i, j in zip(images.tolist(), captions.tolist()) if i != j}
        adam.zero_grad()
        loss = sum(F.relu(weight * cosine[i, j] + bias) for i, j in entries)
        if entries:
            loss.backward()
        else:
            weight.grad, bias.grad = torch.zeros(()), torch.zeros(())
        adam.step()
    torch.testing.assert_close(cost.values, torch.stack([weight, bias]).detach(), rtol=0, atol=1e-6)
    assert abs(cost.values[1].item() - 1) > 1e-4


def test_the_learned_cost_learns_in_training_only_and_resumes_exactly(archive):
    def new_step():
        model = small_model(archive, 'tal+rematch', ccd=True, rematch_cost='learned').train()
        return model, build_step(model, torch.optim.SGD(model.parameters(), lr=1e-3))

    def train(step, *numbers):
        for number in numbers:
            seed_all(number)
            step(noisy_batch(seed=number))
    (model, step), (resumed, resumed_step) = new_step(), new_step()
    train(step, 0, 1)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    assert saved['rematch_cost.steps'].item() == 2 and saved['rematch_cost.values'][1] != 1
    model.eval()(noisy_batch())
    assert torch.equal(model.rematch_cost.values, saved['rematch_cost.values'])
    model.train()
    load_weights(resumed, saved, resumed=True)
    for one in (step, resumed_step):
        train(one, 2, 3)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in model.state_dict().items())


def test_draws_of_the_cost_are_a_tenth_of_the_batch_at_most():
    seed_all(0)
    counts = {conquer.draw_entries(35, 'cpu').shape[1] for _ in range(50)}
    assert counts == {1, 2, 3} and conquer.draw_entries(4, 'cpu').shape == (2, 1)


def test_rematch_needs_a_selection_of_clean_pairs():
    with pytest.raises(UserError, match="^the loss 'rematch' trains only on the pairs that --ccd .*: add --ccd"):
        get_args(['--loss_names', 'tal+rematch'])
    assert get_args(['--loss_names', 'tal+rematch', '--ccd']).rematch_cost == 'fixed'

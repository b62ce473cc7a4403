"""N processes compute what one computes: the same whole batch, its rows spread over them."""
import pytest
import torch

from datasets.sampler import share_of
from processor.step import Step
from tests.several import Processes
from tests.support import golden_archive, golden_json, small_batch, small_model
from utils import comm
from utils.peers import meet
from utils.seeding import seed_all

RATE = 1e-3


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture(scope='module', params=[2])
def processes(request):
    started = Processes(request.param)
    yield started
    started.close()


def uneven(batch):
    """Two images of one person, and captions with different numbers of masked words."""
    batch['pids'][4] = batch['pids'][1]
    batch['mlm_labels'][0, 3:6] = batch['caption_ids'][0, 3:6]
    return batch


def train(archive, settings, sizes=(6,), micro_batch=None):
    """Steps with batches of ``sizes``, of which each process has its share: each step's results, the first step's gradients and the
    weights behind the last."""
    model = small_model(archive, **settings).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3)
    step, told, gradients = Step(model, optimizer, micro_batch), [], None
    for number, size in enumerate(sizes):
        batch = uneven(small_batch(max(size, 6), seed=number))
        own = share_of(size, comm.get_rank(), comm.get_world_size())
        peers, rows = meet({name: value[:size][own] for name, value in batch.items()} if own.start < own.stop else {})
        seed_all(number)
        told.append({name: value.item() for name, value in step(rows, peers).items()})
        gradients = gradients or {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return told, gradients, model.state_dict()


def assert_same(several, one, steps_apart=1e-5):
    told, gradients, weights = one
    for found, found_gradients, found_weights in several:
        assert list(found[0]) == list(told[0]) and found_gradients.keys() == gradients.keys()
        for name, value in told[0].items():
            assert found[0][name] == pytest.approx(value, rel=1e-6, abs=1e-7), name
        for values, expected in zip(found[1:], told[1:]):
            assert values == pytest.approx(expected, rel=steps_apart, abs=1e-6)
        for name, gradient in gradients.items():
            difference = (found_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
            assert difference < 2e-6, (name, float(difference))
        for name, weight in weights.items():
            torch.testing.assert_close(found_weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    for name, weight in several[0][2].items():     # to the last bit among themselves
        assert all(torch.equal(weight, other[2][name]) for other in several[1:]), name


RECIPES = {
    'irra': {'loss_names': 'sdm+mlm+id'},
    'agm': {'loss_names': 'sdm+mlm+cmt+id', 'mlm_masking': 'attention', 'caption_masking': 'inplace'},
    'sen': {'loss_names': 'sdm+mae+id+tri'},
    'every comparison': {'loss_names': 'itc+cmpm+cmt+tri+sdm+id'}}


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_same_losses_gradients_and_weights(processes, archive, recipe):
    one = train(archive, RECIPES[recipe], (6, 5, 6))
    assert_same(processes.each(train, archive, RECIPES[recipe], (6, 5, 6)), one)


def test_a_batch_with_fewer_rows_than_processes(processes, archive):
    one = train(archive, RECIPES['irra'], (6, 1, 6))
    assert_same(processes.each(train, archive, RECIPES['irra'], (6, 1, 6)), one)


def test_pieces_on_each_process(processes, archive):
    one = train(archive, RECIPES['irra'], (6, 5))
    assert_same(processes.each(train, archive, RECIPES['irra'], (6, 5), 2), one)


def test_it_would_differ_if_each_process_saw_its_own_rows_alone(processes, archive):
    told, *_ = train(archive, {'loss_names': 'sdm'}, (6,))
    for part in processes.each(train_apart, archive):
        assert abs(part[0]['sdm_loss'] - told[0]['sdm_loss']) > 1e-2


def train_apart(archive):
    model = small_model(archive, 'sdm').train()
    batch, own = uneven(small_batch()), share_of(6, comm.get_rank(), comm.get_world_size())
    step = Step(model, torch.optim.AdamW(model.parameters()))
    step.passes = lambda compute, learns=False, last=False: compute()
    return [{name: value.item() for name, value in step({name: value[own] for name, value in batch.items()}).items()}]

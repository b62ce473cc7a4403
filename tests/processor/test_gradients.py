"""``--clip_grad_norm`` and ``--accumulate``: the gradients that an update of the parameters gets."""
import pytest
import torch

from datasets.sampler import shard_slice
from processor.build import build_step
from processor.sharding import supports_cpu_sharding
from processor.weight_average import WeightAverage
from tests.processor.test_several_processes import double_precision, model_of, samples
from tests.support import compute_gradients, golden_archive, golden_json, small_batch, small_model
from utils import comm
from utils.batch_shard import sync_batch_shards
from utils.errors import UserError
from utils.seeding import seed_all

LIMIT = 0.01    # far below the norm of the small models' gradients


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def start(archive, **settings):
    """A model and a step that subtracts the gradients from its parameters."""
    model = small_model(archive, 'sdm+id').train()
    return model, build_step(model, torch.optim.SGD(model.parameters(), lr=1.0), **settings)


def updates(model, before):
    """The change of each parameter, which is its negative gradient."""
    return {name: before[name] - value for name, value in model.state_dict().items()}


def gradients(archive, *batches):
    """The mean gradient of batches, {name: tensor}, of parameters that have one."""
    total = {}
    for batch in batches:
        model = small_model(archive, 'sdm+id').train()
        compute_gradients(model, batch)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad / len(batches)
    return total


def copy_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def joint_norm(tensors):
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


@pytest.mark.parametrize('settings', [{}, {'micro_batch': 2}])
def test_clipped_gradients_keep_their_direction(archive, settings):
    expected = gradients(archive, small_batch())
    norm = joint_norm(expected.values())
    assert norm > LIMIT
    model, step = start(archive, clip_grad_norm=LIMIT, **settings)
    before = copy_weights(model)
    step(small_batch())
    changes = updates(model, before)
    assert joint_norm(changes.values()) == pytest.approx(LIMIT, rel=1e-3)
    for name, gradient in expected.items():
        torch.testing.assert_close(changes[name], gradient * LIMIT / norm, rtol=1e-3, atol=1e-6)


def test_smaller_gradients_are_not_changed(archive):
    (clipped, step), (model, other) = start(archive, clip_grad_norm=1e6), start(archive)
    for each in (step, other):
        each(small_batch())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in clipped.state_dict().items())


def test_an_update_gets_the_mean_gradient_of_the_accumulated_batches(archive):
    batches = [small_batch(seed=seed) for seed in range(3)]
    model, step = start(archive, accumulate=2)
    before = copy_weights(model)
    step(batches[0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    step(batches[1])
    changes = updates(model, before)
    for name, gradient in gradients(archive, *batches[:2]).items():
        torch.testing.assert_close(changes[name], gradient, rtol=1e-4, atol=1e-6)

    model, step = start(archive, accumulate=2)
    step(batches[2])
    step.update()       # as at the end of an epoch
    step.update()       # without another batch
    for name, gradient in gradients(archive, batches[2]).items():
        torch.testing.assert_close(updates(model, before)[name], gradient, rtol=1e-4, atol=1e-6)


def train(archive, micro_batch=None, shard=False):
    """The weights after three batches of 6, 7 and 6 samples, the last of which remains of an accumulation."""
    with double_precision():
        model = model_of(archive, loss_names='sdm+id')
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
        step = build_step(model, optimizer, micro_batch, shard, clip_grad_norm=LIMIT, accumulate=2)
        for number, size in enumerate((6, 7, 6)):
            rows = shard_slice(size, comm.get_rank(), comm.get_world_size())
            batch = {name: value[rows] for name, value in samples('clip', size, number).items()}
            batch_shard, batch = sync_batch_shards(batch)
            seed_all(number)
            step(batch, batch_shard)
        step.update()
        with step.unsharded():
            return {name: value.detach().clone() for name, value in model.named_parameters()}


needs_sharding = pytest.mark.skipif(not supports_cpu_sharding(), reason="this PyTorch's FSDP2 needs GPUs")


@pytest.mark.parametrize('micro_batch, shard', [(None, False), (2, False),
                                                pytest.param(None, True, marks=needs_sharding)])
def test_two_processes_update_as_one(archive, processes, micro_batch, shard):
    expected = train(archive)
    for weights in processes.run(train, archive, micro_batch, shard):
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def average_sharded_weights(archive):
    model, _ = start(archive, shard_parameters=True)
    with pytest.raises(UserError, match='--ema cannot be combined with --shard'):
        WeightAverage(model, torch.optim.SGD(model.parameters()), 0.5)


@needs_sharding
def test_sharded_weights_have_no_average(archive, processes):
    processes.run(average_sharded_weights, archive)

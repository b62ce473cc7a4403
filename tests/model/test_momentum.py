"""Momentum encoder and queue as parts that several heads share, with ALBEF's names in checkpoints."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.head_registry import registry
from model.heads import HasTrainingOnlyParts, Head
from model.momentum import MomentumEncoder, make_momentum_copy, update_momentum_copy
from model.queue import EmbeddingQueue, IdentityQueue
from processor.build import build_step
from tests.support import golden_archive, golden_json, small_batch, small_model
from utils.checkpoint import Checkpointer, load_weights
from utils.errors import UserError
from utils.seeding import seed_all

QUEUE = {'image_queue', 'text_queue', 'idx_queue', 'queue_ptr'}


class Cross(Head):
    """Image embeddings against the queue and the captions' momentum embeddings, with ALBEF's shared parts."""
    names, updates_before_forward = ('cross',), True

    def __init__(self, args, model):
        super().__init__()
        self.momentum = model.shared(MomentumEncoder, model, 0.75, self.updates_before_forward)
        self.queue = model.shared(IdentityQueue, 9, model.embed_dim)

    def forward(self, encoded, batch):
        backbone = self.momentum.backbone
        with torch.no_grad():
            keys = [backbone.image_embedding(backbone.encode_image(batch['images'])[0]),
                    backbone.text_embedding(backbone.encode_text(batch['caption_ids'])[0], batch['caption_ids'])]
            images, texts = (F.normalize(rows.float(), dim=1) for rows in keys)
        columns = torch.cat([texts.t(), self.queue.text_queue.clone()], dim=1)
        loss = F.cross_entropy(F.normalize(encoded.image, dim=1) @ columns / 0.1, torch.arange(len(texts)))
        self.queue.append(images, texts, batch['pids'])
        return {f'{self.names[0]}_loss': loss}


class Second(Cross):
    names = ('second',)

    def forward(self, encoded, batch):
        return {'second_loss': encoded.image.square().mean() + self.queue.image_queue.square().mean()}


class CrossAfter(Cross):
    names, updates_before_forward = ('cross-after',), False


class Counting(HasTrainingOnlyParts, Head):
    """A head with buffers of its own, one of which it replaces in each step."""
    names, training_only_parts = ('counting',), ('steps_seen',)

    def __init__(self, args, model):
        super().__init__()
        self.register_buffer('steps_seen', torch.zeros(1, dtype=torch.long))
        self.register_buffer('center', torch.ones(model.embed_dim))

    def forward(self, encoded, batch):
        return {'counting_loss': (encoded.image - self.center).square().mean()}

    def after_step(self, model):
        self.steps_seen = self.steps_seen + 1


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture(autouse=True)
def heads(monkeypatch):
    for head in (Cross, Second, CrossAfter, Counting):
        monkeypatch.setitem(registry(), head.names[0], head)


def make_step(model, micro_batch=None):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return build_step(model, torch.optim.Adam(trained, lr=1e-3), micro_batch)


def train(step, *numbers):
    for number in numbers:
        seed_all(number)
        step(small_batch(seed=number))


def clone(weights):
    return {name: value.clone() for name, value in weights.items()}


def test_names_in_checkpoints_are_those_of_albef(archive):
    plain, model = small_model(archive, 'sdm'), small_model(archive, 'cross+second')
    copies = {name.replace('base_model.', 'base_model_m.') for name in plain.state_dict()}
    assert model.training_only == copies | QUEUE
    assert set(model.state_dict()) == set(plain.state_dict()) | model.training_only
    sizes = {name: list(model.state_dict()[name].shape) for name in QUEUE}
    assert sizes == {'image_queue': [128, 9], 'text_queue': [128, 9], 'idx_queue': [1, 9], 'queue_ptr': [1]}


@pytest.mark.parametrize('loss_names', ['cross+second', 'cross-after'])
@pytest.mark.parametrize('micro_batch', [None, 4])
def test_the_copy_follows_once_a_step_before_or_after_it(archive, loss_names, micro_batch):
    model = small_model(archive, loss_names).train()
    step = make_step(model, micro_batch)
    train(step, 0)
    copy, before = clone(model.backbone.state_dict()), clone(model.backbone.state_dict())
    copy.update({name: model.state_dict()[name.replace('base_model.', 'base_model_m.')].clone() for name in copy})
    train(step, 1)
    source = before if loss_names == 'cross+second' else model.backbone.state_dict()
    for name, value in copy.items():
        expected = 0.75 * value + 0.25 * source[name]
        actual = model.state_dict()[name.replace('base_model.', 'base_model_m.')]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('loss_names', ['cross+second', 'cross-after', 'sdm+counting'])
def test_a_resumed_run_is_exact_and_best_excludes_the_parts(archive, tmp_path, loss_names):
    model = small_model(archive, loss_names).train()
    step = make_step(model)
    train(step, 0, 1)
    schedule = torch.optim.lr_scheduler.ConstantLR(step.optimizer)
    checkpointer = Checkpointer(model, step.optimizer, schedule, str(tmp_path), True)
    checkpointer.save('best', epoch=1)
    checkpointer.save('last', training_state=True, epoch=1)
    train(step, 2, 3)
    best = torch.load(tmp_path / 'best.pth')['model']
    assert set(model.state_dict()) - set(best) == model.training_only != set()
    load_weights(small_model(archive, loss_names), best)

    resumed = small_model(archive, loss_names, seed=1).train()
    step = make_step(resumed)
    schedule = torch.optim.lr_scheduler.ConstantLR(step.optimizer)
    Checkpointer(resumed, step.optimizer, schedule).resume(str(tmp_path / 'last.pth'))
    train(step, 2, 3)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match='entries are missing'):
        load_weights(resumed, best, resumed=True)


def test_a_buffer_of_a_head_follows_the_model_and_assignments(archive):
    model = small_model(archive, 'sdm+counting').train().to(torch.float64)
    head = model.heads[1]
    assert head.center is model.center and head.center.dtype == torch.float64
    make_step(model.float())(small_batch())
    assert model.steps_seen.item() == model.state_dict()['steps_seen'].item() == 1
    assert model.training_only == {'steps_seen'}    # the other buffer is a part of the model


def test_a_ring_wraps_round_and_replaces_the_oldest():
    queue, expected = IdentityQueue(size=7, width=4), list(range(-7, 0))
    assert torch.equal(queue.idx_queue, torch.full((1, 7), -100)) and queue.queue_ptr.tolist() == [0]
    number = 0
    for count in (3, 3, 3, 7, 1, 9, 16):        # the last two are larger than the queue
        rows = torch.arange(number, number + count)
        queue.append(rows[:, None].float() + torch.arange(4), -rows[:, None].float() + torch.arange(4), rows)
        for row in rows.tolist():
            expected[row % 7] = row
        number += count
        written = torch.tensor(expected) >= 0
        assert queue.queue_ptr.item() == number % 7
        assert torch.equal(queue.idx_queue[0][written], torch.tensor(expected)[written])
        assert torch.equal(queue.image_queue[0][written], torch.tensor(expected)[written].float())
        assert torch.equal(queue.text_queue[1][written], 1 - torch.tensor(expected)[written].float())


def test_a_queue_holds_the_newest_batch_first():
    queue = EmbeddingQueue(size=5, width=1)
    for number in (0, 3):
        rows = torch.arange(number, number + 3.0)[:, None]
        queue.append(rows, -rows)
    assert queue.images.flatten().tolist() == [3, 4, 5, 0, 1] and torch.equal(queue.texts, -queue.images)


@pytest.mark.parametrize('momentum', [0.0, 0.3, 0.995, 1.0])
def test_a_momentum_copy_is_a_moving_average(momentum):
    layer = nn.BatchNorm1d(3)
    slow = make_momentum_copy(layer)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    layer.running_mean += 1
    update_momentum_copy(slow, layer, momentum)
    torch.testing.assert_close(slow.weight, momentum + (1 - momentum) * layer.weight.detach())
    assert torch.equal(slow.running_mean, torch.zeros(3)) and not slow.weight.requires_grad

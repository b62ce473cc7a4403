"""APTM's schedules by step."""
import pytest
import torch

from solver import build_lr_scheduler
from tests.support import options
from utils.errors import UserError


def schedule_of(**settings):
    optimizer = torch.optim.SGD([{'params': [torch.zeros(1, requires_grad=True)], 'lr': lr} for lr in (1.0, 2.0)])
    return optimizer, build_lr_scheduler(options(lr=1.0, **settings), optimizer)


def rates(epochs, steps, **settings):
    """The rate of each step of a training."""
    optimizer, schedule = schedule_of(num_epoch=epochs, **settings)
    found = []
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            schedule.before_step(epoch, step, steps)
            found.append(optimizer.param_groups[0]['lr'])
            assert optimizer.param_groups[1]['lr'] == pytest.approx(2 * found[-1])
            optimizer.step()
        schedule.step()
    return found


def test_linear_with_warmup():
    assert rates(2, 5, lrscheduler='step_linear', warmup_steps=4) == pytest.approx([0, .25, .5, .75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_stairs():
    expected = [s / 10 for s in range(10)] + [1.0] * 30 + [0.5] * 30 + [0.2] * 30
    assert rates(4, 25, lrscheduler='step_stairs') == pytest.approx(expected)
    assert rates(1, 5, lrscheduler='step_stairs') == [1.0] * 5         # too short to warm up


def test_a_resumed_schedule_goes_on():
    optimizer, schedule = schedule_of(num_epoch=4, lrscheduler='step_stairs')
    schedule.load_state_dict({'last_epoch': 1})
    schedule.before_step(2, 21, 25)
    assert optimizer.param_groups[0]['lr'] == 0.5


def test_a_warmup_longer_than_the_training():
    with pytest.raises(UserError, match='--warmup_steps 50 must be below the 10 steps'):
        rates(2, 5, lrscheduler='step_linear', warmup_steps=50)

"""APTM's schedules by step."""
import pytest
import torch

from solver.step_schedule import StepSchedule
from utils.errors import UserError


def rates(total, steps, **settings):
    optimizer = torch.optim.SGD([{'params': [torch.zeros(1, requires_grad=True)], 'lr': 1.0},
                                 {'params': [torch.zeros(1, requires_grad=True)], 'lr': 2.0}])
    schedule, found = StepSchedule(optimizer, total, **settings), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]['lr'])
        assert optimizer.param_groups[1]['lr'] == pytest.approx(2 * found[-1])
        optimizer.step()
        schedule.step()
    return found


def test_linear_with_warmup():
    assert rates(10, 11, mode='step_linear', warmup_steps=4) == pytest.approx(
        [0, .25, .5, .75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


def test_stairs():
    expected = [s / 10 for s in range(10)] + [1.0] * 30 + [0.5] * 30 + [0.2] * 30
    assert rates(100, 100, mode='step_stairs') == pytest.approx(expected)
    assert rates(5, 5, mode='step_stairs') == [1.0] * 5         # too short to warm up


def test_resumed_schedule_goes_on():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = StepSchedule(optimizer, 100, 'step_stairs')
    schedule.load_state_dict({'last_epoch': 45})
    assert optimizer.param_groups[0]['lr'] == 0.5 and schedule.state_dict() == {'last_epoch': 45}


def test_bad_settings():
    with pytest.raises(UserError, match='must be below the 5 steps'):
        rates(5, 1, mode='step_linear', warmup_steps=5)
    with pytest.raises(UserError, match='unknown --lrscheduler'):
        rates(5, 1, mode='step_linaer')

"""APTM's schedules by step."""
import math
import os

import pytest
import torch

from solver import build_lr_scheduler
from tests.support import options
from utils.errors import UserError
from utils.options import get_args

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def build_schedule(**settings):
    optimizer = torch.optim.SGD([{'params': [torch.zeros(1, requires_grad=True)], 'lr': lr} for lr in (1.0, 2.0)])
    return optimizer, build_lr_scheduler(options(lr=1.0, **settings), optimizer)


def compute_lrs(epochs, steps, **settings):
    """Compute the learning rate of each step of a training."""
    optimizer, schedule = build_schedule(num_epoch=epochs, **settings)
    lrs = []
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            schedule.before_step(epoch, step, steps)
            lrs.append(optimizer.param_groups[0]['lr'])
            assert optimizer.param_groups[1]['lr'] == pytest.approx(2 * lrs[-1])
            optimizer.step()
        schedule.step()
    return lrs


def test_linear_with_warmup():
    expected = [0, .25, .5, .75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert compute_lrs(2, 5, lrscheduler='step_linear', warmup_steps=4) == pytest.approx(expected)


def test_stairs_decay_linearly():
    stairs = [1.0] * 30 + [0.5] * 30 + [0.2] * 30
    expected = [s / 10 for s in range(10)] + [stair * (90 - s) / 90 for s, stair in enumerate(stairs)]
    assert compute_lrs(4, 25, lrscheduler='step_stairs') == pytest.approx(expected)
    assert compute_lrs(1, 5, lrscheduler='step_stairs') == pytest.approx([1, .8, .6, .4, .2])   # too short to warm up


def test_cosine_by_epoch_after_a_warmup_with_one_rate():
    """RaSa: 1e-5 for all parameters until step 100 of the first epoch, then a cosine by epoch from 1e-5 and 1e-4."""
    optimizer = torch.optim.SGD([{'params': [torch.zeros(1, requires_grad=True)], 'lr': lr} for lr in (2e-5, 1e-4)])
    schedule = build_lr_scheduler(options(lr=2e-5, lrscheduler='epoch_cosine', num_epoch=30, warmup_steps=100,
                                          target_lr=1e-6), optimizer)
    for epoch in range(30):
        for done in (0, 99, 100, 149):
            schedule.before_step(epoch + 1, done + 1, 150)
            cosine = (1 + math.cos(math.pi * epoch / 30)) / 2
            expected = [1e-6 + (base - 1e-6) * cosine for base in (2e-5, 1e-4)]
            rates = [group['lr'] for group in optimizer.param_groups]
            assert rates == pytest.approx([1e-5, 1e-5] if epoch == 0 and done < 100 else expected, rel=1e-12)
        optimizer.step()
        schedule.step()


# APTM's own fine-tuning on CUHK-PEDES: {finished steps: learning rate}, 4,260 steps, base learning rate 1e-4.
REFERENCE = {0: 0.0, 213: 5e-5, 426: 1e-4, 852: 8.89e-5, 1703: 6.67e-5, 2982: 6.67e-6, 3834: 2.22e-6, 4259: 5.2e-9}
FINE_TUNING = ('aptm', 'aptm-pa-100k', 'aptm-pa-100k-image')


@pytest.mark.parametrize('recipe', FINE_TUNING)
def test_fine_tuning_has_the_rates_of_the_reference(recipe):
    args = get_args(['--config_file', os.path.join(ROOT, 'configs', f'{recipe}.yaml')])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    schedule, steps = build_lr_scheduler(args, optimizer), 4260 // args.num_epoch
    for done, rate in REFERENCE.items():
        schedule.before_step(done // steps + 1, done % steps + 1, steps)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(rate, rel=5e-3), f'step {done}'


def test_a_resumed_schedule_continues():
    optimizer, schedule = build_schedule(num_epoch=4, lrscheduler='step_stairs')
    schedule.load_state_dict({'last_epoch': 1})
    schedule.before_step(2, 21, 25)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.5 * 55 / 90)


def test_a_warmup_longer_than_the_training():
    with pytest.raises(UserError, match='--warmup_steps 50 must be below the 10 steps'):
        compute_lrs(2, 5, lrscheduler='step_linear', warmup_steps=50)

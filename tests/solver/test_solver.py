"""Learning rates and weight decays of every parameter, and the schedules, as in the reference implementations."""
import math

import pytest
import torch

from model import build_model
from solver import build_lr_scheduler, build_optimizer
from solver.build import parameter_settings
from solver.lr_scheduler import ScheduleSettings, WarmupSchedule
from tests.support import golden_files, golden_json, golden_names, options
from utils.errors import UserError


@pytest.mark.parametrize('reference', [
    pytest.param(reference, id=f'golden-{name}-{number}') for name in golden_names('lr_schedule*')
    for number, reference in enumerate(golden_json(name))])
def test_schedule_is_that_of_the_reference(reference):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=reference['base_lr'])
    schedule = WarmupSchedule(optimizer, ScheduleSettings(**reference['settings']))
    for epoch, lr in enumerate(reference['lr_per_epoch']):
        assert optimizer.param_groups[0]['lr'] == pytest.approx(lr, rel=1e-9, abs=1e-18), f'epoch {epoch}'
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize('mode', ['step', 'exp', 'poly', 'linear', 'cosine'])
def test_a_resumed_schedule_continues(mode):
    def make():
        optimizer = torch.optim.SGD([{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in (1e-3, 5e-3)])
        settings = ScheduleSettings(milestones=(3, 6), warmup_epochs=2, total_epochs=9, mode=mode)
        return optimizer, WarmupSchedule(optimizer, settings)
    optimizer, schedule = make()
    lrs = []
    for _ in range(9):
        lrs.append([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
        if len(lrs) == 4:
            state = schedule.state_dict()
    optimizer, schedule = make()
    schedule.load_state_dict(state)
    for expected in lrs[4:]:
        assert [group['lr'] for group in optimizer.param_groups] == expected
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize('file', golden_files('official_irra_*'))
def test_parameter_settings_are_those_of_the_reference(file):
    official = golden_json(file)
    known = vars(options())
    args = options(**{name: value for name, value in official['settings'].items() if name in known})
    for name, (lr, weight_decay) in official['optimizer_groups'].items():
        assert parameter_settings(name, args) == (pytest.approx(lr, rel=1e-12), weight_decay), name


@pytest.fixture(scope='module')
def model():
    return build_model(options(loss_names='sdm+mlm+id', pretrain_choice='scratch:tiny', img_size=(96, 48)), 7)


@pytest.mark.parametrize('name, kind, eps', [('Adam', torch.optim.Adam, 1e-3), ('adamw', torch.optim.AdamW, 1e-8),
                                             ('SGD', torch.optim.SGD, None)])
def test_optimizer_has_few_groups_that_cover_every_parameter_once(model, name, kind, eps):
    args = options(optimizer=name, loss_names='sdm+mlm+id', alpha=0.5)
    optimizer = build_optimizer(args, model)
    assert type(optimizer) is kind and len(optimizer.param_groups) <= 5
    if eps is not None:
        assert optimizer.defaults['eps'] == eps and optimizer.defaults['betas'] == (0.5, 0.999)
    held = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    settings = {id(p): (group['lr'], group['weight_decay'])
                for group in optimizer.param_groups for p in group['params']}
    for parameter_name, parameter in model.named_parameters():
        assert settings[id(parameter)] == parameter_settings(parameter_name, args)


def test_frozen_parameters_are_not_optimized(model):
    model.base_model.visual.conv1.requires_grad_(False)
    try:
        held = {id(p) for group in build_optimizer(options(), model).param_groups for p in group['params']}
        assert id(model.base_model.visual.conv1.weight) not in held
    finally:
        model.base_model.visual.conv1.requires_grad_(True)


def test_unknown_names_name_the_nearest(model):
    with pytest.raises(UserError, match='did you mean AdamW'):
        build_optimizer(options(optimizer='Adamm_W'), model)
    optimizer = build_optimizer(options(), model)
    args = options()
    args.lrscheduler = 'cosin'
    with pytest.raises(UserError, match='did you mean cosine'):
        build_lr_scheduler(args, optimizer)


def test_schedule_by_the_step_is_that_of_tbps_clip():
    """5 epochs of 4 steps: from 1e-6 to 1e-4 in the first one, then a cosine to 5e-6 over the other 16."""
    optimizer = torch.optim.SGD([{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in (1e-4, 2e-4)])
    args = options(lr=1e-4, num_epoch=5, warmup_epochs=1, warmup_factor=0.01, target_lr=5e-6, lrscheduler='step_cosine')
    schedule = build_lr_scheduler(args, optimizer)
    rates = []
    for epoch in range(1, 6):
        for step in range(1, 5):
            schedule.before_step(epoch, step, 4)
            rates.append(optimizer.param_groups[0]['lr'])
            assert schedule.compute_lr(1e-4) == rates[-1]
            optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([1e-6 + (1e-4 - 1e-6) * k / 3 for k in range(4)])
    assert rates[4:] == pytest.approx([5e-6 + (1e-4 - 5e-6) * (1 + math.cos(math.pi * i / 16)) / 2 for i in range(16)])
    schedule.load_state_dict({'last_epoch': 2})
    schedule.before_step(3, 2, 4)
    assert optimizer.param_groups[0]['lr'] == rates[9]


def test_schedule_by_the_step_warms_up_linearly():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    with pytest.raises(UserError, match='step_cosine needs --warmup_method linear, but it is .constant'):
        build_lr_scheduler(options(lrscheduler='step_cosine', warmup_method='constant'), optimizer)


@pytest.mark.parametrize('losses', ['tal+tse+detail', 'detail+tse+tal', 'tal+detail+tse'])
def test_a_shared_part_has_the_highest_learning_rate_of_its_heads(losses):
    model = build_model(options(loss_names=losses, pretrain_choice='scratch:tiny', img_size=(96, 48)), 7)
    groups = build_optimizer(options(loss_names=losses), model).param_groups
    rates = {id(parameter): group['lr'] for group in groups for parameter in group['params']}
    of_layers = {name: rates[id(parameter)] for name, parameter in model.named_parameters() if '_emb_layer.' in name}
    assert of_layers and set(of_layers.values()) == {1e-3}
    assert set(rates.values()) == {1e-3, 1e-5, 2e-5}

"""Runs of five reference implementations that resume: the moments of each parameter, entry by entry."""
import pytest
import torch

from solver import build_lr_scheduler, build_optimizer
from tests.support import golden_json, golden_model, golden_weight, options
from utils.checkpoint import Checkpointer
from utils.errors import UserError
from utils.training_state import BUFFERS, pair_reference_groups

TINY = {'IRRA': 'irra_tiny', 'AGM': 'agm_tiny', 'A2TE': 'a2te_tiny512', 'SEN': 'sen_tiny', 'PHP': 'php_tiny'}
# Parameters without moments in these runs: no loss reaches them, or they were frozen after the optimizer was made.
UNUSED = ('base_model_m.', 'cross_attn_TextImage.', 'cross_attn_Image.', 'norm_3.', 'norm_5.', 'safl.pos_embeding')


def moment(kind, name, shape):
    value = golden_weight(f'{kind} of {name}', tuple(shape))
    return value.square() if kind == 'exp_avg_sq' else value


def released_run(name, keys, path, change=lambda checkpoint: None):
    """Write a best.pth as the reference implementations do.

    It has one group per parameter, in the order of the model. SEN's fixed positions have no group. A2TE's copy of the
    encoders and its frozen convolution have a group without moments.
    """
    names = [key for key in keys if not any(part in key for part in BUFFERS) and key != 'decoder_pos_embed']
    idle = UNUSED + (('base_model.visual.conv1.',) if name == 'A2TE' else ())
    state = {number: {'step': torch.tensor(7.0),
                      **{kind: moment(kind, key, keys[key][0]) for kind in ('exp_avg', 'exp_avg_sq')}}
             for number, key in enumerate(names) if not key.startswith(idle)}
    groups = [{'params': [number], 'lr': 1e-5, 'weight_decay': 4e-5, 'betas': (0.9, 0.999), 'eps': 1e-3,
               'amsgrad': False}
              for number in range(len(names))]
    weights = {key: golden_weight(key, tuple(shape)) if dtype.startswith('float')
               else torch.zeros(shape, dtype=getattr(torch, dtype))
               for key, (shape, dtype) in keys.items()}
    checkpoint = {'model': weights, 'optimizer': {'state': state, 'param_groups': groups}, 'epoch': 4,
                  'scheduler': {'last_epoch': 4, 'milestones': (20, 50)}}
    change(checkpoint)
    torch.save(checkpoint, path)


def resumed(name, tmp_path, change=lambda checkpoint: None):
    """Resume a published run of the method ``name``: (model, optimizer)."""
    model, _, description = golden_model(TINY[name], tmp_path, **({'freeze_conv1': True} if name == 'A2TE' else {}))
    released_run(name, description['official_keys'], tmp_path / 'best.pth', change)
    args = options()
    optimizer = build_optimizer(args, model)
    checkpoint = Checkpointer(model, optimizer, build_lr_scheduler(args, optimizer)).resume(tmp_path / 'best.pth')
    assert checkpoint['epoch'] == 5
    return model, optimizer


@pytest.mark.parametrize('name', TINY)
def test_each_parameter_gets_its_own_moments(name, tmp_path):
    model, optimizer = resumed(name, tmp_path)
    compared = 0
    for key, parameter in model.named_parameters():
        entry = optimizer.state.get(parameter)
        if not parameter.requires_grad or key.startswith(UNUSED):
            assert not entry, key
            continue
        for kind in ('exp_avg', 'exp_avg_sq'):
            assert torch.equal(entry[kind], moment(kind, key, parameter.shape)), key
        assert entry['step'] == 7
        compared += 1
    assert compared > 40


@pytest.mark.parametrize('name', ['irra', 'a2te', 'sen', 'php'])
def test_layouts_of_published_size(name):
    """Tensors without values, with the shapes of the checkpoints of ViT-B/16."""
    layout = golden_json(f'official_{name}_vitb16')
    shapes = {key: torch.empty(shape, device='meta') for key, (shape, _) in layout['state_dict'].items()}
    numbers = {key: number for number, key in enumerate(layout['optimizer_groups'])}
    idle = UNUSED + (('base_model.visual.conv1.',) if name == 'a2te' else ())
    state = {number: {'exp_avg': shapes[key]} for key, number in numbers.items() if not key.startswith(idle)}
    learned = [key for key in numbers if not key.startswith(('base_model_m.',) + idle[-1:])]
    pairs = pair_reference_groups(list(numbers.values()), {'state': state}, shapes, learned, 'best.pth')
    assert pairs == {key: numbers[key] for key in learned}


def swap(one, other):
    def change(checkpoint):
        state = checkpoint['optimizer']['state']
        state[one], state[other] = state[other], state[one]
    return change


def without_last_group(checkpoint):
    checkpoint['optimizer']['param_groups'].pop()


@pytest.mark.parametrize('change, message', [
    (swap(0, 3), 'cannot be paired with its .* weights by number and shape'),
    (without_last_group, 'cannot be paired with its .* weights by number and shape'),
    (lambda c: c['optimizer']['state'].clear(), 'holds no moments'),
    (lambda c: c['optimizer']['state'][2].pop('exp_avg_sq'), 'must hold exp_avg, exp_avg_sq, step'),
    (lambda c: c['optimizer']['param_groups'][3].pop('params'), "a group without a list of its parameters' numbers"),
])
def test_what_cannot_be_paired_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        resumed('IRRA', tmp_path, change)

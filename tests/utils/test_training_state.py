"""Each entry of last.pth is checked before any is used."""
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from processor.progress import MetricsLog
from processor.results import Record
from solver import build_lr_scheduler, build_optimizer
from tests.support import HANG_TIMEOUT, options
from utils.checkpoint import Checkpointer, read_checkpoint
from utils.errors import UserError
from utils.iotools import lock_folder
from utils.seeding import get_random_states

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def started(optimizer_name='Adam', steps=2):
    """Train for some steps: (model, optimizer, scheduler)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    args = options(lr=1e-2, optimizer=optimizer_name)
    optimizer = build_optimizer(args, model)
    scheduler = build_lr_scheduler(args, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer, scheduler


def saved(folder, optimizer_name='Adam'):
    """Write a last.pth as the training loop does."""
    Checkpointer(*started(optimizer_name), str(folder), True).save(
        'last', training_state=True, epoch=2, step=1, total_steps=2, best={'R1': 5.0, 'epoch': 1}, unevaluated=None,
        skipped=0,
        means={'sums': {'loss': 3.0}, 'count': 6}, scaler={}, random_states=get_random_states())
    return folder / 'last.pth'


def resume(path, optimizer_name='Adam'):
    model, optimizer, scheduler = started(optimizer_name, steps=0)
    Checkpointer(model, optimizer, scheduler).resume(path)
    model(torch.randn(6, 4)).square().mean().backward()
    optimizer.step()
    return optimizer


def entry(number, name, value):
    """Replace a moment by ``value(moment)``."""
    def change(checkpoint):
        state = checkpoint['optimizer']['state'][number]
        state[name] = value(state[name])
    return change


def put(name, value):
    return lambda checkpoint: checkpoint.update({name: value})


def within(outer, name, value):
    return lambda checkpoint: checkpoint[outer].update({name: value})


def swapped(checkpoint):
    state = checkpoint['optimizer']['state']
    state[0], state[3] = state[3], state[0]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('change, message', [
    *[(put(name, value), f"'{name}' is .* and must be") for name, value in (
        ('epoch', 0), ('epoch', 'two'), ('epoch', 2.0), ('epoch', True), ('step', -1), ('step', None),
        ('total_steps', 'x'),
        ('skipped', []),
        ('unevaluated', 'no'), ('best', None), ('best', {'R1': float('nan'), 'epoch': 1}), ('best', {'R1': 1.0}),
        ('means', []),
        ('best', {'epoch': 1}), ('best', {'mA': 'x', 'epoch': 1}),
        ('means', {'sums': {'loss': 'x'}, 'count': 1}), ('means', {'sums': {'loss': 1.0}, 'count': 0}),
        ('scaler', {'scale': 1.0}),
        ('scheduler', {}), ('scheduler', {'last_epoch': 1.5}), ('scheduler', 7), ('optimizer', []),
        ('optimizer', {'state': {}}),
        ('random_states', {}), ('random_states', torch.zeros(2)))],
    *[(within('random_states', name, value), "'random_states' is") for name, value in (
        ('python', [3, [1, 2], None]), ('numpy', ['MT19937', torch.zeros(624), 10 ** 6, 0, 0.0]),
        ('numpy', ['MT19937', torch.zeros(3), 0, 0, 0.0]),
        ('torch', torch.zeros(3, dtype=torch.uint8)), ('torch', 'x'), ('cuda', [1]), ('cuda', None))],
    (swapped, r"exp_avg of 0.weight in .* is of shape \[5\] for \[5, 4\]"),
    (entry(0, 'exp_avg', lambda value: value[:2]), r'is of shape \[2, 4\] for \[5, 4\]'),
    (entry(0, 'exp_avg', lambda value: value[:1].clone().expand(5, 4)), 'expanded from fewer numbers'),
    (entry(0, 'exp_avg', lambda value: value.to_sparse()), 'is a sparse tensor'),
    (entry(0, 'exp_avg', lambda value: value.long()), 'is a tensor of int64'),
    (entry(0, 'exp_avg', lambda value: None), 'is a NoneType'),
    (entry(1, 'exp_avg_sq', lambda value: value / 0), 'is not finite'),
    (entry(1, 'exp_avg_sq', lambda value: -value - 1), 'is negative'),
    (entry(1, 'step', lambda value: 'x'), "count of steps of .* is 'x'"),
    (entry(1, 'step', lambda value: value - 9), 'count of steps of .* is -'),
    (lambda c: c['optimizer']['state'][2].pop('step'), 'must hold exp_avg, exp_avg_sq, step'),
    (lambda c: c['optimizer']['state'].pop(3), 'holds moments of 5 parameters and was saved with 6'),
    (lambda c: c['optimizer']['state'].clear(), 'holds moments of 0 parameters and was saved with 6'),
    (lambda c: c['optimizer']['state'].update({1: []}), 'holds a list'),
    (lambda c: c['optimizer']['param_groups'].pop(), 'does not fit these options'),
    (lambda c: c['optimizer']['param_groups'].append(3), 'a group without a list'),
    (lambda c: c['optimizer']['param_groups'][0].update(params=['a']), 'a group without a list'),
    (lambda c: c['model'].update({'0.bias': torch.full((5,), float('nan'))}),
     r'weights that are not finite \(model: 0.bias\)'),
])
def test_anything_else_than_was_saved_is_named(tmp_path, change, message):
    path = saved(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=message) as raised:
        resume(path)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'SGD'])
def test_a_saved_state_is_restored(tmp_path, name):
    path = saved(tmp_path, name)
    expected = torch.load(path, weights_only=True)['optimizer']['state']
    model, optimizer, scheduler = started(name, steps=0)
    Checkpointer(model, optimizer, scheduler).resume(path)
    for number, moments in optimizer.state_dict()['state'].items():
        assert moments.keys() == expected[number].keys()
        assert all(torch.equal(moments[kind].float(), expected[number][kind].float()) for kind in moments)
    resume(path, name)


def test_another_optimizers_state_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds momentum_buffer and must hold exp_avg, exp_avg_sq, step"):
        resume(saved(tmp_path, 'SGD'))


@pytest.mark.parametrize('spoil, what', [
    (lambda model, optimizer: model[0].weight.data.fill_(float('inf')),
     'weights are not finite any more .model: 0.weight'),
    (lambda model, optimizer: optimizer.state[model[0].weight]['exp_avg_sq'].fill_(float('inf')),
     "optimizer's state .* not finite"),
])
def test_what_is_not_finite_is_not_saved(tmp_path, spoil, what):
    model, optimizer, scheduler = started()
    checkpointer = Checkpointer(model, optimizer, scheduler, str(tmp_path), True)
    spoil(model, optimizer)
    with pytest.raises(UserError, match=f'{what}.*nothing was saved before'):
        checkpointer.save('last', training_state=True, epoch=1, step=0)
    assert os.listdir(tmp_path) == []
    path = saved(tmp_path)
    with pytest.raises(UserError, match=f'at epoch 3, step 4, .*{what}.*the last good checkpoint is .*last.pth'):
        checkpointer.save('last', training_state=True, epoch=3, step=4)
    assert read_checkpoint(path)['epoch'] == 2


# -- metrics.jsonl -----------------------------------------------------------------------------------------------------

def fact(kind, epoch, step):
    return f'{{"kind": "{kind}", "epoch": {epoch}, "step": {step}}}'.encode()


def test_a_resumed_metrics_log_holds_each_line_once(tmp_path, caplog):
    foreign = [b'5', b'[]', b'{"step": "x"}', b'{"kind": "train", "epoch": null, "step": 1}', b'\xff\xfe',
               b'[' * 100000, b'']
    expected = [fact('train', 1, 2), fact('epoch', 1, 4)]
    lines = [expected[0], *foreign, expected[1], fact('evaluation', 1, 4), fact('train', 2, 6)]
    (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join(lines) + b'\n{"kind": "tr')
    MetricsLog(str(tmp_path), 4, pending_evaluation=1).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes().split() == b'\n'.join(expected).split()
    assert '7 lines that this program did not write are removed' in caplog.text
    assert all(Record.parse(line) is None for line in foreign)


def test_a_finished_evaluation_stays_in_the_log(tmp_path):
    (tmp_path / 'metrics.jsonl').write_bytes(fact('evaluation', 1, 4) + b'\n')
    MetricsLog(str(tmp_path), 4, pending_evaluation=None).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == fact('evaluation', 1, 4) + b'\n'


def test_a_journal_that_is_no_file(tmp_path):
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(UserError, match='metrics.jsonl is not a file'):
        MetricsLog(str(tmp_path))


# -- one program in a folder -------------------------------------------------------------------------------------------

def test_a_folder_is_locked_until_its_program_ends_by_whatever_way(tmp_path):
    holder = ("import os, sys, time; from utils.iotools import lock_folder\n"
              "with lock_folder(sys.argv[1], ''):\n"
              "    child = os.fork()\n"      # a worker that outlives its parent does not hold the lock
              "    if child: print(child, flush=True)\n"
              "    time.sleep(3600)")
    process = subprocess.Popen([sys.executable, '-c', holder, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                               text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match='another program is working in .*: wait for it'):
            with lock_folder(str(tmp_path), 'wait for it'):
                pass
        process.kill()
        process.wait()
        deadline = time.time() + HANG_TIMEOUT
        while time.time() < deadline:
            try:
                with lock_folder(str(tmp_path), 'wait for it'):
                    return
            except UserError:
                time.sleep(0.05)
        raise AssertionError('the lock outlived its program')
    finally:
        os.kill(child, 9)
        process.kill()

"""Training tools (docs/training_tools.md) in runs that are killed, resumed or on two processes."""
import csv
import json
import os
import re
import signal

import pytest
import torch

import test as test_program
import train as train_program
from processor.processor import Trainer
from tests.several import Launched
from utils.checkpoint import read_checkpoint
from utils.errors import UserError

# Three steps an epoch: an update of two batches and one of the last.
GRADIENTS = ['--loss_names', 'sdm', '--limit_train', '24', '--clip_grad_norm', '0.5', '--accumulate', '2',
             '--ema', '0.5', '--save_steps', '1', '--log_period', '1']
FROZEN = ['--freeze', 'visual.*']
LOGGED = ['--logger', 'csv', 'tensorboard']
# A model that does not change cannot improve.
STOPPED = ['--loss_names', 'sdm', '--limit_train', '16', '--lr', '0', '--num_epoch', '9', '--early_stop', '2']


def records(folder, *kinds):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        lines = [json.loads(line) for line in file]
    return [{name: value for name, value in line.items() if name != 'samples_per_second'} for line in lines
            if line['kind'] in kinds]


def read_csv(folder):
    with open(os.path.join(folder, 'metrics.csv'), newline='') as file:
        return [row for row in csv.reader(file) if 'samples_per_second' not in row[2]]


def log_of(folder):
    with open(os.path.join(folder, 'train_log.txt')) as file:
        return file.read()


@pytest.fixture
def kill(monkeypatch):
    """A function that runs train.py and ends it, as SIGKILL does, before a step of the run."""
    def run(command, total_steps):
        train_step = Trainer.train_step

        def die_before(trainer, *step):
            if trainer.state.total_steps == total_steps:
                raise InterruptedError
            train_step(trainer, *step)
        with monkeypatch.context() as patched, pytest.raises(InterruptedError):
            patched.setattr(Trainer, 'train_step', die_before)
            train_program.main(command)
    return run


def assert_same_run(folder, expected):
    one, other = (read_checkpoint(os.path.join(path, 'last.pth')) for path in (folder, expected))
    assert all(torch.equal(value, other['model'][name]) for name, value in one['model'].items())
    for number, state in one['optimizer']['state'].items():
        assert all(torch.equal(value, other['optimizer']['state'][number][name]) for name, value in state.items())
    assert (one['epoch'], one['step'], one['best']) == (other['epoch'], other['step'], other['best'])
    for name, value in one.get('ema', {}).items():
        assert torch.equal(value, other['ema'][name])
    kinds = 'train', 'epoch', 'evaluation'
    assert records(folder, *kinds) == records(expected, *kinds)


def test_a_run_killed_between_accumulated_batches_resumes_to_the_same_weights(command, run_folder, kill, tmp_path):
    options = [*GRADIENTS, *FROZEN, *LOGGED]
    kill(command + options, total_steps=5)      # the first batch of an update is lost
    stored = read_checkpoint(os.path.join(run_folder(), 'last.pth'))
    assert (stored['epoch'], stored['step'], stored['total_steps']) == (2, 0, 3)
    train_program.main(['--resume', run_folder()])
    train_program.main([*command, *options, '--output_dir', str(tmp_path / 'whole')])
    whole = run_folder(root=tmp_path / 'whole')
    assert_same_run(run_folder(), whole)
    assert read_csv(run_folder()) == read_csv(whole) and len(read_csv(whole)) > 20
    start, end = stored['model'], read_checkpoint(os.path.join(whole, 'last.pth'))
    frozen = {name for name in start if name.startswith('base_model.visual.')}
    assert frozen and all(torch.equal(start[name], end['model'][name]) for name in frozen)
    assert len(end['optimizer']['state']) == len(end['ema']) == len(start) - len(frozen)
    assert re.search(r'M trained, 0\.\d\dM frozen \(--freeze\) \| losses sdm', log_of(whole))


def test_a_run_with_re_ranked_evaluations_resumes_to_the_same_best_epoch(command, run_folder, kill, tmp_path):
    words = ['--loss_names', 'sdm', '--limit_train', '16', '--save_steps', '1', '--val_rerank', 'k-reciprocal',
             '--rerank_k1', '4', '--rerank_k2', '2']
    kill(command + words, total_steps=3)        # in the second epoch
    with pytest.raises(UserError, match='these options differ: rerank_k1 5 .run: 4.'):
        train_program.main(['--resume', run_folder(), '--rerank_k1', '5'])
    train_program.main(['--resume', run_folder()])
    train_program.main([*command, *words, '--output_dir', str(tmp_path / 'whole')])
    assert_same_run(run_folder(), run_folder(root=tmp_path / 'whole'))
    values = [record['reranked_R1'] for record in records(run_folder(), 'evaluation')]
    best = read_checkpoint(os.path.join(run_folder(), 'last.pth'))['best']
    assert best == {'reranked_R1': max(values), 'epoch': 1 + values.index(max(values))}


def test_the_average_is_evaluated_and_saved(command, run_folder):
    train_program.main([*command, *GRADIENTS, '--num_epoch', '1', '--save_period', '1'])
    last = read_checkpoint(os.path.join(run_folder(), 'last.pth'))
    for name in ('best', 'epoch_1'):
        weights = read_checkpoint(os.path.join(run_folder(), f'{name}.pth'))['model']
        assert all(torch.equal(weights[name], value) for name, value in last['ema'].items())
    assert any(not torch.equal(last['model'][name], value) for name, value in last['ema'].items())
    assert test_program.main(['--config_file', os.path.join(run_folder(), 'configs.yaml')]) == 0
    with open(os.path.join(run_folder(), 'metrics.json')) as file:
        tested, = json.load(file)['results'].values()
    evaluation, = records(run_folder(), 'evaluation')
    assert tested['t2i']['mAP'] == pytest.approx(evaluation['mAP'], abs=1e-3)


def test_a_signal_waits_for_the_update(command, run_folder, monkeypatch, tmp_path):
    train_step = Trainer.train_step

    def with_a_signal(trainer, *step):
        if trainer.state.total_steps == 4:      # the first batch of an update
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(trainer, *step)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, 'train_step', with_a_signal)
        train_program.main(command + GRADIENTS)
    assert read_checkpoint(os.path.join(run_folder(), 'last.pth'))['total_steps'] == 5
    train_program.main(['--resume', run_folder()])
    train_program.main([*command, *GRADIENTS, '--output_dir', str(tmp_path / 'whole')])
    assert_same_run(run_folder(), run_folder(root=tmp_path / 'whole'))


def test_a_run_stops_early_and_so_does_a_resumed_one(command, run_folder, kill, tmp_path):
    train_program.main([*command, *STOPPED, '--output_dir', str(tmp_path / 'whole')])
    whole = run_folder(root=tmp_path / 'whole')
    assert [line['epoch'] for line in records(whole, 'evaluation')] == [1, 2, 3]
    assert 'stopped early after epoch 3 | no better evaluation in 2 epochs (--early_stop)' in log_of(whole)

    kill(command + STOPPED, total_steps=6)
    train_program.main(['--resume', run_folder()])
    assert_same_run(run_folder(), whole)
    train_program.main(['--resume', run_folder()])      # nothing is left to do
    assert_same_run(run_folder(), whole)
    train_program.main(['--resume', run_folder(), '--early_stop', '3'])
    assert [line['epoch'] for line in records(run_folder(), 'evaluation')] == [1, 2, 3, 4]


def test_epochs_without_an_evaluation_do_not_count(command, run_folder):
    train_program.main([*command, *STOPPED, '--eval_period', '3', '--early_stop', '1'])
    assert [line['epoch'] for line in records(run_folder(), 'evaluation')] == [3, 6]
    assert 'stopped early after epoch 6 | no better evaluation in 1 epoch (--early_stop)' in log_of(run_folder())


def test_two_processes_stop_early_at_the_same_epoch_with_the_same_losses(command, run_folder, tmp_path):
    options = [*GRADIENTS, *FROZEN, '--num_epoch', '9', '--early_stop', '1', '--lr', '1e-30', '--keep', 'best']
    statuses, printed = Launched(train_program.main, command + options, tmp_path).wait()
    assert statuses == [0, 0], printed
    train_program.main([*command, *options, '--output_dir', str(tmp_path / 'alone')])
    alone = run_folder(root=tmp_path / 'alone')
    assert [line['epoch'] for line in records(alone, 'evaluation')] == [1, 2]
    for folder in (run_folder(), alone):
        assert [name for name in os.listdir(folder) if name.endswith('.pth')] == ['best.pth']
    lines, expected = (records(folder, 'train', 'epoch', 'evaluation') for folder in (run_folder(), alone))
    for line, other in zip(lines, expected, strict=True):
        assert line.pop('kind') == other.pop('kind') and line.pop('split', None) == other.pop('split', None)
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize('keep, left', [('best', {'best.pth'}), ('last', {'last.pth'}),
                                        ('all', {'best.pth', 'last.pth'})])
def test_a_finished_run_keeps_some_checkpoints(command, run_folder, kill, keep, left):
    command = [*command, '--loss_names', 'sdm', '--limit_train', '16', '--keep', keep]      # two steps an epoch
    kill(command, total_steps=4)
    assert {name for name in os.listdir(run_folder()) if name.endswith('.pth')} == {'best.pth', 'last.pth'}
    train_program.main(['--resume', run_folder()])      # a run that is not finished can be resumed
    assert {name for name in os.listdir(run_folder()) if name.endswith('.pth')} == left
    assert ('removed ' in log_of(run_folder())) == (keep != 'all')
    if keep == 'best':
        with pytest.raises(UserError, match='no optimizer; no run can continue here, because there is no last.pth'):
            train_program.main(['--resume', run_folder()])
    assert [line['epoch'] for line in records(run_folder(), 'evaluation')] == [1, 2]

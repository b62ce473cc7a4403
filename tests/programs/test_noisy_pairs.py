"""RDE, TBPS-CLIP and heads with a memory in full runs: noisy pairs, their division before each epoch, and resuming."""
import json
import os
import re
import signal

import pytest
import torch

import test as test_program
import train as train_program
from processor import clean_pairs
from processor.processor import Trainer
from utils.checkpoint import read_checkpoint

CONFIGS = os.path.join(os.path.dirname(__file__), '..', '..', 'configs')


class Killed(Exception):
    pass


def killed_at(monkeypatch, step):
    """Let the next run end without saving after ``step`` steps in total."""
    between = Trainer.save_if_due

    def save_and_die(trainer):
        between(trainer)
        if trainer.state.total_steps == step:
            raise Killed
    monkeypatch.setattr(Trainer, 'save_if_due', save_and_die)


def last(folder):
    return read_checkpoint(os.path.join(folder, 'last.pth'))


# aug also draws second captions, which move with the noisy captions.
WITH_STATES = ['--loss_names', 'tal+tse+moco+aug+ccl+rematch', '--ccd', '--noisy_rate', '0.5', '--txt_aug',
               '--tse_mode', 'train', '--moco_queue', '8', '--limit_train', '24', '--save_steps', '2',
               '--rematch_cost', 'learned']


@pytest.fixture(scope='module')
def undisturbed_run(train_shared_run):
    """The folder of a run with :data:`WITH_STATES`."""
    return train_shared_run(*WITH_STATES)


@pytest.mark.parametrize('step', [2, 4, 5])    # of three an epoch: within, and after one that is not saved
def test_killed_and_resumed_with_a_division_a_queue_and_a_momentum_encoder(command, undisturbed_run, run_folder,
                                                                           monkeypatch, step):
    with monkeypatch.context() as patch:
        killed_at(patch, step)
        with pytest.raises(Killed):
            train_program.main(command + WITH_STATES)
    folder = run_folder()
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(folder, 'last.pth')])
    expected, resumed = last(undisturbed_run), last(folder)
    assert {'queue.images', 'momentum.base_model.ln_final.weight',
            'visul_emb_layer.mlp.bns.0.running_mean', 'rematch_cost.values'} <= set(expected['model'])
    assert all(torch.equal(value, resumed['model'][name]) for name, value in expected['model'].items())
    assert torch.equal(expected['clean'], resumed['clean']) and 0 < expected['clean'].sum() < 24


def test_rde_has_a_row_for_each_similarity_and_says_what_noise_it_was_trained_with(command, run_folder, capsys):
    train_program.main(command + ['--loss_names', 'tal+tse', '--ccd', '--noisy_rate', '0.5', '--num_epoch', '1'])
    folder = run_folder()
    with open(os.path.join(folder, 'train_log.txt')) as file:
        log = file.read()
    assert re.search(r'of 48 training pairs \d+ exchange captions, and \d+ stay clean', log)
    assert re.search(r'epoch 1 \| \d+ of 48 training pairs are clean', log)
    capsys.readouterr()
    test_program.main(['--config_file', os.path.join(folder, 'configs.yaml')])
    table = capsys.readouterr().out
    assert all(re.search(rf'\| +{re.escape(name)} +\|', table) for name in ('BGE-t2i', 'TSE-t2i', 'BGE+TSE-t2i'))
    with open(os.path.join(folder, 'metrics.json')) as file:
        report = json.load(file)
    results, = report['results'].values()
    assert list(results) == ['BGE-t2i', 'TSE-t2i', 't2i']
    options = report['produced_by']['options']
    assert (options['noisy_rate'], options['ccd'], options['tse_mode']) == (0.5, True, 'eval')
    noise = report['produced_by']['noise']
    assert noise['clean'] + noise['noisy'] == 48 and 0 < noise['noisy'] <= 24


@pytest.mark.parametrize('cache', [[], ['--image_cache']])
def test_tbps_clip_trains_with_its_recipe_and_repeats_itself(command, run_folder, tmp_path, clip, data, cache):
    recipe = os.path.join(CONFIGS, 'tbps-clip.yaml')
    options = ['--config_file', recipe, '--root_dir', data, '--pretrain_choice', clip, '--img_size', '64', '32',
               '--batch_size', '16', '--num_workers', '0', '--device', 'cpu', '--num_epoch', '2', *cache]
    for run in ('one', 'other'):
        train_program.main([*options, '--output_dir', str(tmp_path / run)])
    one, other = (last(run_folder(root=tmp_path / run)) for run in ('one', 'other'))
    assert all(torch.equal(value, other['model'][name]) for name, value in one['model'].items())
    assert {'logit_scale', 'simclr_mlp.0.weight'} <= set(one['model']) and one['total_steps'] == 2 * 3
    groups = one['optimizer']['param_groups']
    assert sorted(group['weight_decay'] for group in groups) == [0.0, 0.02]
    assert len({group['lr'] for group in groups}) == 1


def test_fmfa_trains_with_its_recipe(command, run_folder, clip, data, tmp_path):
    recipe = os.path.join(CONFIGS, 'fmfa.yaml')
    train_program.main(['--config_file', recipe, '--root_dir', data, '--pretrain_choice', clip, '--img_size', '64',
                        '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu', '--num_epoch', '1',
                        '--cmt_depth', '1', '--output_dir', str(tmp_path / 'logs')])
    groups = last(run_folder())['optimizer']['param_groups']
    assert [(group['initial_lr'], group['weight_decay']) for group in groups] == [(5e-6, 4e-5)]


def test_stopped_while_pairs_are_divided_it_goes_on_with_the_division(command, run_folder, monkeypatch):
    options = command + ['--loss_names', 'tal', '--ccd', '--limit_train', '24', '--num_epoch', '1']
    losses_of, signals = clean_pairs.compute_pair_losses, [signal.SIGTERM]

    def interrupted(*inputs):
        while signals:
            os.kill(os.getpid(), signals.pop())
        return losses_of(*inputs)
    monkeypatch.setattr(clean_pairs, 'compute_pair_losses', interrupted)
    with pytest.raises(SystemExit) as left:
        train_program.main(options)
    assert left.value.code == 128 + signal.SIGTERM and last(run_folder())['total_steps'] == 0
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(run_folder(), 'last.pth')])
    assert last(run_folder())['total_steps'] == 3 and len(last(run_folder())['clean']) == 24

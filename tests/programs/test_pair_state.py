"""Training with values of each pair: killed, resumed, and with data loader workers, it equals an uninterrupted run."""
import os

import pytest
import torch

import train as train_program
from tests.programs.test_noisy_pairs import Killed, killed_at, last
from utils.checkpoint import read_checkpoint
from utils.errors import UserError


@pytest.fixture
def saliency_command(command):
    """Options of a training of two epochs of three steps."""
    return command + ['--loss_names', 'sdm+mlm', '--caption_masking', 'clean', '--mlm_masking', 'saliency',
                      '--limit_train', '24', '--save_steps', '2']


def assert_same_training(one, other):
    assert all(torch.equal(value, other['model'][name]) for name, value in one['model'].items())
    assert torch.equal(one['pair_states']['saliency'], other['pair_states']['saliency'])
    assert one['means'] == other['means'] and one['total_steps'] == other['total_steps'] == 6


def test_killed_and_resumed_with_the_saliency_of_the_epoch_before(saliency_command, run_folder, tmp_path, monkeypatch):
    train_program.main([*saliency_command, '--output_dir', str(tmp_path / 'whole')])
    train_program.main([*saliency_command, '--output_dir', str(tmp_path / 'workers'), '--num_workers', '2'])
    whole = last(run_folder(root=tmp_path / 'whole'))
    assert_same_training(whole, last(run_folder(root=tmp_path / 'workers')))
    saliency = whole['pair_states']['saliency']
    assert saliency.shape == (24, 77) and saliency.min() == 0 and (saliency.amax(dim=1) != 0.85).all()
    best = read_checkpoint(os.path.join(run_folder(root=tmp_path / 'whole'), 'best.pth'))
    assert 'pair_states' not in best and not any('saliency' in name for name in best['model'])
    for step in (2, 5):     # of three an epoch: in the first, and in the second after a step that is not saved
        root = tmp_path / f'killed after {step}'
        with monkeypatch.context() as patch:
            killed_at(patch, step)
            with pytest.raises(Killed):
                train_program.main([*saliency_command, '--output_dir', str(root), '--num_workers', '2'])
        folder = run_folder(root=root)
        train_program.main(['--resume', '--resume_ckpt_file', os.path.join(folder, 'last.pth')])
        assert_same_training(whole, last(folder))


@pytest.mark.parametrize('tables, message', [
    ({}, "the checkpoint has no 'saliency' of the training pairs"),
    ({'saliency': torch.ones(23, 77)}, r"'saliency' of the training pairs has the shape \[23, 77\] and must have \[24"),
    ({'saliency': torch.full((24, 77), float('nan'))}, "'pair_states' is .* must be .*finite numbers for each pair"),
    ([], "'pair_states' is .* must be .*finite numbers for each pair")])
def test_a_run_does_not_resume_from_other_values(saliency_command, run_folder, monkeypatch, tables, message):
    with monkeypatch.context() as patch:
        killed_at(patch, 1)
        with pytest.raises(Killed):
            train_program.main([*saliency_command, '--num_epoch', '1'])
    path = os.path.join(run_folder(), 'last.pth')
    torch.save({**last(run_folder()), 'pair_states': tables}, path)
    with pytest.raises(UserError, match=message):
        train_program.main(['--resume', '--resume_ckpt_file', path])

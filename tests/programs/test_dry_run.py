"""``train.py --dry_run``: two steps, an evaluation, a checkpoint and its resumption, and nothing is kept."""
import os
import re

import pytest
import torch

import train as train_program
from processor.clean_pairs import CleanPairs
from processor.dry_run import DryRunResult, format_result
from processor.estimates import RunEstimate
from processor.processor import Trainer
from tests.support import options
from utils.errors import UserError


@pytest.fixture
def steps(monkeypatch):
    """The steps that train: ``[(epoch, step, indices of the pairs)]``."""
    train_step, done = Trainer.train_step, []

    def record(trainer, batch, shard):
        done.append((trainer.state.epoch, trainer.state.step, len(batch['index'])))
        train_step(trainer, batch, shard)
    monkeypatch.setattr(Trainer, 'train_step', record)
    return done


def test_a_dry_run_trains_evaluates_resumes_and_keeps_nothing(command, tmp_path, capsys, steps, monkeypatch):
    """The head selects clean pairs before an epoch, and that pass also reads the first batches only."""
    compute_losses, read = CleanPairs.compute_losses, []
    monkeypatch.setattr(CleanPairs, 'compute_losses',
                        lambda self, *rest: read.append(len(self.loader)) or compute_losses(self, *rest))
    train_program.main([*command, '--loss_names', 'tal+tse', '--no-MLM', '--ccd', '--dry_run', '--accumulate', '2',
                        '--ema', '0.9'])
    printed = capsys.readouterr().out
    assert steps == [(1, 1, 8), (1, 2, 8), (2, 1, 8)] and read == [2, 1]
    assert 'an evaluation of 12 images and 24 captions work' in printed and 'last.pth is resumed' in printed
    assert re.search(r'^all of it works, and nothing is kept; an epoch takes about ', printed, re.MULTILINE)
    assert '48 training pairs in 6 steps' in printed and '2 epochs' in printed and '0 workers' in printed
    assert os.listdir(tmp_path) == []
    assert all(len(line) <= 120 for line in printed.splitlines()[-7:])


def test_a_failure_leaves_nothing(command, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError('the disk is full')
    monkeypatch.setattr('processor.run_state.RunState.save', fail)
    (tmp_path / 'logs').mkdir()
    with pytest.raises(UserError, match='the disk is full'):
        train_program.main([*command, '--dry_run'])
    assert os.listdir(tmp_path) == ['logs'] and os.listdir(tmp_path / 'logs') == []


def test_a_dry_run_cannot_resume(trained):
    folder = os.path.dirname(trained)
    with pytest.raises(UserError, match='--dry_run tries a new run and cannot be combined with --resume'):
        train_program.main(['--resume', folder, '--dry_run'])
    assert not [name for name in os.listdir(folder) if name.endswith('.tmp')]


def test_a_file_in_place_of_a_folder_is_one_sentence(command, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file is a file; choose another folder'):
        train_program.main([*command, '--output_dir', str(tmp_path / 'file' / 'logs'), '--dry_run'])


ESTIMATE = RunEstimate(step_seconds=0.5, sample_seconds=0.02, batch_size=64, workers=2, steps=1000,
                       evaluation_seconds=60, epochs=10, eval_period=3, selection_seconds=100)


def test_an_estimate_counts_the_slower_of_steps_and_images():
    assert ESTIMATE.waits_for_data and ESTIMATE.batch_seconds == pytest.approx(0.64)
    assert ESTIMATE.epoch_seconds == pytest.approx(740)
    assert ESTIMATE.run_seconds == pytest.approx(7400 + 4 * 60)     # after the epochs 3, 6, 9 and 10


def test_the_result_says_what_is_too_small():
    result = DryRunResult(ESTIMATE, [2.0, 0.5], 0.6, 3e9, {'best.pth': 6e8, 'last.pth': 18e8}, 64_000)
    lines = format_result(result, options(batch_size=64, num_epoch=10), 1e9, torch.device('cpu'))
    text = '\n'.join(lines)
    assert 'a run needs 4.2 GB: free some space' in text and 'a step waits for them' in text
    assert lines[-1].endswith('an epoch takes about 12 min')

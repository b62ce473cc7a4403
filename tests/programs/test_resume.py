"""Resuming, as its users do it: what a run knows after it was stopped at any place, and released runs."""
import json
import os
import shutil

import pytest
import torch

import train as train_program
from processor.progress import format_duration
from processor.training_log import remaining_seconds
from tests.support import golden_json, golden_model
from utils.checkpoint import Checkpointer, read_checkpoint
from utils.errors import UserError

SMALL = ['--loss_names', 'sdm', '--limit_train', '16']    # two steps an epoch


def facts(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        return [(line['kind'], line['epoch'], line['step']) for line in map(json.loads, file)]


def log_of(folder):
    with open(os.path.join(folder, 'train_log.txt')) as file:
        return file.read()


@pytest.fixture(scope='module')
def short_run(train_shared_run):
    """The folder of a run of one epoch."""
    return train_shared_run(*SMALL, '--num_epoch', '1')


@pytest.fixture
def trained(short_run, copy_run):
    """A copy of ``short_run`` that a test may change."""
    return copy_run(short_run)


def test_a_folder_resumes_and_the_log_says_what_is_other_what_is_left_and_where_the_best_is(short_run, trained):
    log = log_of(short_run)
    assert ' | eta ' in log and f"| test split | {os.path.join(short_run, 'best.pth')}" in log
    train_program.main(['--resume', trained, '--num_epoch', '2'])
    assert 'resumed with another num_epoch: 1 -> 2' in log_of(trained)
    assert read_checkpoint(os.path.join(trained, 'last.pth'))['epoch'] == 3
    assert len(facts(trained)) == len(set(facts(trained)))


def test_a_run_stopped_before_its_first_evaluation_says_so(command, run_folder, monkeypatch):
    monkeypatch.setattr('processor.processor.Trainer.evaluate',
                        lambda trainer: pytest.fail('killed') if trainer.state.pending_evaluation else None)
    with pytest.raises(pytest.fail.Exception):
        train_program.main(command + SMALL + ['--num_epoch', '1'])
    monkeypatch.undo()
    train_program.main(['--resume', run_folder()])
    assert 'resumed at epoch 2 step 0/2 | not evaluated yet' in log_of(run_folder())


def test_a_finished_run_without_its_best_has_one_again(trained):
    best = os.path.join(trained, 'best.pth')
    before, figures = facts(trained), read_checkpoint(best)['metrics']
    os.remove(best)
    train_program.main(['--resume', '--resume_ckpt_file', trained])
    assert read_checkpoint(best)['metrics'] == figures and facts(trained) == before
    assert f'{best} is missing (epoch 1, Rank-1 ' in log_of(trained)


def test_a_run_killed_between_evaluation_and_checkpoint_tells_it_once(command, run_folder, monkeypatch):
    save = Checkpointer.save

    def killed(checkpointer, name, *inputs, **settings):
        if name == 'best':
            raise InterruptedError
        save(checkpointer, name, *inputs, **settings)
    monkeypatch.setattr(Checkpointer, 'save', killed)
    with pytest.raises(InterruptedError):
        train_program.main(command + SMALL + ['--num_epoch', '1'])
    assert facts(run_folder())[-1] == ('evaluation', 1, 2)
    monkeypatch.undo()
    train_program.main(['--resume', run_folder()])
    assert facts(run_folder()) == [('epoch', 1, 2), ('evaluation', 1, 2)]
    assert os.path.isfile(os.path.join(run_folder(), 'best.pth'))


def test_enormous_gradients_stop_the_run_and_keep_the_last_good_state(command, run_folder, monkeypatch):
    from model import objectives
    real = objectives.sdm
    monkeypatch.setattr(objectives, 'sdm', lambda *inputs, **settings: real(*inputs, **settings) * 1e30)
    with pytest.raises(UserError, match="the optimizer's state.* not finite any more.*the last good checkpoint is"):
        train_program.main(command + SMALL)
    stored = read_checkpoint(os.path.join(run_folder(), 'last.pth'))
    assert stored['total_steps'] == 0 and not stored['optimizer']['state']


def test_pretrained_weights_that_are_not_finite_leave_nothing(command, clip, tmp_path):
    weights = torch.load(clip, weights_only=True)
    weights['ln_final.weight'][0] = float('nan')
    torch.save(weights, tmp_path / 'nan.pt')
    with pytest.raises(UserError, match='weights are not finite any more.*nothing was saved before'):
        train_program.main(command + SMALL + ['--pretrain_choice', str(tmp_path / 'nan.pt')])
    assert not (tmp_path / 'logs').exists()


@pytest.mark.parametrize('change, message', [
    (lambda c: c.update(step=1000), '1000 steps into an epoch, but an epoch has only 2'),
    (lambda c: c.pop('best'), 'best: missing from the checkpoint'),
])
def test_a_state_of_another_run(trained, change, message):
    path = os.path.join(trained, 'last.pth')
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=message):
        train_program.main(['--resume', trained, '--num_epoch', '2'])


def test_a_run_that_goes_on_elsewhere_is_left_alone(trained, monkeypatch):
    import fcntl

    def held(*_):
        raise BlockingIOError(11, 'held by another process')
    before = {name: os.path.getmtime(os.path.join(trained, name)) for name in os.listdir(trained) if name != '.lock'}
    monkeypatch.setattr(fcntl, 'lockf', held)
    message = f'another program is working in {trained}: if the run is still active there, wait for it or stop it'
    with pytest.raises(UserError, match=message):
        train_program.main(['--resume', trained, '--num_epoch', '2'])
    assert before == {name: os.path.getmtime(os.path.join(trained, name)) for name in os.listdir(trained)
                      if name != '.lock'}


def test_a_released_run_goes_on_in_a_new_folder_from_what_it_is_worth(trained, tmp_path):
    """best.pth as IRRA's code writes it: a group per parameter and the last finished epoch, without metrics."""
    released = tmp_path / 'released'
    released.mkdir()
    shutil.copy(os.path.join(trained, 'configs.yaml'), released)
    ours = read_checkpoint(os.path.join(trained, 'last.pth'))
    moments = {number: {'step': torch.tensor(2.0), 'exp_avg': torch.zeros_like(value),
                        'exp_avg_sq': torch.zeros_like(value)} for number, value in enumerate(ours['model'].values())}
    groups = [{'params': [number], 'lr': 1e-3, 'weight_decay': 0.0} for number in moments]
    torch.save({'model': ours['model'], 'epoch': 1, 'optimizer': {'state': moments, 'param_groups': groups},
                'scheduler': {'last_epoch': 1, 'milestones': (20, 50)}}, released / 'best.pth')
    before = {path.name: path.read_bytes() for path in released.iterdir()}
    worth = read_checkpoint(os.path.join(trained, 'best.pth'))['metrics']['R1']

    train_program.main(['--resume', str(released), '--num_epoch', '2', '--output_dir', str(tmp_path / 'new')])
    assert before == {path.name: path.read_bytes() for path in released.iterdir()}
    folder, = (tmp_path / 'new' / 'CUHK-PEDES').iterdir()
    assert {'best.pth', 'last.pth', 'configs.yaml'} <= set(os.listdir(folder))
    assert facts(folder) == [('evaluation', 1, 0), ('epoch', 2, 2), ('evaluation', 2, 2)]
    assert read_checkpoint(folder / 'best.pth')['metrics']['R1'] >= worth
    assert f'{released} is a run of a reference implementation and is not changed' in log_of(folder)


def test_time_left_counts_epochs_and_evaluations():
    assert remaining_seconds(4, epochs=10, eval_period=2, seconds_per_epoch=30 * 2.0,
                             seconds_per_evaluation=60.0) == 6 * 30 * 2 + 4 * 60
    assert [format_duration(seconds) for seconds in (7, 600, 7500)] == ['7 s', '10 min', '2 h 05 min']


# -- our runs in the reference implementation ------------------------------------

def as_released_code_loads(names, weights):
    """{name: entry} as the released loader matches them: the entry whose name is the longest end of the model's."""
    return {name: max((entry for entry in weights if name.endswith(entry)), key=len, default=None) for name in names}


def test_a_run_of_a2te_opens_in_its_own_test(tmp_path):
    model, _, description = golden_model('a2te_tiny512', tmp_path)
    Checkpointer(model, save_dir=str(tmp_path), save_to_disk=True).save('best', epoch=1)
    weights = torch.load(tmp_path / 'best.pth', weights_only=True)['model']
    matched = as_released_code_loads(description['official_keys'], weights)
    for name, (shape, _) in description['official_keys'].items():
        assert matched[name] == name and list(weights[name].shape) == list(shape)
    assert torch.equal(weights['base_model_m.visual.conv1.weight'], weights['base_model.visual.conv1.weight'])
    alone = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # the copy adds names but no numbers to the file
    assert os.path.getsize(tmp_path / 'best.pth') < 1.2 * alone + 500_000
    Checkpointer(model).load(tmp_path / 'best.pth')


@pytest.mark.parametrize('name', ['irra_tiny', 'agm_tiny', 'sen_tiny', 'php_tiny'])
def test_runs_of_the_others_hold_the_released_names_alone(name, tmp_path):
    model, _, _ = golden_model(name, tmp_path)
    assert set(Checkpointer(model).weights()) == set(golden_json(name)['official_keys'])

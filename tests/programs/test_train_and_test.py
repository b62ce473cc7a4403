"""train.py and test.py as their users run them, on small data."""
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import yaml

import test as test_program
import train as train_program
from datasets.pairs import PairDataset
from processor.test_run import evaluate_dataset
from processor.training_run import run_training
from run_scripts import kill_and_resume
from tests.several import ForkedProgram, start_program
from tests.support import HANG_TIMEOUT, vocabulary_size
from utils.checkpoint import read_checkpoint
from utils.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def journal(folder, kind):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        lines = [json.loads(line) for line in file]
    return [{name: value for name, value in line.items() if name != 'samples_per_second'} for line in lines
            if line['kind'] == kind]


def same_weights(one, other):
    a, b = (read_checkpoint(os.path.join(folder, 'last.pth'))['model'] for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope='module')
def whole_run(train_shared_run):
    """The folder of a run of ``command``."""
    return train_shared_run()


@pytest.fixture(scope='module')
def short_run(train_shared_run):
    """The folder of a run of ``command`` with one epoch."""
    return train_shared_run('--num_epoch', '1')


@pytest.fixture
def copied_run(short_run, copy_run):
    """A copy of ``short_run`` that a test may change."""
    return copy_run(short_run)


# -- a run -----------------------------------------------------------------------------------------------------------

def test_irras_command_then_its_test(whole_run, capsys):
    folder = whole_run
    assert re.fullmatch(r'\d{8}_\d{6}_irra', os.path.basename(folder))
    assert {'configs.yaml', 'best.pth', 'last.pth', 'train_log.txt', 'metrics.jsonl'} <= set(os.listdir(folder))
    assert any(name.startswith('events.out.tfevents') for name in os.listdir(folder))
    saved = yaml.safe_load(open(os.path.join(folder, 'configs.yaml')))
    assert saved['caption_masking'] == 'inplace' and saved['output_dir'] == folder

    best = read_checkpoint(os.path.join(folder, 'best.pth'))
    evaluations = {line['epoch']: line for line in journal(folder, 'evaluation')}
    assert sorted(evaluations) == [1, 2]
    assert best['metrics']['R1'] == max(line['R1'] for line in evaluations.values()) and 'optimizer' not in best
    assert best['val_dataset'] == 'test'

    capsys.readouterr()
    assert test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'), '--i2t']) == 0
    printed = capsys.readouterr().out
    results = json.load(open(os.path.join(folder, 'metrics.json')))
    table, = results['results'].values()
    assert table['t2i'] == best['metrics'] and f"{table['t2i']['mAP']:.3f}" in printed and 'i2t' in table
    assert results['produced_by']['checkpoint_sha256'] and results['produced_by']['options']['seed'] == 1
    assert results['independence']['holds'] is True and set(results['baselines']) == {'whole image', 'garment bands'}
    assert 'the split it is tested on' in printed and 'each embedding depends on its own sample alone' in printed


def test_losses_fall(command, run_folder):
    train_program.main(command + ['--num_epoch', '6', '--warmup_epochs', '0', '--eval_period', '10'])
    means = [line['loss'] for line in journal(run_folder(), 'epoch')]
    assert len(means) == 6 and means[-1] < means[0]
    # the last epoch is always evaluated
    assert [line['epoch'] for line in journal(run_folder(), 'evaluation')] == [6]


@pytest.mark.parametrize('switches', [['--image_cache', 'CACHE'], ['--grad_checkpoint'], ['--micro_batch', '3'],
                                      ['--image_cache', 'CACHE', '--grad_checkpoint', '--micro_batch', '5']])
def test_switches_for_speed_and_memory_change_no_result(command, whole_run, run_folder, tmp_path, switches):
    switches = [switch.replace('CACHE', str(tmp_path / 'cache')) for switch in switches]
    train_program.main(command + switches)
    for kind in ('epoch', 'evaluation'):
        for line, expected in zip(journal(run_folder(), kind), journal(whole_run, kind), strict=True):
            assert line.keys() == expected.keys()
            for name, value in expected.items():
                assert line[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), name
    assert ('--image_cache' in switches) == os.path.exists(tmp_path / 'cache')


def test_a_run_goes_on_with_other_switches(whole_run, copied_run, tmp_path):
    folder = copied_run
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(folder, 'last.pth'), '--num_epoch', '2',
                        '--grad_checkpoint', '--micro_batch', '4', '--image_cache', str(tmp_path / 'cache')])
    for line, expected in zip(journal(folder, 'epoch'), journal(whole_run, 'epoch'), strict=True):
        assert line['loss'] == pytest.approx(expected['loss'], rel=1e-4)    # warming up, whatever the number of epochs


@pytest.mark.parametrize('sampler', ['identity', 'idrannum'])
def test_other_datasets_and_samplers(command, run_folder, sampler):
    train_program.main(command + ['--dataset_name', 'ICFG-PEDES', '--sampler', sampler, '--num_instance', '2',
                                  '--num_epoch', '1'])
    assert read_checkpoint(os.path.join(run_folder('ICFG-PEDES'), 'last.pth'))['epoch'] == 2


def test_on_another_dataset_than_trained_on(short_run, capsys):
    folder = short_run
    capsys.readouterr()
    test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'), '--dataset_name', 'RSTPReid'])
    results = json.load(open(os.path.join(folder, 'metrics_RSTPReid.json')))
    assert results['produced_by']['trained_on'] == 'CUHK-PEDES' and results['produced_by']['dataset'] == 'RSTPReid'
    assert 'the split it is tested on' not in capsys.readouterr().out


def test_init_from_another_dataset(command, short_run, run_folder):
    best = os.path.join(short_run, 'best.pth')
    other = command + ['--dataset_name', 'RSTPReid', '--limit_train', '20', '--num_epoch', '1', '--init_from', best]
    train_program.main(other)
    log = open(os.path.join(run_folder('RSTPReid'), 'train_log.txt')).read()
    assert 'with initial weights: classifier.weight, classifier.bias' in log
    assert len(read_checkpoint(os.path.join(run_folder('RSTPReid'), 'last.pth'))['model']['classifier.weight']) < 12


def test_a_published_runs_folder(short_run, tmp_path, data, capsys):
    """A published run: configs.yaml with python/tuple and its paths, best.pth with its contents in half precision."""
    trained = read_checkpoint(os.path.join(short_run, 'best.pth'))
    folder = tmp_path / 'published'
    folder.mkdir()
    (folder / 'configs.yaml').write_text('\n'.join(['MLM: true', 'img_size: !!python/tuple', '- 64', '- 32',
                                                    'loss_names: sdm+mlm+id', 'cmt_depth: 1',
                                                    'pretrain_choice: ViT-B/16', 'dataset_name: CUHK-PEDES',
                                                    f'vocab_size: {vocabulary_size()}',
                                                    'root_dir: /somebody/elses/folder',
                                                    'output_dir: logs/CUHK-PEDES/some_run', 'training: true',
                                                    'num_workers: 0', 'test_batch_size: 512']))
    half = {name: value.half() if 'ln_' not in name else value for name, value in trained['model'].items()}
    torch.save({'model': half, 'epoch': 60, 'optimizer': {}, 'scheduler': {}}, folder / 'best.pth')
    assert test_program.main(['--config_file', str(folder / 'configs.yaml'), '--root_dir', data,
                              '--device', 'cpu']) == 0
    assert 'epoch 60' in capsys.readouterr().out
    figures, = json.load(open(folder / 'metrics.json'))['results'].values()
    assert figures['t2i']['mAP'] == pytest.approx(trained['metrics']['mAP'], abs=1.0)


def test_repeats_bit_for_bit_with_any_number_of_workers(command, whole_run, run_folder):
    train_program.main(command + ['--num_workers', '2'])      # whole_run reads its images itself
    assert same_weights(whole_run, run_folder())
    assert journal(whole_run, 'epoch') == journal(run_folder(), 'epoch')


# -- interrupted -----------------------------------------------------------------------------------------------------

def in_its_own_group():
    os.setsid()
    train_program.main()


@pytest.fixture
def start(command, tmp_path):
    """A function that starts train.py with further options, in its own process group."""
    return lambda *options: start_program(in_its_own_group, [*command, '--num_epoch', '4', *options],
                                          tmp_path / 'output.txt')


def wait_for_end(process, tmp_path):
    """Wait for a process to end, and return ``(exit status, output and errors)``."""
    process.join(HANG_TIMEOUT)
    return process.exitcode, (tmp_path / 'output.txt').read_text()


def wait_for_step(output, step, process):
    """Until the run has logged ``step``."""
    deadline = time.time() + HANG_TIMEOUT
    while time.time() < deadline:
        for folder, _, names in os.walk(output):
            if 'metrics.jsonl' in names and any(line['step'] >= step for line in journal(folder, 'train')):
                return folder
        assert process.is_alive(), f'exit status {process.exitcode}'
        time.sleep(0.05)
    raise AssertionError(f'the run made no step in {HANG_TIMEOUT} s')


LOG_EACH_STEP = '--log_period', '1', '--save_steps', '0'


@pytest.fixture(scope='module')
def undisturbed_run(train_shared_run):
    """The folder of the run that ``start(*LOG_EACH_STEP)`` makes if no signal arrives."""
    return train_shared_run('--num_epoch', '4', *LOG_EACH_STEP)


@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves_and_the_run_resumes_to_the_same_weights(start, undisturbed_run, run_folder, tmp_path,
                                                                           number, status):
    process = start(*LOG_EACH_STEP)
    folder = wait_for_step(tmp_path / 'logs', 8, process)
    os.kill(process.pid, number)
    exit_status, output = wait_for_end(process, tmp_path)
    assert exit_status == status, output
    assert 'Traceback' not in output and '--resume --resume_ckpt_file' in output
    stopped = read_checkpoint(os.path.join(folder, 'last.pth'))
    assert stopped['total_steps'] >= 8 and stopped['epoch'] <= 4

    # options: those of the run
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(folder, 'last.pth')])
    assert run_folder() == folder and same_weights(folder, undisturbed_run)
    for kind in ('train', 'epoch', 'evaluation'):
        assert journal(folder, kind) == journal(undisturbed_run, kind)


def test_two_kills(clip, tmp_path, monkeypatch, capsys):
    launch, outputs = kill_and_resume.launch, itertools.count()
    monkeypatch.setattr(kill_and_resume, 'train_command', lambda processes: ['train.py'])
    monkeypatch.setattr(kill_and_resume, 'launch', lambda command: launch(command) if command[0] != 'train.py' else
                        ForkedProgram(train_program.main, command[1:], tmp_path / f'{next(outputs)}.txt'))
    status = kill_and_resume.main(['--kills', '2', '--ids', '12', '--folder', str(tmp_path), '--', '--pretrain_choice',
                                   clip, '--vocab_size', str(vocabulary_size())])
    output = capsys.readouterr().out
    assert status == 0 and 'the same weights, best checkpoint and metrics after 2 kills' in output, output


def test_sigterm_to_the_group_with_workers_saves(start, tmp_path):
    """As a scheduler or `timeout` ends a job."""
    process = start('--log_period', '1', '--save_steps', '0', '--num_workers', '2')
    folder = wait_for_step(tmp_path / 'logs', 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    status, output = wait_for_end(process, tmp_path)
    assert status == 143 and 'Traceback' not in output, output
    assert read_checkpoint(os.path.join(folder, 'last.pth'))['total_steps'] >= 2


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='the children of a process are read from /proc')
def test_sigterm_while_workers_start(start, tmp_path):
    """The signal reaches the group as soon as there is a first worker."""
    process = start('--num_workers', '2')
    children = f'/proc/{process.pid}/task/{process.pid}/children'
    deadline = time.time() + HANG_TIMEOUT
    while time.time() < deadline and process.is_alive() and not (saved(tmp_path) and open(children).read()):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    status, output = wait_for_end(process, tmp_path)
    assert status == 143 and 'Traceback' not in output, output
    assert saved(tmp_path)


def test_the_first_signal_saves_and_leaves_while_workers_hang(command, whole_run, run_folder, monkeypatch, tmp_path):
    """The second worker reads the second batch, which never comes."""
    command = command + ['--num_workers', '2', '--log_period', '1']
    read = PairDataset.__getitem__

    def hang_in_the_second_worker(self, index):
        worker = torch.utils.data.get_worker_info()
        return read(self, index) if worker is None or worker.id == 0 else time.sleep(1000)

    def signal_after_the_first_step():
        while not any(journal(folder, 'train') for folder, _, names in os.walk(tmp_path / 'logs')
                      if 'metrics.jsonl' in names):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
        patched.setattr(os, 'sched_getaffinity', lambda process: range(8), raising=False)
        patched.setattr(PairDataset, '__getitem__', hang_in_the_second_worker)
        threading.Thread(target=signal_after_the_first_step, daemon=True).start()
        train_program.main(command)
    assert left.value.code == 143
    assert read_checkpoint(os.path.join(run_folder(), 'last.pth'))['total_steps'] == 1
    train_program.main(['--resume', run_folder()])
    assert same_weights(run_folder(), whole_run)


def saved(folder):
    """Whether a run in it has a last.pth, which it writes before its first step."""
    return any('last.pth' in names for _, _, names in os.walk(folder / 'logs'))


@pytest.mark.parametrize('change', [['--optimizer', 'SGD'], ['--lr', '1'], ['--dataset_name', 'RSTPReid'],
                                    ['--loss_names', 'sdm']])
def test_a_resumed_run_stays_what_it_was(copied_run, change):
    before = folder_contents(copied_run)
    with pytest.raises(UserError, match=f"these options differ: .*{change[0][2:]} .*--init_from"):
        train_program.main(['--resume', copied_run, *change])
    assert folder_contents(copied_run) == before


def folder_contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def test_a_resumed_run_may_be_longer_also_after_a_refusal(copied_run):
    resume = ['--resume', '--resume_ckpt_file', os.path.join(copied_run, 'last.pth')]
    with pytest.raises(UserError, match='these options differ'):
        train_program.main([*resume, '--lr', '1'])
    train_program.main([*resume, '--num_epoch', '2', '--eval_period', '2'])
    assert read_checkpoint(os.path.join(copied_run, 'last.pth'))['epoch'] == 3


def test_a_finished_run_resumes_to_nothing(copied_run):
    folder = copied_run
    before = read_checkpoint(os.path.join(folder, 'last.pth'))['model']
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(folder, 'last.pth')])
    after = read_checkpoint(os.path.join(folder, 'last.pth'))['model']
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- things that go wrong --------------------------------------------------------------------------------------------

def test_a_loss_that_is_not_finite_stops_the_run(command, run_folder, monkeypatch):
    from model import objectives
    real, calls = objectives.sdm, []

    def sometimes_nan(*inputs, **settings):
        calls.append(1)
        return real(*inputs, **settings) * (float('nan') if len(calls) == 5 else 1.0)
    monkeypatch.setattr(objectives, 'sdm', sometimes_nan)
    message = r'at epoch 1, step 5, .*sdm_loss is nan: lower --lr, or check the images of the batch .*imgs.*\.jpg'
    with pytest.raises(UserError, match=message) as stopped:
        train_program.main(command + ['--save_steps', '2'])
    assert 'the last good checkpoint is' in str(stopped.value)
    good = read_checkpoint(os.path.join(run_folder(), 'last.pth'))
    assert good['total_steps'] == 4 and all(value.isfinite().all() for value in good['model'].values())


@pytest.mark.parametrize('change, message', [
    (['--loss_names', 'sdm+mml'], 'did you mean mlm'),
    (['--dataset_name', 'CUHKPEDES'], 'did you mean CUHK-PEDES'),
    (['--sampler', 'idranum'], 'did you mean idrannum'),
    (['--root_dir', 'no/such/place'], 'no dataset folder no/such/place/CUHK-PEDES'),
    (['--batch_size', '5000'], '--batch_size 5000 is larger than the training set'),
    (['--val_dataset', 'val', '--dataset_name', 'ICFG-PEDES'], "no entries in the split 'val'"),
    (['--pretrain_choice', 'ViT-B/17'], 'ViT-B/16'),
    (['--pretrain_choice', 'no/such/file.pt'], 'no file'),
    (['--init_from', 'no/such/best.pth'], 'there is no file'),
    (['--device', 'cuda:7'], 'cuda:7'),
    (['--device', 'tpu'], 'tpu'),
    (['--test'], 'use: python test.py'),
    (['--vocab_size', '100'], '--vocab_size 100 is smaller than the vocabulary of the text encoder'),
    (['--cmt_depth', '0'], 'must be above 0'),
    (['--alpha', '1'], 'must be at least 0 and at most'),
    (['--seed', str(2 ** 64)], 'must be at least 0 and at most'),
    (['--name', 'a/b'], 'cannot be empty or hold a /'),
    (['--resume_ckpt_file', 'last.pth'], 'read with --resume'),
    (['--resume', '--resume_ckpt_file', 'no/last.pth'], 'there is no file no/last.pth'),
    (['--dataset_name', 'cuhk-pedes'], 'did you mean CUHK-PEDES'),
])
def test_bad_input_is_one_sentence_and_leaves_nothing(command, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        train_program.main(command + change)
    assert '\n' not in str(raised.value)
    assert not (tmp_path / 'logs').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_no_gpu(command):
    with pytest.raises(UserError, match='--device cuda: PyTorch sees no GPU'):
        train_program.main(command + ['--device', 'cuda'])


def test_output_folder_that_cannot_be_written(command, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot make the output folder.*choose another --output_dir'):
        train_program.main(command + ['--output_dir', str(tmp_path / 'file')])


def test_the_program_prints_one_line_and_leaves_with_status_2():
    for program in ('train.py', 'test.py'):
        done = subprocess.run([sys.executable, os.path.join(ROOT, program), '--config_flie', 'x'], capture_output=True,
                              text=True, cwd=ROOT)
        assert done.returncode == 2 and done.stdout == ''
        assert re.fullmatch(rf'{program}: error: unknown flag --config_flie; did you mean --config_file\?\n',
                            done.stderr)


def broken_copy(data, tmp_path):
    """CUHK-PEDES with one training image cut short; returns (root, path)."""
    root = tmp_path / 'broken'
    shutil.copytree(os.path.join(data, 'CUHK-PEDES'), root / 'CUHK-PEDES')
    entries = json.load(open(root / 'CUHK-PEDES' / 'reid_raw.json'))
    path = root / 'CUHK-PEDES' / 'imgs' / next(entry['file_path'] for entry in entries if entry['split'] == 'train')
    path.write_bytes(path.read_bytes()[:200])
    return str(root), str(path)


@pytest.mark.parametrize('workers', ['0', '1'])
def test_a_broken_image_is_named(command, data, tmp_path, workers):
    root, path = broken_copy(data, tmp_path)
    with pytest.raises(UserError) as raised:
        train_program.main(command + ['--root_dir', root, '--num_workers', workers])
    assert path in str(raised.value) and '\n' not in str(raised.value)


def test_programs_leave_after_a_broken_image_read_by_a_worker(command, data, tmp_path, short_run):
    """Python waits for the workers when a program ends."""
    root, path = broken_copy(data, tmp_path)
    # A program of its own has all tokens of CLIP, and scratch:tiny also has.
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'train.py'), *command, '--root_dir', root,
                           '--num_workers', '8', '--pretrain_choice', 'scratch:tiny', '--loss_names', 'sdm',
                           '--output_dir', str(tmp_path / 'other')], capture_output=True, text=True,
                          timeout=HANG_TIMEOUT)
    assert done.returncode == 2 and f'train.py: error: image {path} cannot be read' in done.stderr, done.stderr
    assert '--skip_broken leaves them out' in done.stderr

    images = os.path.join(root, 'CUHK-PEDES', 'imgs', 'test')
    path = os.path.join(images, sorted(os.listdir(images))[0])
    open(path, 'w').close()
    arguments = ['--config_file', os.path.join(short_run, 'configs.yaml'), '--root_dir', root, '--num_workers', '1']
    process = start_program(test_program.main, arguments, tmp_path / 'output.txt', name='test.py')
    status, output = wait_for_end(process, tmp_path)
    assert status == 2 and f'test.py: error: {path} is not an image' in output, output


def test_a_broken_image_is_left_out_on_request(command, data, tmp_path, run_folder):
    root, path = broken_copy(data, tmp_path)
    train_program.main(command + ['--root_dir', root, '--skip_broken', '--num_epoch', '1'])
    log = open(os.path.join(run_folder(), 'train_log.txt')).read()
    assert f'skipped: image {path} cannot be read' in log and 'epoch 1: 2 unreadable images skipped' in log


def test_every_image_broken_is_an_error_even_when_skipping(command, data, tmp_path):
    root = tmp_path / 'broken'
    shutil.copytree(os.path.join(data, 'CUHK-PEDES'), root / 'CUHK-PEDES')
    for entry in json.load(open(root / 'CUHK-PEDES' / 'reid_raw.json')):
        if entry['split'] == 'train':
            (root / 'CUHK-PEDES' / 'imgs' / entry['file_path']).write_text('no image')
    with pytest.raises(UserError, match='no training image can be read'):
        train_program.main(command + ['--root_dir', str(root), '--skip_broken'])


def test_weights_that_are_not_finite_do_not_replace_the_last_good_ones(command, run_folder, monkeypatch):
    from processor.processor import Trainer
    real = Trainer.train_step

    def breaks_at_step_3(trainer, *step):
        real(trainer, *step)
        if trainer.state.total_steps == 3:
            next(trainer.model.parameters()).data[0] = float('inf')
    monkeypatch.setattr(Trainer, 'train_step', breaks_at_step_3)
    with pytest.raises(UserError, match='weights are not finite any more.*the last good checkpoint is'):
        train_program.main(command + ['--save_steps', '1'])
    assert read_checkpoint(os.path.join(run_folder(), 'last.pth'))['total_steps'] == 2


def test_kept_checkpoints_and_those_that_no_split_chose(command, run_folder, capsys):
    train_program.main(command + ['--save_period', '1', '--val_dataset', 'val'])
    folder = run_folder()
    assert {'epoch_1.pth', 'epoch_2.pth'} <= set(os.listdir(folder))
    config = ['--config_file', os.path.join(folder, 'configs.yaml')]
    for name, said in (('last', 'epoch 2, chosen by no split'), ('epoch_1', 'epoch 1, chosen by no split'),
                       ('best', 'chosen by the val split')):
        capsys.readouterr()
        test_program.main(config + ['--checkpoint', os.path.join(folder, f'{name}.pth')])
        assert said in capsys.readouterr().out
    assert {'metrics.json', 'metrics_last.json', 'metrics_epoch_1.json'} <= set(os.listdir(folder))


def test_a_recipe_in_the_place_of_a_run():
    with pytest.raises(UserError, match='.irra is a recipe and not the configs.yaml of a run.; give a checkpoint'):
        test_program.main(['--config_file', 'irra'])


def test_missing_checkpoint(copied_run):
    folder = copied_run
    os.remove(os.path.join(folder, 'best.pth'))
    with pytest.raises(UserError, match='no best.pth: there is no [^ ]*best.pth .the run has only [^ ]*last.pth.; give '
                                        'a checkpoint with --checkpoint'):
        test_program.main(['--config_file', os.path.join(folder, 'configs.yaml')])


def test_an_evaluator_of_a_users_own_declares_its_measure(command, tmp_path):
    """The log, metrics.jsonl, best.pth and last.pth have the measure's name."""
    from datasets import build_dataloader
    from model import build_model
    from processor.processor import do_train
    from processor.results import read_evaluations
    from solver import build_lr_scheduler, build_optimizer
    from utils.checkpoint import Checkpointer
    from utils.logger import setup_logger
    from utils.measures import Measure
    from utils.options import get_args

    class OwnEvaluator:
        measure = Measure('recall', 'Recall')

        def eval(self, model):
            return 12.5
    args = get_args(command + ['--num_epoch', '1'])
    args.output_dir = str(tmp_path / 'own')
    setup_logger('Pedestal', args.output_dir, if_train=True)
    loader, _, _, num_classes = build_dataloader(args)
    model = build_model(args, num_classes)
    optimizer = build_optimizer(args, model)
    scheduler = build_lr_scheduler(args, optimizer)
    do_train(1, args, model, loader, OwnEvaluator(), optimizer, scheduler,
             Checkpointer(model, optimizer, scheduler, args.output_dir, True))
    setup_logger('Pedestal', '', if_train=True)
    assert [record.metrics for record in read_evaluations(args.output_dir)] == [{'recall': 12.5}]
    assert read_checkpoint(os.path.join(args.output_dir, 'best.pth'))['metrics'] == {'recall': 12.5}
    assert read_checkpoint(os.path.join(args.output_dir, 'last.pth'))['best'] == {'recall': 12.5, 'epoch': 1}
    log = (tmp_path / 'own' / 'train_log.txt').read_text()
    assert 'epoch 1 | Recall 12.500' in log and 'best recall 12.500 at epoch 1' in log and 'Rank-1' not in log


# -- other people's scripts ------------------------------------------------------------------------------------------

def test_irras_own_training_script(command, tmp_path):
    """The logic of IRRA's train.py and test.py on our packages, with the names, arguments and results it uses."""
    from datasets import build_dataloader
    from model import build_model
    from processor.processor import do_inference, do_train
    from solver import build_lr_scheduler, build_optimizer
    from utils.checkpoint import Checkpointer
    from utils.comm import get_rank, synchronize
    from utils.iotools import load_train_configs, save_train_configs
    from utils.logger import setup_logger
    from utils.metrics import Evaluator
    from utils.options import get_args
    args = get_args(command + ['--num_epoch', '1'])
    synchronize()
    args.output_dir = os.path.join(str(tmp_path), args.dataset_name, 'own_script')
    logger = setup_logger('IRRA', save_dir=args.output_dir, if_train=args.training, distributed_rank=get_rank())
    logger.info(str(args).replace(',', '\n'))
    save_train_configs(args.output_dir, args)
    before = dict(vars(args))
    train_loader, val_img_loader, val_txt_loader, num_classes = build_dataloader(args)
    model = build_model(args, num_classes)
    optimizer = build_optimizer(args, model)
    scheduler = build_lr_scheduler(args, optimizer)
    checkpointer = Checkpointer(model, optimizer, scheduler, args.output_dir, get_rank() == 0)
    do_train(1, args, model, train_loader, Evaluator(val_img_loader, val_txt_loader), optimizer, scheduler,
             checkpointer)
    assert vars(args) == before

    args = load_train_configs(os.path.join(args.output_dir, 'configs.yaml'))
    args.training = False
    before = dict(vars(args))
    test_img_loader, test_txt_loader, num_classes = build_dataloader(args)
    model = build_model(args, num_classes=num_classes)
    checkpointer = Checkpointer(model)
    checkpointer.load(f=os.path.join(args.output_dir, 'best.pth'))
    top1 = do_inference(model, test_img_loader, test_txt_loader)
    assert top1 == pytest.approx(read_checkpoint(os.path.join(args.output_dir, 'best.pth'))['metrics']['R1'])
    assert vars(args) == before


def test_a_run_and_its_evaluation_change_no_option(command, run_folder):
    args = train_program.read_options([*command, '--num_epoch', '1'])
    before = dict(vars(args)), args.config
    run_training(args)
    assert (vars(args), args.config) == before
    args = test_program.read_options(['--config_file', os.path.join(run_folder(), 'configs.yaml')])
    before = dict(vars(args)), args.config
    evaluate_dataset(args)
    assert (vars(args), args.config) == before

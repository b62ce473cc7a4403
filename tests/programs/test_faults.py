"""Several processes end together: one status, one sentence, a checkpoint to go on from."""
import glob
import json
import os
import re
import resource
import shutil
import signal
import time

import pytest
import torch

import processor.interrupt
import processor.processor
import train as train_program
from datasets.pairs import PairDataset
from datasets.build import build_dataset
from datasets.sampler import RandomBatches
from processor import training_run
from processor.interrupt import InterruptHandler
from run_scripts.kill_and_resume import compare_approximately
from tests.several import Launched
from tests.support import HANG_TIMEOUT
from utils import comm, failures
from utils.checkpoint import read_checkpoint
from utils.errors import UserError


@pytest.fixture
def several(command, tmp_path):
    """Starts train.py on two processes."""
    def start(*options, main=train_program.main, again=None):
        return Launched(main, [*command, '--loss_names', 'sdm', '--log_period', '1', *options], tmp_path, again=again)
    return start


def journal(folder, kind='train'):
    lines = [json.loads(line) for path in glob.glob(os.path.join(folder, 'metrics.jsonl')) for line in open(path)]
    return [{name: value for name, value in line.items() if name != 'samples_per_second'} for line in lines
            if line['kind'] == kind]


def wait_for_step(launched, logs, step):
    """Until the run has logged ``step``; its folder."""
    deadline = time.time() + HANG_TIMEOUT
    while time.time() < deadline:
        for folder in glob.glob(os.path.join(logs, '*', '*')):
            if len(journal(folder)) >= step:
                return folder
        assert all(process.is_alive() for process in launched.processes), launched.output()
        time.sleep(0.02)
    raise AssertionError(f'no step {step}: {launched.output()}')


def errors_in(printed):
    return [line for line in printed.splitlines() if line.startswith('train.py: ')]


# -- signals ---------------------------------------------------------------------------------------------------------

def test_a_signal_to_one_process_saves_and_all_leave_with_its_status(several, tmp_path):
    run = several('--num_epoch', '40')
    folder = wait_for_step(run, tmp_path / 'logs', 2)
    run.send(1, signal.SIGTERM)
    time.sleep(0.3)
    for rank in (0, 1):     # as torchrun does meanwhile
        run.send(rank, signal.SIGTERM)
    statuses, printed = run.wait()
    assert statuses == [143, 143], printed
    assert 'Traceback' not in printed and not errors_in(printed)
    assert printed.count('stopped; resume with: torchrun --nproc_per_node 2 train.py --resume --resume_ckpt_file') == 1
    assert read_checkpoint(os.path.join(folder, 'last.pth'))['total_steps'] == len(journal(folder)) >= 2


def test_a_signal_while_the_processes_ask_each_other_is_heeded_the_next_time(monkeypatch):
    def all_reduce_with_a_signal(number):
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    with InterruptHandler(save=lambda: None) as interrupt:
        with monkeypatch.context() as patched:
            patched.setattr(comm, 'all_reduce_max', all_reduce_with_a_signal)
            assert not interrupt.is_requested()
        assert interrupt.is_requested() == signal.SIGTERM


def test_a_terminal_says_at_once_that_ctrl_c_stops_the_run(monkeypatch):
    reader, terminal = os.openpty()
    monkeypatch.setattr(processor.interrupt, 'STDERR', terminal)
    with InterruptHandler(save=lambda: None) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.is_requested() == signal.SIGINT
        assert b'stopping after this step; Ctrl-C again stops at once' in os.read(reader, 1000)
        with pytest.raises(processor.interrupt.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    os.close(terminal)
    os.close(reader)


def signalled_in_its_evaluation():
    evaluate = processor.processor.Trainer.evaluate

    def after_a_signal(trainer):
        if trainer.state.pending_evaluation and comm.get_rank() == 1:
            trainer.evaluator.eval = lambda model: os.kill(os.getpid(), signal.SIGINT) or time.sleep(HANG_TIMEOUT)
        evaluate(trainer)

    processor.processor.Trainer.evaluate = after_a_signal
    train_program.main()


def test_a_signal_while_one_process_evaluates(several, run_folder):
    statuses, printed = several('--num_epoch', '1', main=signalled_in_its_evaluation).wait()
    assert statuses == [130, 130], printed
    assert 'Traceback' not in printed and not errors_in(printed) and printed.count('stopped; resume with: ') == 1
    assert read_checkpoint(os.path.join(run_folder(), 'last.pth'))['unevaluated'] == 1


def with_a_worker_that_hangs():
    read = PairDataset.__getitem__

    def hang_after_the_first_batch(self, index):
        if comm.get_rank() == 1 and torch.utils.data.get_worker_info().id == 1:
            time.sleep(1000)
        return read(self, index)

    os.sched_getaffinity = lambda process: range(8)
    PairDataset.__getitem__, processor.interrupt.MAX_BATCH_WAIT = hang_after_the_first_batch, 2
    train_program.main()


def test_a_signal_while_a_worker_of_one_process_hangs(several, tmp_path):
    run = several('--num_epoch', '1', '--num_workers', '2', main=with_a_worker_that_hangs)
    wait_for_step(run, tmp_path / 'logs', 1)
    for rank in (0, 1):
        run.send(rank, signal.SIGTERM)
    began = time.time()
    statuses, printed = run.wait()
    assert statuses == [143, 143] and time.time() - began < 60, printed
    assert 'Traceback' not in printed and printed.count('stopped; resume with: ') == 1


# -- a process that is gone ------------------------------------------------------------------------------------------

def test_a_killed_process_ends_the_others_and_the_run_goes_on_to_the_same_weights(several, tmp_path, run_folder):
    run = several('--save_steps', '2')
    folder = wait_for_step(run, tmp_path / 'logs', 3)
    pid = run.processes[0].pid
    run.send(0, signal.SIGKILL)
    statuses, printed = run.wait()
    assert statuses == [-9, 2], printed
    sentence, = errors_in(printed)
    assert f'process 0 (pid {pid}) of this run exited without an error message' in sentence
    assert f'--resume_ckpt_file {folder}/last.pth' in sentence

    statuses, printed = several('--save_steps', '2', again=run).wait()     # the same command, as torchrun gives it
    assert statuses == [0, 0], printed
    statuses, printed = several('--output_dir', str(tmp_path / 'whole')).wait()
    assert statuses == [0, 0], printed
    whole = run_folder(root=tmp_path / 'whole')
    weights, expected = (read_checkpoint(os.path.join(each, 'last.pth'))['model'] for each in (run_folder(), whole))
    assert run_folder() == folder and all(torch.equal(weights[name], expected[name]) for name in expected)
    assert journal(folder) == journal(whole)


def killed_while_the_other_hears_nothing():
    def stop(*_, **__):
        if comm.is_main_process():
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(HANG_TIMEOUT)

    training_run.build_model, failures.GRACE = stop, 0.5
    train_program.main()


def test_a_process_that_hangs_when_another_is_killed(several):
    run = several(main=killed_while_the_other_hears_nothing)
    statuses, printed = run.wait()
    assert statuses == [-9, 2], printed
    sentence, = errors_in(printed)
    assert f'process 0 (pid {run.processes[0].pid}) of this run exited without an error message' in sentence
    assert sentence.endswith('; start it again')


def killed_before_anything_is_saved():
    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
        training_run.build_model = lambda *_, **__: os.kill(os.getpid(),
                                                      signal.SIGKILL) if comm.is_main_process() else time.sleep(1)
    train_program.main()


def test_a_run_that_is_started_again_keeps_its_folder(several, run_folder):
    run = several('--num_epoch', '1', main=killed_before_anything_is_saved)
    statuses, _ = run.wait()
    assert statuses[0] == -9 and statuses[1] and not os.path.exists(os.path.join(run_folder(), 'last.pth'))
    statuses, printed = several('--num_epoch', '1', main=killed_before_anything_is_saved, again=run).wait()
    assert statuses == [0, 0], printed
    assert os.path.exists(os.path.join(run_folder(), 'last.pth'))    # of which there is one


def without_room_for_the_first():
    if os.environ['RANK'] == '0':
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, 2 ** 20))
    train_program.main()


def test_a_full_disk_of_the_first_process_ends_all(several):
    statuses, printed = several(main=without_room_for_the_first).wait()
    assert statuses == [2, 2], printed
    sentence, = errors_in(printed)
    assert 'cannot write' in sentence and 'last.pth' in sentence and 'Traceback' not in printed


# -- errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, message', [
    (['--batch_sise', '8'], 'unknown flag --batch_sise'),           # of all, before anything else
    (['--root_dir', 'nowhere'], 'nowhere')])                        # of the first one, for which the other waits
def test_one_of_them_tells_an_error(several, tmp_path, options, message):
    statuses, printed = several(*options).wait()
    assert statuses == [2, 2], printed
    sentence, = errors_in(printed)
    assert message in sentence and 'Traceback' not in printed
    assert not glob.glob(str(tmp_path / 'logs' / '*' / '*'))


@pytest.fixture
def broken(data, tmp_path):
    """A copy of the data with a broken image in the second process's rows of the first batch."""
    root = shutil.copytree(data, tmp_path / 'data')
    samples = build_dataset('CUHK-PEDES', str(root), verbose=False).train
    first_batch = [samples[index][2] for index, _ in next(iter(RandomBatches([sample[0] for sample in samples], 8)))]
    path = next(path for path in first_batch[4:] if path not in first_batch[:4])
    with open(path, 'wb') as file:
        file.write(b'no image')
    return str(root), path


def test_a_broken_image_of_one_process_ends_all(several, broken):
    root, path = broken
    statuses, printed = several('--root_dir', root, '--num_workers', '1').wait()
    assert statuses == [2, 2], printed
    sentence, = errors_in(printed)
    assert f'{path} is not an image' in sentence and 'Traceback' not in printed


def test_a_broken_image_of_one_process_is_left_out_as_by_a_process_alone(several, broken, command, run_folder,
                                                                         tmp_path):
    root, path = broken
    options = ['--root_dir', root, '--skip_broken', '--num_epoch', '1']
    statuses, printed = several(*options).wait()
    assert statuses == [0, 0], printed
    left_out = re.findall('skipped: image .*|unreadable images skipped', printed)
    # in each of its captions, and the epoch's count
    assert [path in line for line in left_out] == [True, True, False]
    train_program.main([*command, '--loss_names', 'sdm', '--log_period', '1', *options,
                        '--output_dir', str(tmp_path / 'alone')])
    for line, alone in zip(journal(run_folder(), 'epoch'), journal(run_folder(root=tmp_path / 'alone'), 'epoch'),
                           strict=True):
        assert line.pop('kind') == alone.pop('kind') and line == pytest.approx(alone, rel=1e-5)


def with_nan_in_the_second_process():
    sync_batch_shards = processor.processor.sync_batch_shards

    def met(batch):
        if comm.get_rank() == 1:
            batch['images'] = batch['images'].float() * float('nan')
        return sync_batch_shards(batch)

    processor.processor.sync_batch_shards = met
    train_program.main()


def test_nan_on_one_process_stops_all_and_names_the_whole_batch(several):
    statuses, printed = several('--num_epoch', '1', main=with_nan_in_the_second_process).wait()
    assert statuses == [2, 2], printed
    sentence, = errors_in(printed)
    assert 'sdm_loss is nan' in sentence and len(set(re.findall(r'\S+\.jpg', sentence))) > 4 and 'last.pth' in sentence


@pytest.mark.parametrize('environment', [{'WORLD_SIZE': '4'}, {'WORLD_SIZE': '2', 'RANK': '0'}, {'WORLD_SIZE': 'two'}])
def test_an_environment_that_is_half_torchruns(command, monkeypatch, environment):
    for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='torchrun --nproc_per_node .* or|unset WORLD_SIZE'):
        train_program.main(command)


# -- the tool that kills ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('weight, loss, problem', [(1.00001, 2.0001, None),
                                                   (1.01, 2.0, 'last.pth: w differs by up to 0.01'),
                                                   (1.0, 2.1, 'losses differ by up to 0.05')])
def test_runs_of_other_numbers_of_processes_are_compared(tmp_path, weight, loss, problem):
    for name, value, output in (('whole', 1.0, 2.0), ('killed', weight, loss)):
        (tmp_path / name).mkdir()
        torch.save({'model': {'w': torch.full((2,), value)}}, tmp_path / name / 'last.pth')
        line = json.dumps({'kind': 'train', 'epoch': 1, 'step': 1, 'loss': output, 'img_acc': output})
        (tmp_path / name / 'metrics.jsonl').write_text(f'{line}\n')
    results = list(compare_approximately(tmp_path / 'whole', tmp_path / 'killed'))
    assert [problem in line for line in results] == [True] if problem else not results

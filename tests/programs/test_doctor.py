"""The doctor: what it finds on this machine and on machines that the tests describe, and its advice."""
import json
import os

import pytest
import torch

from processor.estimates import RunEstimate
from run_scripts import ROOT
from run_scripts.diagnosis import examination, inputs, report, step
from run_scripts.diagnosis.advice import (advise_on_memory, advise_on_precision, advise_on_reading, fit_memory,
                                          largest_batch)
from run_scripts.diagnosis.check import Check, hide_paths
from run_scripts.diagnosis.environment import check_disk, check_environment, read_driver
from run_scripts.doctor import main
from tests.support import options
from utils.errors import UserError

TINY = ['--pretrain_choice', 'scratch:tiny', '--img_size', '64', '32', '--batch_size', '8', '--num_workers', '0',
        '--cmt_depth', '1', '--device', 'cpu']
GB = 10 ** 9
GPU = {'name': 'NVIDIA H200', 'memory': 150 * GB, 'free': 149 * GB, 'capability': '9.0', 'bf16': True}
MACHINE = {'python': '3.11.7', 'system': 'Linux x86_64', 'torch': '2.14.0+cu132', 'torch_cuda': '13.2', 'cudnn': 91000,
           'device': 'cuda', 'gpus': [GPU], 'driver': {'version': '590.1', 'gpus': ['NVIDIA H200']}, 'nccl': '2.28.3',
           'cpu': 'a CPU', 'cpu_bf16': True, 'cores': 16, 'cpu_limit': None, 'threads': 16, 'memory': 128 * GB,
           'available_memory': 120 * GB, 'memory_limit': None, 'load': 0.1, 'shared_memory': 64 * GB,
           'free_disk': 60 * GB, 'open_files': 65536}


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure in the process of the test, because starting others takes longer."""
    monkeypatch.setattr(examination, 'measure_in_child', lambda function, *arguments: function(*arguments))
    monkeypatch.setattr('run_scripts.doctor.preload', lambda module: None)


def findings(changes, workers=8, batch_bytes=GB // 100):
    """``{name: (status, finding and advice)}`` of the checks that are not ok on another machine."""
    checks = check_environment({**MACHINE, **changes}, workers, batch_bytes)
    return {check.name: (check.status, f'{check.finding} -> {check.advice}')
            for check in checks if check.status != 'ok'}


# -- the whole program -----------------------------------------------------------------------------------------------

def test_a_machine_without_data_is_measured_and_the_file_names_no_folder(tmp_path, capsys, in_this_process,
                                                                        monkeypatch):
    monkeypatch.setattr(step, 'cpu_has_bf16', lambda: True)
    file = tmp_path / 'doctor.json'
    words = [*TINY, '--root_dir', str(tmp_path / 'secret' / 'data'), '--out', str(file)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert 'no dataset folder' in printed and 'synthetic images' in printed and 'random weights' in printed
    assert 'cpu bf16' in printed and '0 failed' in printed
    # An earlier test may have set up the log.
    assert all(len(line) <= 120 for line in printed.splitlines() if ' INFO: ' not in line)
    text = file.read_text()
    assert 'secret' not in text and ROOT not in text and '<root_dir>' in text
    content = json.loads(text)
    measured = content['measurements']
    assert [row['batch'] for row in measured['growth']['rows']] == [2, 4]
    assert measured['counts']['train'] == [11003, 34054, 68126]         # published, because there is no dataset
    assert measured['estimate']['steps'] == 68126 // 8 + 1
    float32, bf16 = measured['precisions']['rows']
    assert float32['embedding'] == 0 < bf16['embedding'] < 0.1 and set(measured['precisions']['losses']) == {
        'sdm_loss', 'mlm_loss', 'id_loss'}

    assert main(['--rows', str(file)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert '| sdm+mlm+id | float32 | 4 |' in row and row.count('|') == len(report.HEADER) + 1
    for load in (0.0, 99.0):        # if other programs compute, there are no times
        content['machine']['load'] = load
        assert (report.format_row(content)[4:6] == ['-', '-']) == (load > 1)


def test_a_broken_check_hides_no_other(tmp_path, capsys, monkeypatch, in_this_process):
    def fail(*_):
        raise RuntimeError('the device is lost')
    for name in ('compare_precisions', 'measure_growth', 'measure_reading', 'read_environment'):
        monkeypatch.setattr(examination, name, fail)
    assert main(TINY) == 1
    printed = capsys.readouterr().out
    assert printed.count('RuntimeError: the device is lost') == 4 and 'scratch:tiny: random weights' in printed
    assert 'not estimated: no step was measured' in printed


@pytest.mark.parametrize('words, message', [
    (['--batch_size', '0'], 'batch_size'), (['--lerning_rate', '2'], 'unknown flag --lerning_rate; did you mean --lr'),
    (['--out', '/nowhere/doctor.json'], 'cannot write into /nowhere'),
    (['--rows', 'configs/albef/albef-tiny.yaml'], 'is not JSON')])
def test_wrong_options_are_one_sentence(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        main(words)


def test_another_json_file_is_refused(tmp_path):
    (tmp_path / 'other.json').write_text('[]')
    with pytest.raises(UserError, match='other.json is no file of --out'):
        main(['--rows', str(tmp_path / 'other.json')])


# -- machines --------------------------------------------------------------------------------------------------------

def test_a_sound_gpu_machine_has_no_findings():
    assert findings({}) == {}


@pytest.mark.parametrize('name, status, text, changes', [
    ('Python', 'failed', 'install Python 3.10', {'python': '3.9.1'}),
    ('PyTorch', 'failed', 'install PyTorch 2.6', {'torch': '2.5.1'}),
    ('PyTorch', 'warning', 'built without CUDA, and the machine has NVIDIA H200', {'torch_cuda': None, 'gpus': []}),
    ('driver', 'warning', 'nvidia-smi fails', {'driver': {'error': 'nvidia-smi fails: no devices'}}),
    ('GPU', 'warning', 'PyTorch sees no GPU -> the driver must support CUDA 13.2', {'gpus': []}),
    ('GPU', 'warning', '100.0 GB are in use -> stop other programs', {'gpus': [{**GPU, 'free': 50 * GB}]}),
    ('device', 'warning', 'leave out --device', {'device': 'cpu'}),
    ('NCCL', 'warning', 'several GPUs need it', {'gpus': [GPU, GPU], 'nccl': None}),
    ('cores', 'warning', 'the container may use 2.0 of them -> give the container more, or set --num_workers 2',
     {'cpu_limit': 2.0}),
    ('load', 'warning', '12.0 programs computed', {'load': 12.0}),
    ('/dev/shm', 'failed', '64.0 MB are free, and the workers\' batches need 160.0 MB -> docker run --shm-size',
     {'shared_memory': 64 * 10 ** 6}),
    ('open files', 'warning', 'ulimit -n 4096', {'open_files': 256})])
def test_what_is_wrong_with_a_machine(name, status, text, changes):
    found = findings(changes)
    assert found[name][0] == status and text in found[name][1]


def test_a_full_disk():
    assert check_disk(5 * GB, (GB, 3 * GB), 'logs').status == 'failed'
    assert check_disk(8 * GB, (GB, 3 * GB), 'logs').status == 'ok'


def test_the_answer_of_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / 'nvidia-smi'
    monkeypatch.setenv('PATH', f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for answer, expected in (('echo "590.1, NVIDIA H200"', {'version': '590.1', 'gpus': ['NVIDIA H200']}),
                             ('echo no devices; exit 6', {'error': 'nvidia-smi fails: no devices'})):
        program.write_text(f'#!/bin/sh\n{answer}\n')
        program.chmod(0o755)
        assert read_driver() == expected


# -- data and weights ------------------------------------------------------------------------------------------------

def test_a_dataset_is_counted_and_a_missing_image_fails(data, tmp_path):
    args = options(dataset_name='CUHK-PEDES', root_dir=data)
    checks, counts, exists = inputs.check_data(args)
    assert exists and [check.status for check in checks] == ['ok', 'ok'] and counts['train'] == (12, 24, 48)
    folder = tmp_path / 'CUHK-PEDES'
    folder.mkdir()
    (folder / 'reid_raw.json').write_text(json.dumps([{'id': 1, 'split': 'train', 'captions': ['a man'],
                                                       'file_path': 'a.jpg'}]))
    (counted, images), _, exists = inputs.check_data(options(dataset_name='CUHK-PEDES', root_dir=str(tmp_path)))
    assert not exists and images.status == 'failed' and '1 of 1 images are missing' in images.finding
    assert counted.status == 'warning' and 'train: 1 identities (published: 11,003)' in counted.finding


def test_a_checksum_of_openais_weights(tmp_path, monkeypatch):
    path = tmp_path / 'ViT-B-16.pt'
    assert inputs.check_openai_file('ViT-B/16', str(path)).status == 'warning'
    path.write_text('an interrupted download')
    damaged = inputs.check_openai_file('ViT-B/16', str(path))
    assert damaged.status == 'failed' and 'wrong checksum' in damaged.finding
    monkeypatch.setitem(inputs.OPENAI_SHA256, 'ViT-B/16', inputs.compute_sha256(path))
    assert inputs.check_openai_file('ViT-B/16', str(path)).status == 'ok'


# -- judgment and advice ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('multiplies_in_bf16, expected', [(False, ['float32']), (True, ['float32', 'bf16'])])
def test_precisions_of_a_cpu(monkeypatch, multiplies_in_bf16, expected):
    monkeypatch.setattr(step, 'cpu_has_bf16', lambda: multiplies_in_bf16)
    assert [name for name, *_ in step.list_precisions(torch.device('cpu'))] == expected


def test_precisions_of_a_gpu():
    names = [name for name, *_ in step.list_precisions(torch.device('cuda'))]
    assert names == ['float32', 'tf32', 'fp16', 'bf16'] and set(names) == set(examination.TOLERANCES)


@pytest.mark.parametrize('embedding, status', [(0.01, 'ok'), (0.5, 'failed'), (float('nan'), 'failed')])
def test_a_precision_that_differs_too_much_fails(embedding, status):
    row = {'precision': 'bf16', 'embedding': embedding, 'largest_embedding': 0.6, 'loss': 0.1, 'loss_name': 'sdm_loss'}
    assert examination.judge_precision(row, torch.device('cuda'), ['mae_loss']).status == status


def test_largest_batch_that_fits():
    fit = fit_memory([{'batch': 16, 'peak_bytes': 20}, {'batch': 32, 'error': 'x'}, {'batch': 64, 'peak_bytes': 68}])
    assert fit == (4, 1) and largest_batch(fit, 100) == 91 and largest_batch(fit, 3) == 0
    assert fit_memory([{'batch': 2, 'peak_bytes': 5}, {'batch': 4, 'peak_bytes': 5}]) is None


@pytest.mark.parametrize('memory, checkpointed, unsupported, expected', [
    (16, 4, '', 'the largest batch that fits is about 122'), (8, 4, '', 'add --grad_checkpoint: the batch then takes '),
    (8, 4, '', 'or add --micro_batch 32'), (8, 7.9, 'efa', 'train with --batch_size 46'),
    (2, None, '', '--tuning lora')])
def test_advice_on_memory(memory, checkpointed, unsupported, expected):
    advice = advise_on_memory((3 * GB, 0.1 * GB), memory * GB, 64, checkpointed and checkpointed * GB, unsupported)
    assert any(expected in sentence for sentence in advice)


@pytest.mark.parametrize('workers, cores, expected', [
    (8, 16, '8 workers are enough (at least 3)'), (1, 16, 'set --num_workers 3 or more'), (1, 2, 'add --image_cache')])
def test_advice_on_reading(workers, cores, expected):
    estimate = RunEstimate(0.5, 0.02, 64, workers, 1000, 0, 1, 1)
    assert expected in advise_on_reading(estimate, cores)[0]


def test_advice_on_precision():
    rows = [{'precision': 'float32', 'seconds': 4.0}, {'precision': 'bf16', 'seconds': 2.0}]
    assert advise_on_precision(rows) == ['--amp bf16 is faster on this CPU: 2.00 s instead of 4.00 s a step']
    assert advise_on_precision([*rows, {'precision': 'tf32', 'seconds': 1.0}]) == []


def test_paths_are_replaced_as_a_whole():
    hidden = hide_paths({'a': ['/home/ann/data/x.jpg', '/home/ann/database']},
                        {'/home/ann': '<home>', '/home/ann/data': '<root_dir>'})
    assert hidden == {'a': ['<root_dir>/x.jpg', '<home>/database']}


def test_a_long_check_is_wrapped():
    lines = report.format_check(Check('name', 'warning', 'word ' * 60, 'do this')).splitlines()
    assert len(lines) > 3 and all(len(line) <= 120 for line in lines) and lines[-1].strip() == '-> do this'

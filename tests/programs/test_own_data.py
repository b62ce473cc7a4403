"""Training and testing on a table of one's own."""
import csv
import json
import os

import pytest
import torch

import test as test_program
import train as train_program
from processor.progress import MetricsLog
from utils.options import build_test_parser, parse_test_options


def test_a_table_trains_and_is_tested(data, clip, tmp_path, run_folder, capsys):
    """Photos where they are, columns by other names, no splits."""
    folder = os.path.join(data, 'CUHK-PEDES')
    with open(os.path.join(folder, 'reid_raw.json')) as file:
        entries = json.load(file)
    with open(os.path.join(folder, 'mine.csv'), 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['picture', 'says', 'who'])
        writer.writerows((entry['file_path'], caption, f'person {entry["id"]}') for entry in entries
                         for caption in entry['captions'])
    train_program.main(['--name', 'own', '--dataset_name', 'mine.csv', '--root_dir', folder,
                        '--columns', 'image=picture', 'caption=says', 'id=who', '--split_seed', '3',
                        '--val_dataset', 'val', '--loss_names', 'sdm+id', '--num_epoch', '1', '--batch_size', '8',
                        '--pretrain_choice', clip, '--img_size', '64', '32', '--num_workers', '0', '--device', 'cpu',
                        '--output_dir', str(tmp_path / 'logs')])
    config = os.path.join(run_folder('mine.csv'), 'configs.yaml')
    assert test_program.main(['--config_file', config]) == 0
    people = {entry['id'] for entry in entries}
    with open(os.path.join(run_folder('mine.csv'), 'metrics.json')) as file:
        produced_by = json.load(file)['produced_by']
    assert produced_by['identities'] == round(0.2 * len(people))
    assert produced_by['options']['columns'][0] == 'image=picture'


def test_the_tests_table_is_named_by_its_path(trained):
    words = ['--config_file', trained, '--dataset_name', '/elsewhere/people.csv']
    args = parse_test_options(build_test_parser('', ''), words)
    assert (args.dataset_name, args.root_dir, args.config.data.trained_on) == ('people.csv', '/elsewhere', 'CUHK-PEDES')


def test_two_datasets_train_together_and_are_tested_each(data, clip, tmp_path, run_folder, capsys):
    train_program.main(['--name', 'two', '--dataset_name', 'CUHK-PEDES+RSTPReid', '--root_dir', data,
                        '--dataset_shares', '1', '2', '--loss_names', 'sdm+id', '--num_epoch', '1', '--batch_size', '8',
                        '--pretrain_choice', clip, '--img_size', '64', '32', '--num_workers', '0', '--device', 'cpu',
                        '--output_dir', str(tmp_path / 'logs')])
    folder = run_folder('CUHK-PEDES+RSTPReid')
    while_training = evaluations(folder)
    assert list(while_training) == ['evaluation', 'evaluation/RSTPReid']
    with open(os.path.join(folder, 'train_log.txt')) as file:
        log = file.read()
    assert log.index('on CUHK-PEDES\n') < log.index('on RSTPReid\n') < log.index('epoch 1 | Rank-1 on CUHK-PEDES ')
    assert torch.load(os.path.join(folder, 'best.pth'),
                      weights_only=True)['metrics']['R1'] == while_training['evaluation']['R1']
    capsys.readouterr()
    assert test_program.main(['--config_file', os.path.join(folder, 'configs.yaml')]) == 0
    output = capsys.readouterr().out
    assert 'CUHK-PEDES test: ' in output and 'RSTPReid test: ' in output
    assert 'chosen by the test split of CUHK-PEDES, the split it is tested on' in output
    assert 'chosen by the test split of CUHK-PEDES\n' in output
    # each table with its own course
    for dataset, kind in (('CUHK-PEDES', 'evaluation'), ('RSTPReid', 'evaluation/RSTPReid')):
        rank1 = f"{while_training[kind]['R1']:.3f}"
        assert f'during training, on the test split of {dataset}: best Rank-1 {rank1} at epoch 1' in output
    for dataset, kind in (('CUHK-PEDES', 'evaluation'), ('RSTPReid', 'evaluation/RSTPReid')):
        with open(os.path.join(folder, f'metrics_{dataset}.json')) as file:
            content = json.load(file)
        assert content['produced_by']['dataset'] == dataset
        tested, = content['results'].values()
        assert tested['t2i']['mAP'] == pytest.approx(while_training[kind]['mAP'])


def evaluations(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        return {entry['kind']: entry for entry in map(json.loads, file) if entry['kind'].startswith('evaluation')}


def test_each_evaluation_is_taken_back_that_a_resumed_run_does_again(tmp_path):
    lines = [{'kind': kind, 'epoch': epoch, 'step': 4 * epoch} for epoch in (1, 2)
             for kind in ('evaluation', 'evaluation/RSTPReid')]
    (tmp_path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    MetricsLog(str(tmp_path), step=8, pending_evaluation=2).close()
    assert [json.loads(line) for line in open(tmp_path / 'metrics.jsonl')] == lines[:2]

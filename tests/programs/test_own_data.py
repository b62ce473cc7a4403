"""Training and testing on a table of one's own."""
import csv
import json
import os

import test as test_program
import train as train_program


def test_a_table_trains_and_is_tested(data, clip, tmp_path, run_folder, capsys):
    """Photos where they are, columns by other names, no splits."""
    folder = os.path.join(data, 'CUHK-PEDES')
    with open(os.path.join(folder, 'reid_raw.json')) as file:
        entries = json.load(file)
    with open(os.path.join(folder, 'mine.csv'), 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['picture', 'says', 'who'])
        writer.writerows((entry['file_path'], caption, f'person {entry["id"]}') for entry in entries for caption in entry['captions'])
    train_program.main(['--name', 'own', '--dataset_name', 'mine.csv', '--root_dir', folder, '--columns', 'image=picture', 'caption=says',
                        'id=who', '--split_seed', '3', '--val_dataset', 'val', '--loss_names', 'sdm+id', '--num_epoch', '1',
                        '--batch_size', '8', '--pretrain_choice', clip, '--img_size', '64', '32', '--num_workers', '0', '--device', 'cpu',
                        '--output_dir', str(tmp_path / 'logs')])
    config = os.path.join(run_folder('mine.csv'), 'configs.yaml')
    assert test_program.main(['--config_file', config]) == 0
    people = {entry['id'] for entry in entries}
    with open(os.path.join(run_folder('mine.csv'), 'metrics.json')) as file:
        produced_by = json.load(file)['produced_by']
    assert produced_by['identities'] == round(0.2 * len(people)) and produced_by['options']['columns'][0] == 'image=picture'


def test_two_datasets_train_together_and_are_tested_each(data, clip, tmp_path, run_folder, capsys):
    train_program.main(['--name', 'two', '--dataset_name', 'CUHK-PEDES+RSTPReid', '--root_dir', data, '--dataset_shares', '1', '2',
                        '--loss_names', 'sdm+id', '--num_epoch', '1', '--batch_size', '8', '--pretrain_choice', clip,
                        '--img_size', '64', '32', '--num_workers', '0', '--device', 'cpu', '--output_dir', str(tmp_path / 'logs')])
    folder = run_folder('CUHK-PEDES+RSTPReid')
    capsys.readouterr()
    assert test_program.main(['--config_file', os.path.join(folder, 'configs.yaml')]) == 0
    told = capsys.readouterr().out
    assert 'CUHK-PEDES test: ' in told and 'RSTPReid test: ' in told
    assert 'chosen by the test split of CUHK-PEDES, the split it is tested on' in told
    assert 'chosen by the test split of CUHK-PEDES\n' in told
    for dataset in ('CUHK-PEDES', 'RSTPReid'):
        with open(os.path.join(folder, f'metrics_{dataset}.json')) as file:
            assert json.load(file)['produced_by']['dataset'] == dataset

"""The README's commands: one for each method trains with the options of its recipe, and the others are accepted."""
import os
import re
import shlex

import pytest

import train as train_program
from run_scripts import ROOT
from utils.options import get_args
from utils.recipes import BENCHMARKS, CONFIGS, find_recipes

with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
    README = file.read()


def words_of(command):
    """The options of a command of the README, without its comment."""
    words = shlex.split(re.sub(r'<[^>]*>', 'PLACEHOLDER', command), comments=True)
    assert words[:2] == ['python', 'train.py']
    return words[2:]


def train_commands(text):
    return re.findall(r'^python train\.py .*$', text.replace('\\\n', ' '), flags=re.MULTILINE)


METHODS = train_commands(README[README.index('## Methods'):README.index('## Install')])


def test_every_method_has_a_command():
    recipes = set(re.findall(r'--config_file (\S+)', ' '.join(METHODS)))
    assert recipes == {f'configs/{os.path.basename(path)}' for path in find_recipes('CUHK-PEDES')}


def test_a_method_with_recipes_of_datasets_names_them():
    special = {os.path.basename(path) for dataset in BENCHMARKS for path in find_recipes(dataset)}
    assert not [name for name in special if name not in README]
    assert all(os.path.exists(os.path.join(CONFIGS, name)) for name in re.findall(r'[\w-]+\.yaml', ' '.join(METHODS)))


@pytest.mark.parametrize('command', [command for command in train_commands(README) if '<' not in command])
def test_options_are_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = words_of(command)
    if not {'--print_config', '--help'} & set(words):
        assert not any('differs from' in note for note in get_args(words).config.notes) or '--batch_size 32' in command
        return
    with pytest.raises(SystemExit) as exit_info:
        get_args(words)
    assert not exit_info.value.code


@pytest.mark.parametrize('command', METHODS)
def test_a_methods_command_trains(command, data, clip, tmp_path, run_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    is_aptm = 'configs/aptm.yaml' in command
    small = ['--root_dir', data, '--pretrain_choice', 'scratch:aptm-tiny' if is_aptm else clip, '--img_size',
             *(('96', '48') if is_aptm else ('64', '32')), '--batch_size', '8', '--test_batch_size', '8',
             '--limit_train', '16', '--num_epoch', '1', '--cmt_depth', '1', '--num_workers', '0', '--device', 'cpu',
             '--output_dir', str(tmp_path / 'logs')]
    words = words_of(command)
    train_program.main([*words, *small])
    assert {'best.pth', 'last.pth', 'configs.yaml'} <= set(os.listdir(run_folder(get_args(words).dataset_name)))

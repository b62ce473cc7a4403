"""The README's commands: one for each row of its table of methods trains, and the others are accepted."""
import os
import re
import shlex

import pytest

import train as train_program
from run_scripts import ROOT
from tests.support import vocabulary_size
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


def row_commands(text):
    """The commands of the table's rows, whose second column begins with what follows ``--config_file configs/``."""
    rows = re.findall(r'^\| [^|]+ \| `([\w-]+\.yaml[^`|]*)`[^|]* \|', text, flags=re.MULTILINE)
    return [f'python train.py --config_file configs/{words}' for words in rows]


SECTION = README[README.index('## Methods'):README.index('## Install')]
ROWS = row_commands(SECTION)
METHODS = [command for command in train_commands(SECTION) if '<' not in command] + ROWS
VARIANTS = {'configs/sen-xl.yaml'}      # its ViT-L/14 is not trained here
CHANGED = '--batch_size 32', '--noisy_rate 0.5', 'sen-xl'     # in commands that differ from a published recipe


def recipe_of(command):
    return re.search(r'--config_file (\S+)', command)[1]


def test_every_method_has_a_row():
    recipes = {recipe_of(command) for command in ROWS}
    assert recipes - VARIANTS == {f'configs/{os.path.basename(path)}' for path in find_recipes('CUHK-PEDES')}
    assert VARIANTS < recipes


def test_a_method_with_recipes_of_datasets_names_them():
    special = {os.path.basename(path) for dataset in BENCHMARKS for path in find_recipes(dataset)}
    assert not [name for name in special if name not in README]
    assert all(os.path.exists(os.path.join(CONFIGS, name)) for name in re.findall(r'[\w-]+\.yaml', SECTION))


@pytest.mark.parametrize('command', [command for command in train_commands(README) + ROWS if '<' not in command])
def test_options_are_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = words_of(command)
    if not {'--print_config', '--help'} & set(words):
        differs = any('differs from' in note for note in get_args(words).config.notes)
        assert not differs or any(change in command for change in CHANGED)
        return
    with pytest.raises(SystemExit) as exit_info:
        get_args(words)
    assert not exit_info.value.code


# {recipe: (weights, height and width)}; the others start from the small CLIP.
OTHER_WEIGHTS = {'configs/aptm': ('scratch:aptm-tiny', '96', '48'), 'configs/rasa': ('scratch:albef-tiny', '64', '32'),
                 'configs/mars': ('scratch:albef-tiny', '64', '32')}


@pytest.mark.parametrize('command', [command for command in METHODS if recipe_of(command) not in VARIANTS])
def test_a_methods_command_trains(command, data, clip, tmp_path, run_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    weights, *size = OTHER_WEIGHTS.get(recipe_of(command).removesuffix('.yaml'), (clip, '64', '32'))
    small = ['--root_dir', data, '--pretrain_choice', weights, '--img_size', *size, '--batch_size', '8',
             '--test_batch_size', '8', '--limit_train', '16', '--num_epoch', '1', '--cmt_depth', '1', '--num_workers',
             '0', '--device', 'cpu', '--vocab_size', str(vocabulary_size()), '--output_dir', str(tmp_path / 'logs')]
    words = words_of(command)
    train_program.main([*words, *small])
    assert {'best.pth', 'last.pth', 'configs.yaml'} <= set(os.listdir(run_folder(get_args(words).dataset_name)))

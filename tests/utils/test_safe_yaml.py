"""YAML from anybody: content that no config holds gives an error, in little time and memory."""
import os
import time

import pytest

from utils.errors import UserError
from utils.options import get_args
from utils.safe_yaml import MAX_BYTES, read_yaml


def written(tmp_path, text):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    return str(path)


def bomb(names='abcdefghi'):
    """Write nine lines that expand to nine to the ninth power of values."""
    lines = [f'{names[0]}: &{names[0]} [x, x, x, x, x, x, x, x, x]']
    lines += [f'{name}: &{name} [{", ".join([f"*{before}"] * 9)}]' for before, name in zip(names, names[1:])]
    return '\n'.join(lines)


@pytest.mark.parametrize('text, message', [
    (bomb(), 'line 5: more than 50000 values'),
    ('name: ' + '[' * 5000, 'line 1: nested more than 20 deep'),
    ('name: ' + '[' * 5000 + ']' * 5000, 'line 1: nested more than 20 deep'),
    ('\n'.join(f'{" " * level}a:' for level in range(300)), 'line 20: nested more than 20 deep'),
    ('a: &a {b: &b {<<: [' + '*a, ' * 9 + ']}}', 'an alias inside of its own value'),
    ('a: &a [*a]', 'an alias inside of its own value'),
    ('lr: 1e-4\nname: x\nlr: 1e-5', "line 3: 'lr' is there twice"),
    ('a: {b: 1, "b": 2}', "line 1: 'b' is there twice"),
    ('1: x', 'name: value'),
    ('name: [' + 'x, ' * 60_000 + ']', 'line 1: more than 50000 values'),
    ('# ' + 'x' * MAX_BYTES, 'and a config at most .*: name a YAML file, such as the configs.yaml of'),
])
def test_what_no_config_holds(tmp_path, text, message):
    path = written(tmp_path, text)
    began = time.process_time()
    with pytest.raises(UserError, match=message):
        read_yaml(path)
    # seconds, because the machine may be busy; without limits each takes a minute or never ends
    assert time.process_time() - began < 20


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.yaml')
    with pytest.raises(UserError, match='not a regular file'):
        get_args(['--config_file', str(tmp_path / 'pipe.yaml')])


def test_a_folder_in_the_place_of_a_config(tmp_path):
    with pytest.raises(UserError, match='is a folder; name a file in it, such as .*configs.yaml'):
        get_args(['--config_file', str(tmp_path)])


def test_aliases_that_a_library_wrote_are_read(tmp_path):
    """PyYAML writes a repeated list as an anchor and an alias."""
    path = written(tmp_path, 'milestones: &id001\n- 20\n- 50\nother: *id001\n')
    assert read_yaml(path) == {'milestones': [20, 50], 'other': [20, 50]}

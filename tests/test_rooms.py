"""The arrows between the rooms point one way: a room imports from those below it alone."""
import ast
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOMS = {'utils', 'model', 'datasets', 'solver', 'processor', 'run_scripts', 'train', 'test', 'pedestal'}
# What each may import of the rooms, beside itself.
BELOW = {
    'utils': set(),
    'model': {'utils'},
    'datasets': {'utils'},
    'solver': {'utils', 'model'},
    'processor': {'utils', 'model', 'datasets', 'solver'},
}


def imported(path):
    """The full names of the modules that a file imports, wherever in it."""
    with open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are written in full here'
            yield node.module


def files_of(room):
    found = [os.path.join(place, name) for place, _, names in os.walk(os.path.join(ROOT, room)) for name in names if name.endswith('.py')]
    assert found, room
    return sorted(found)


@pytest.mark.parametrize('room', BELOW)
def test_a_room_imports_from_below(room):
    upward = [f'{os.path.relpath(path, ROOT)} imports {name}' for path in files_of(room) for name in imported(path)
              if name.split('.')[0] in ROOMS - BELOW[room] - {room}]
    assert not upward


def test_the_front_door_imports_from_below():
    names = {name.split('.')[0] for name in imported(os.path.join(ROOT, 'pedestal.py'))}
    assert names & ROOMS <= {'processor', *BELOW['processor']}


def test_objectives_import_torch_alone():
    assert {name.split('.')[0] for name in imported(os.path.join(ROOT, 'model', 'objectives.py'))} <= {'torch', 'functools', 'math'}

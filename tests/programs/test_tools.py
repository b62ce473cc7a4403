"""Every tool runs as a file and as a module, from any folder."""
import ast
import os
import subprocess
import sys

import pytest

from run_scripts import ROOT
from tests.support import HANG_TIMEOUT
from utils.options import get_args

TOOLS = sorted(name.removesuffix('.py') for name in os.listdir(os.path.join(ROOT, 'run_scripts'))
               if name.endswith('.py') and name not in ('__init__.py', 'run_scripts.py'))


def program(*words, cwd=ROOT):
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=HANG_TIMEOUT)


def test_every_tool_that_is_told_of_is_there():
    assert {'ablate', 'benchmark', 'galleries', 'kill_and_resume', 'reproduce_tables', 'restoration',
            'retrieve'} <= set(TOOLS)


@pytest.mark.parametrize('tool', TOOLS)
def test_a_tools_first_import_of_ours_makes_the_others_found(tool):
    """run_scripts/run_scripts.py does, where the tool runs as a file; two tools are run so below."""
    with open(os.path.join(ROOT, 'run_scripts', f'{tool}.py'), encoding='utf-8') as file:
        imports = [node for node in ast.parse(file.read()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    ours = [name for name in modules if any(os.path.exists(os.path.join(ROOT, name.split('.')[0] + end))
                                            for end in ('', '.py'))]
    assert ours[0] == 'run_scripts'


@pytest.mark.parametrize('tool', ['retrieve', 'benchmark'])
def test_a_tool_runs_as_a_file_and_as_a_module(tool, tmp_path):
    as_file = program(os.path.join(ROOT, 'run_scripts', f'{tool}.py'), '--help', cwd=tmp_path)
    assert as_file.returncode == 0 and f'usage: {tool}.py' in as_file.stdout, as_file.stderr
    as_module = program('-m', f'run_scripts.{tool}', '--help')
    assert as_module.returncode == 0 and as_module.stdout == as_file.stdout, as_module.stderr


LIGHT_TOOLS = sorted(set(TOOLS) - {'benchmark', 'cost'})     # these two measure PyTorch and import it first


def test_help_and_wrong_flags_do_not_import_pytorch():
    code = '''
import contextlib, importlib, io, sys
from utils.errors import UserError
for tool in sys.argv[1:]:
    for flag in ('--help', '--no_such_flag'):
        with contextlib.suppress(SystemExit, UserError), contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f'run_scripts.{tool}').main([flag])
            raise AssertionError(f'{tool} {flag} did not exit')
        assert 'torch' not in sys.modules, tool
'''
    process = program('-c', code, *LIGHT_TOOLS)
    assert process.returncode == 0, process.stderr


def test_an_error_is_a_sentence():
    output = program('run_scripts/retrieve.py', '--config_fiel', 'x')
    assert output.returncode == 2 and 'did you mean --config_file' in output.stderr and 'Traceback' not in output.stderr


# -- the methods' shell lines ----------------------------------------------------------------------------------------

@pytest.fixture
def words(tmp_path):
    """What a shell recipe would call Python with."""
    stand_in = tmp_path / 'python'
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)

    def call(method, *arguments):
        done = subprocess.run(['bash', os.path.join(ROOT, 'run_scripts', f'{method}.sh'), *arguments], cwd=tmp_path,
                              text=True, env={**os.environ, 'PYTHON': str(stand_in)}, capture_output=True)
        assert done.returncode == 0, done.stderr
        program, *flags = done.stdout.splitlines()
        assert program == 'train.py'
        return flags
    return call


def shell_methods():
    return sorted(name for name in os.listdir(os.path.join(ROOT, 'configs')) if
                  os.path.exists(os.path.join(ROOT, 'run_scripts', f'{name}.sh')))


def test_every_method_of_the_paper_tables_has_a_shell_line():
    assert {'a2te', 'agm', 'irra', 'php', 'sen'} <= set(shell_methods())


@pytest.mark.parametrize('dataset', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
@pytest.mark.parametrize('method', shell_methods())
def test_a_shell_line_trains_as_the_recipe(method, dataset, words):
    args = get_args(words(method, dataset))
    recipe = get_args(['--config_file', os.path.join(ROOT, 'configs', method, f'{dataset.lower()}.yaml')])
    differing = {name for name, value in vars(args).items() if value != getattr(recipe, name)}
    notes = args.config.notes
    assert differing <= {'config_file'} and not any('differs from' in line for line in notes), (differing, notes)
    assert words(method) == words(method, 'CUHK-PEDES')


def test_further_flags_come_last(words):
    assert get_args(words('irra', 'RSTPReid', '--batch_size', '32')).batch_size == 32

"""Every tool runs as a file and as a module, from any folder."""
import importlib
import os
import subprocess
import sys

import pytest

from run_scripts import ROOT
from tests.support import HANG_TIMEOUT
from utils.errors import UserError

TOOLS = sorted(name.removesuffix('.py') for name in os.listdir(os.path.join(ROOT, 'run_scripts'))
               if name.endswith('.py') and not name.startswith('__'))


def program(*words, cwd=ROOT):
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=HANG_TIMEOUT)


def test_every_tool_that_is_told_of_is_there():
    assert {'ablate', 'benchmark', 'galleries', 'kill_and_resume', 'reproduce_tables',
            'retrieve'} <= set(TOOLS)


@pytest.mark.parametrize('tool', TOOLS)
def test_a_tool_runs_as_a_file_from_another_folder(tool, tmp_path):
    process = program(os.path.join(ROOT, 'run_scripts', f'{tool}.py'), '--help', cwd=tmp_path)
    assert process.returncode == 0 and f'usage: {tool}.py' in process.stdout, process.stderr


@pytest.mark.parametrize('tool, names', [
    ('attention', 'i2t one_by_one rerank output_dir'), ('demo', 'i2t one_by_one output_dir'),
    ('dialogue', 'i2t one_by_one rerank'), ('galleries', 'i2t one_by_one distractors rerank output_dir'),
    ('retrieve', 'i2t one_by_one output_dir'),
    ('search', 'i2t one_by_one split distractors root_dir columns num_workers image_cache output_dir'),
    ('export', 'i2t one_by_one split distractors root_dir columns num_workers image_cache rerank device amp '
               'test_batch_size output_dir')])
def test_a_tool_has_no_option_that_it_does_not_read(tool, names):
    module = importlib.import_module(f'run_scripts.{tool}')
    for name in names.split():
        with pytest.raises(UserError) as error:
            module.main(['--config_file', 'run', f'--{name}', 'x'])
        assert str(error.value) == (f'unknown flag --{name}; test.py has it, but {tool}.py does not read it: '
                                    f'remove --{name}')


@pytest.mark.parametrize('tool', ['retrieve', 'benchmark'])
def test_a_tool_runs_as_a_file_and_as_a_module(tool, tmp_path):
    as_file = program(os.path.join(ROOT, 'run_scripts', f'{tool}.py'), '--help', cwd=tmp_path)
    assert as_file.returncode == 0 and f'usage: {tool}.py' in as_file.stdout, as_file.stderr
    as_module = program('-m', f'run_scripts.{tool}', '--help')
    assert as_module.returncode == 0 and as_module.stdout == as_file.stdout, as_module.stderr


def test_help_and_wrong_flags_do_not_import_pytorch():
    code = '''
import contextlib, importlib, io, sys
from utils.errors import UserError
for tool in sys.argv[1:]:
    for flag in ('--help', '--no_such_flag'):
        with contextlib.suppress(SystemExit, UserError), contextlib.redirect_stdout(io.StringIO()):
            module = 'benchmark.__main__' if tool == 'benchmark' else tool
            importlib.import_module(f'run_scripts.{module}').main([flag])
            raise AssertionError(f'{tool} {flag} did not exit')
        assert 'torch' not in sys.modules, tool
'''
    process = program('-c', code, *TOOLS)
    assert process.returncode == 0, process.stderr


def test_an_error_is_a_sentence():
    output = program('run_scripts/retrieve.py', '--config_fiel', 'x')
    assert output.returncode == 2 and 'did you mean --config_file' in output.stderr and 'Traceback' not in output.stderr

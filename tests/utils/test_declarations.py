"""Reading options does not import PyTorch, and gives the same options as after importing it."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from model.head_registry import head_classes, registry
from utils.options import build_parser, get_args

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run_python(code, *words, folder=ROOT):
    completed = subprocess.run([sys.executable, '-c', code, *words], cwd=folder, capture_output=True, text=True,
                               timeout=600, env={**os.environ, 'PYTHONPATH': ROOT})
    assert 'Traceback' not in completed.stderr, completed.stderr
    return completed


# Ends with status 77 if PyTorch or NumPy is imported when the options are read.
READ_OPTIONS = """
import sys, {program} as program
try:
    program.read_options(sys.argv[1:])
except SystemExit:
    pass
except Exception as error:
    print(type(error).__name__, error)
sys.exit(77 if {{'torch', 'numpy', 'PIL', 'matplotlib'}} & set(sys.modules) else 0)
"""


@pytest.mark.parametrize('program, words, printed', [
    ('train', ['--help'], 'everyday options'), ('train', ['--help', 'all'], 'without effect'),
    ('train', ['--help', 'sdm'], '--temperature'),
    ('train', ['--config_file', 'configs/irra.yaml', '--print_config'], 'loss_names'),
    ('train', ['--config_file', 'configs/php.yaml', '--print_config'], 'php_parts'),
    ('train', ['--loss_names', 'tal+tse', '--ccd', '--print_config'], 'ccd: true'),
    ('train', ['--lerning_rate', '1'], 'did you mean --lr?'),
    ('train', ['--dataset_name', 'CUHK'], 'did you mean CUHK-PEDES?'),
    ('train', ['--dataset_name', 'CUHK-PEDES+ICFG'], 'did you mean ICFG-PEDES?'),
    ('train', ['--loss_names', 'sdm+mml'], 'did you mean mlm?'),
    ('train', ['--eval_dataset', 'RSTPRied'], 'did you mean RSTPReid?'),
    ('test', ['--help'], '--moe_report'), ('test', ['--config_flie', 'x'], 'did you mean --config_file?')])
def test_pytorch_is_not_imported_to_read_options(program, words, printed):
    completed = run_python(READ_OPTIONS.format(program=program), *words)
    assert printed in completed.stdout and completed.returncode == 0, completed.stdout[-500:]


PRINT_DECLARATIONS = """
import json, sys
from utils.options import build_parser, get_args
from model.head_registry import head_classes
import datasets.registry
parser = build_parser()
keys = ('option_strings', 'default', 'help', 'choices', 'nargs', 'effect')
actions = {name: [str(vars(action).get(key)) for key in keys] for name, action in parser.actions().items()}
readers = {name: [reader.__name__ for reader in readers] for name, readers in parser.readers.items()}
heads = [[head.__module__, head.__name__, head.names, list(head.needs), list(head.fields)] for head in head_classes()]
print(json.dumps([actions, readers, heads, sorted(datasets.registry.datasets()), 'torch' in sys.modules]))
"""


def test_declarations_equal_the_imported_files():
    declared, imported = (json.loads(run_python(start + PRINT_DECLARATIONS).stdout) for start in ('', 'import torch\n'))
    assert (declared.pop(), imported.pop()) == (False, True)
    assert declared == imported


@pytest.mark.parametrize('recipe', [
    'a2te', 'aptm', 'sen', 'tbps-clip', 'rde'])
def test_a_recipe_means_the_same_before_and_after_importing_pytorch(recipe):
    words = ['--config_file', os.path.join(ROOT, 'configs', f'{recipe}.yaml')]
    code = ('import json, sys, train; args = train.read_options(sys.argv[1:]); '
            'print(json.dumps({name: str(value) for name, value in vars(args).items()}))')
    expected = {name: str(value) for name, value in vars(get_args(words)).items()}
    assert json.loads(run_python(code, *words).stdout) == expected


HEAD = '''
import torch
from model.heads import Head

LARGEST = torch.finfo(torch.float16).max

class Needy(Head):
    """A head whose option needs PyTorch."""
    names = ('needy',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--needy_scale', type=float, default=float(LARGEST), help='scale of needy')
'''


def test_a_declaration_that_needs_pytorch_imports_it(tmp_path):
    (tmp_path / 'needy.py').write_text(HEAD)
    code = f"""
import sys, model.heads, train
model.heads.__path__.append({str(tmp_path)!r})
print(train.read_options(['--loss_names', 'sdm+needy']).needy_scale, 'torch' in sys.modules)
"""
    assert run_python(code).stdout.split() == ['65504.0', 'True']


def test_every_loss_has_a_line_of_help():
    parser = build_parser()
    lines = parser.catalogs['losses for --loss_names, joined by +']
    assert set(registry()) <= set(lines) and all(lines.values())
    assert {name for head in head_classes() for name in head.names} <= set(parser.topics)


@pytest.mark.skipif(importlib.util.find_spec('argcomplete') is None, reason='argcomplete is not installed')
@pytest.mark.parametrize('words, completions', [
    ('train.py --loss_n', {'--loss_names'}), ('train.py --loss_names sdm+ml', {'sdm+mlm'}),
    ('train.py --dataset_name RS', {'RSTPReid'}), ('train.py --optim', {'--optimizer'}),
    ('train.py --config_file ./configs/irra.', {'./configs/irra.yaml'}),
    ('test.py --config_file RSTPReid/s', {'RSTPReid/sen'}), ('train.py --init_from RSTPReid/', {'RSTPReid/sen'})])
def test_the_shell_completes_options(words, completions, tmp_path):
    line, output = words, tmp_path / 'output'
    (tmp_path / 'logs' / 'RSTPReid' / '20260101_000000_sen').mkdir(parents=True)
    (tmp_path / 'logs' / 'RSTPReid' / '20260101_000000_sen' / 'configs.yaml').write_text('')
    (tmp_path / 'configs').symlink_to(os.path.join(ROOT, 'configs'))
    shell = {'_ARGCOMPLETE': '1', '_ARGCOMPLETE_IFS': '|', '_ARGCOMPLETE_STDOUT_FILENAME': str(output),
             'COMP_LINE': line, 'COMP_POINT': str(len(line))}
    completed = subprocess.run([sys.executable, os.path.join(ROOT, words.split()[0])], capture_output=True, text=True,
                               timeout=600, cwd=tmp_path, env={**os.environ, **shell})
    assert completed.returncode == 0, completed.stderr
    assert {word.strip() for word in output.read_text().split('|')} == completions

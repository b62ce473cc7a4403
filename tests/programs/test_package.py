"""The installed package: its wheel, the command ``pedestal``, and its names next to those of other packages."""
import email
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import yaml

import pedestal
from datasets.synthpedes import generate
from run_scripts import __main__ as command
from tests.support import HANG_TIMEOUT, ROOT
from utils.errors import UserError
from utils.options import as_dict, get_args
from utils.recipes import CONFIGS, read_options
from utils.safe_yaml import read_yaml
from utils.version import __version__

FOLDERS = 'package', 'datasets', 'model', 'processor', 'run_scripts', 'solver', 'utils', 'configs'
FILES = ('setup.py', 'pyproject.toml', 'train.py', 'test.py', 'pedestal.py', 'README.md', 'LICENSE', 'requirements.txt',
         'requirements-docs.txt', 'requirements-test.txt', 'data/bpe_simple_vocab_16e6.txt.gz')
MODULES = 'train.py', 'test.py', 'pedestal.py'
# Modules of other packages that have the names of Pedestal's modules in the repository.
OTHERS = "NAME = 'of another package'\n"


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built of a copy of the repository, because setuptools writes into the folder."""
    if not all(map(importlib.util.find_spec, ('pip', 'setuptools'))):
        pytest.skip('pip or setuptools is not installed')
    copy = tmp_path_factory.mktemp('repository')
    for folder in FOLDERS:
        shutil.copytree(os.path.join(ROOT, folder), copy / folder, ignore=shutil.ignore_patterns('__pycache__'))
    (copy / 'data').mkdir()
    for file in FILES:
        shutil.copy(os.path.join(ROOT, file), copy / file)
    (copy / 'data' / 'people.yaml').write_text('own data stays out of the wheel: 1\n')
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-index',
        '--wheel-dir', copy / 'wheels', copy)
    path, = (copy / 'wheels').glob('*.whl')
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A folder for PYTHONPATH with the installed wheel, and with other packages called as Pedestal's modules."""
    folder = tmp_path_factory.mktemp('installed')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in ('datasets', 'utils', 'model', 'train'):
        (folder / f'{name}.py').write_text(OTHERS)
    return folder


def run(*words, **settings):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=HANG_TIMEOUT, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_installed(installed, folder, *words):
    """Run Python with the installed package in another folder than the repository."""
    return run(sys.executable, *words, cwd=folder, env={**os.environ, 'PYTHONPATH': str(installed)})


def test_the_wheel_holds_one_package_with_all_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points, = (archive.read(name).decode() for name in names if name.endswith('entry_points.txt'))
    assert {name.split('/')[0] for name in names} == {'pedestal', f'pedestal-{__version__}.dist-info'}
    assert 'pedestal = pedestal.__main__:main' in entry_points
    expected = {f'pedestal/{os.path.relpath(os.path.join(folder, file), ROOT)}'
                for top in FOLDERS for folder, _, files in os.walk(os.path.join(ROOT, top)) for file in files
                if file.endswith(('.py', '.yaml', '.html'))}
    expected = {name.replace('pedestal/package/', '') for name in expected}
    expected |= {f'pedestal/{name}' for name in FILES if name in MODULES or name.startswith('data/')}
    assert {name for name in names if name.startswith('pedestal/')} == expected


TRAIN_TEST_SEARCH = """
import glob, sys
import datasets, utils
data = sys.argv[1]
from pedestal.__main__ import main

def start(*words):
    try:
        main(words)
    except SystemExit as error:
        assert not error.code, (words, error.code)

start('train', '--config_file', 'synthpedes/quickstart', '--dataset_name', 'synthpedes', '--root_dir', data,
      '--img_size', '64', '32', '--batch_size', '8', '--num_epoch', '1', '--num_workers', '2', '--device', 'cpu')
config, = glob.glob('logs/synthpedes/*/configs.yaml')
start('test', '--config_file', config, '--num_workers', '0')
start('search', '--config_file', config, '--images', data + '/synthpedes/imgs/test', '--caption', 'a red coat',
      '--out', 'found.json')
import multiprocessing
import pedestal
from pedestal.utils.errors import spelling_distance
with multiprocessing.get_context('spawn').Pool(1) as pool:
    assert pool.apply(spelling_distance, ('mml', 'mlm')) == 1
assert sorted(pedestal.__all__) == sorted(pedestal.pedestal.__all__)
assert pedestal.load(config).device.type == 'cpu' and issubclass(pedestal.UserError, Exception)
assert datasets.NAME == utils.NAME == 'of another package' and 'model' not in sys.modules, 'a module was hidden'
print(pedestal.__version__, pedestal.People.__module__, sys.modules['pedestal.utils.errors'].__name__)
"""


def test_train_test_and_search_run_in_another_folder(installed, tmp_path):
    generate(str(tmp_path / 'data'), 14, images_per_id=2, size=(64, 32), val_ids=0, test_ids=4, workers=1)
    before = sorted(path for path in installed.rglob('*') if '__pycache__' not in path.parts)
    output = run_installed(installed, tmp_path, '-c', TRAIN_TEST_SEARCH, tmp_path / 'data')
    assert output.splitlines()[-1] == f'{__version__} pedestal.pedestal pedestal.utils.errors'
    assert (tmp_path / 'found.json').exists() and 'each embedding depends on its own sample alone' in output
    assert sorted(path for path in installed.rglob('*') if '__pycache__' not in path.parts) == before


# -- the command -----------------------------------------------------------------------------------------------------

def start(capsys, *words):
    """Run the command in this process: ``(status, output, errors)``."""
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    return stopped.value.code or 0, *capsys.readouterr()


@pytest.fixture(autouse=True)
def program_state(monkeypatch):
    """The command changes the process's words and its handling of Ctrl-C."""
    monkeypatch.setattr(sys, 'argv', ['pedestal'])
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_the_help_has_a_line_for_every_program(capsys):
    tools = {name.removesuffix('.py') for name in os.listdir(os.path.join(ROOT, 'run_scripts'))
             if name.endswith('.py') and not name.startswith('__')}
    status, page, _ = start(capsys, '--help')
    assert status == 0 and (0, page, '') == start(capsys) == start(capsys, 'help')
    lines = dict(line.split(maxsplit=1) for line in page.splitlines()[3:])
    assert set(lines) == {'train', 'test', 'check', 'synthpedes', *tools}
    assert lines['search'] == 'Find people in a folder of photos by a description'
    assert all(text[0].isupper() and '``' not in text for text in lines.values())
    assert max(map(len, page.splitlines())) <= 120 and len(page.splitlines()) <= 40


def test_the_version_is_that_of_the_library(capsys):
    assert start(capsys, '--version') == (0, f'pedestal {__version__}\n', '')
    assert re.fullmatch(r'\d+\.\d+\.\d+', pedestal.__version__) and pedestal.__version__ == __version__


@pytest.mark.parametrize('words, sentence', [
    (['tran'], "unknown program 'tran'; did you mean train?; python -m run_scripts --help lists all"),
    (['--trian'], 'unknown flag --trian: the name of a program comes first; python -m run_scripts --help lists all'),
    (['train', '--lerning_rate', '1'], 'unknown flag --lerning_rate; did you mean --lr?'),
    (['kill-and-resume', '--kils', '1'], 'unknown flag --kils; did you mean --kills?')])
def test_a_wrong_word_is_one_sentence(capsys, words, sentence):
    status, output, errors = start(capsys, *words)
    assert (status, output) == (2, '')
    program = f' {words[0]}' if words[0] in ('train', 'kill-and-resume') else ''
    assert errors == f'python -m run_scripts{program}: error: {sentence}\n'


def test_a_program_gets_its_words(capsys):
    status, output, _ = start(capsys, 'train', '--config_file', 'irra', '--print_config')
    assert status == 0 and 'loss_names: sdm+mlm+id' in output
    assert start(capsys, 'help', 'reproduce-tables')[1].startswith('usage: reproduce_tables.py ')


def test_the_installed_command_names_itself_and_imports_no_pytorch(installed, tmp_path):
    code = ('import sys\nfrom pedestal.__main__ import main\n'
            'try:\n    main(sys.argv[1:])\nexcept SystemExit as error:\n    print(error.code, "torch" in sys.modules)')
    words = ['train', '--config_file', 'configs/ira.yaml']
    assert run_installed(installed, tmp_path, '-c', code, *words).split() == ['2', 'False']
    done = subprocess.run([sys.executable, installed / 'pedestal' / '__main__.py', *words], cwd=tmp_path,
                          capture_output=True, text=True, timeout=HANG_TIMEOUT)
    assert done.returncode == 2
    assert done.stderr == 'pedestal train: error: no config file configs/ira.yaml; did you mean irra?\n'
    recipe = run_installed(installed, tmp_path, '-m', 'pedestal.train', '--config_file', 'irra', '--print_config')
    assert 'loss_names: sdm+mlm+id' in recipe
    usage = run_installed(installed, tmp_path, '-m', 'pedestal', 'help', 'search')
    assert usage.startswith('usage: pedestal search ') and '\n    pedestal search --config_file' in usage


def test_the_installed_doctor_advises_the_installed_command(installed, tmp_path):
    code = ('from pedestal.run_scripts.diagnosis.report import format_check\n'
            'from pedestal.run_scripts.diagnosis.check import Check\n'
            'print(format_check(Check("dataset", "warning", "none", "make one: python -m datasets.synthpedes")))')
    assert 'make one: pedestal synthpedes' in run_installed(installed, tmp_path, '-c', code)


@pytest.mark.parametrize('line, completions', [
    ('pedestal tr', {'train'}), ('pedestal train --loss_names sdm+ml', {'sdm+mlm'}),
    ('pedestal kill_and_resume --ki', {'--kills'})])
def test_the_shell_completes_programs_and_options(line, completions, tmp_path):
    pytest.importorskip('argcomplete', reason='argcomplete is not installed')
    output = tmp_path / 'output'
    shell = {'_ARGCOMPLETE': '1', '_ARGCOMPLETE_IFS': '|', '_ARGCOMPLETE_STDOUT_FILENAME': str(output),
             'COMP_LINE': line, 'COMP_POINT': str(len(line))}
    run(sys.executable, os.path.join(ROOT, 'package', 'pedestal', '__main__.py'), env={**os.environ, **shell})
    assert {word.strip() for word in output.read_text().split('|')} == completions


def test_modules_imported_by_a_string_are_qualified():
    """Names for importlib are not translated: qualify() completes those of Pedestal's modules."""
    places = []
    for path in (path for folder in FOLDERS for path in pathlib.Path(ROOT, folder).rglob('*.py')):
        calls = re.findall(r'import_module\((?!qualify\()(.*)\)', path.read_text(encoding='utf-8'))
        places += [f'{path}: {call}' for call in calls if not re.match(IMPORTED_AS_IT_IS, call)]
    assert not places


# Names that are complete: of other packages, derived from __name__, and those of OPTION_MODULES.
IMPORTED_AS_IT_IS = r"'torch'|'pedestal\.pedestal'|f'\{__name__\}|name\)?$"


# -- recipes ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['irra', 'irra.yaml', 'configs/irra.yaml', 'synthpedes/quickstart'])
def test_a_recipe_is_found_by_its_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = os.path.join(CONFIGS, f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml")
    assert read_options(name) == read_options(path) == read_yaml(path)
    assert as_dict(get_args(['--config_file', name])) == as_dict(get_args(['--config_file', path]))


def test_a_file_wins_over_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'irra').write_text('batch_size: 7')
    assert get_args(['--config_file', 'irra']).batch_size == 7
    (tmp_path / 'sen.yaml').mkdir()     # a folder is no recipe
    assert get_args(['--config_file', 'sen.yaml']).loss_names == 'sdm+mae+id+tri'


@pytest.mark.parametrize('name, error', [
    ('ira', 'no config file ira; did you mean irra?'), ('irra.yml', 'no config file irra.yml; did you mean irra?'),
    ('quickstart', 'no config file quickstart; did you mean synthpedes/quickstart?'),
    ('synthpedes/quikstart', 'no config file synthpedes/quikstart; did you mean synthpedes/quickstart?'),
    ('logs/irra/configs.yaml', 'no config file logs/irra/configs.yaml'), ('clip/tiny', 'no config file clip/tiny')])
def test_an_unknown_recipe_is_one_sentence(name, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        get_args(['--config_file', name])
    assert str(refused.value) == error


# -- the files around the package ------------------------------------------------------------------------------------

def test_the_requirements_are_those_of_the_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f'pedestal-{__version__}.dist-info/METADATA'))
    required = [line.split('; extra == ')[0] for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    assert required == requirements('requirements.txt')
    for extra in ('docs', 'test'):
        lines = [line for line in metadata.get_all('Requires-Dist') if line.endswith(f'extra == "{extra}"')]
        names = {re.match(r'[\w-]+', line)[0] for line in lines}
        assert names == {re.match(r'[\w-]+', line)[0] for line in requirements(f'requirements-{extra}.txt')}
    assert metadata['Requires-Python'] == '<3.14,>=3.10' and metadata['License-Expression'] == 'MIT'
    names = re.findall(r'^\| (`.*?) \|', read('docs/install.md'), re.MULTILINE)
    assert set(re.findall(r'`(\w+)`', ''.join(names))) == set(metadata.get_all('Provides-Extra'))


def requirements(name):
    """The lines of a requirements file and of those that it includes, without the base's."""
    lines = [line for line in read(name).splitlines() if line and not line.startswith('#')]
    included = [line[3:] for line in lines if line.startswith('-r ') and line != '-r requirements.txt']
    return [line for file in included for line in requirements(file)] + [
        line for line in lines if not line.startswith('-r ')]


def read(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


def test_the_container_and_the_environment_name_what_exists():
    instructions = [line.split(maxsplit=1) for line in re.sub(r'\\\n', ' ', read('Dockerfile')).splitlines()
                    if line and not line.startswith('#')]
    assert [name for name, _ in instructions if name in ('ARG', 'FROM', 'USER', 'ENTRYPOINT')] == [
        'ARG', 'FROM', 'ARG', 'USER', 'ENTRYPOINT']
    assert dict(instructions)['FROM'] == '${BASE}' and dict(instructions)['ENTRYPOINT'] == '["pedestal"]'
    ignored = [line.removeprefix('**/').rstrip('*') for line in read('.dockerignore').splitlines()]
    assert not {'README.md', 'LICENSE', 'pyproject.toml', 'setup.py', 'package', 'configs'} & set(ignored)
    assert os.path.exists(os.path.join(ROOT, ignored[ignored.index('data/') + 1].removeprefix('!')))
    environment = yaml.safe_load(read('environment.yml'))
    python = next(line for line in environment['dependencies'] if str(line).startswith('python='))
    assert f'Python :: {python.removeprefix("python=")}"' in read('pyproject.toml')
    assert {'pip': ['-e .']} in environment['dependencies']


def test_the_changelog_has_the_version():
    sections = re.findall(r'^## \[(.*?)\]( - \d{4}-\d\d-\d\d)?$', read('CHANGELOG.md'), re.MULTILINE)
    assert sections[0] == ('Unreleased', '') and sections[1][0] == __version__ and sections[1][1]

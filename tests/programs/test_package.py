"""The installed package: its wheel, the command ``pedestal``, and its names next to those of other packages."""
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from datasets.synthpedes import generate
from tests.support import HANG_TIMEOUT, ROOT
from utils.version import __version__

# Processes of xdist build the wheel once each: one process runs these tests if it distributes groups.
pytestmark = pytest.mark.xdist_group('package')
FOLDERS = 'package', 'datasets', 'model', 'processor', 'run_scripts', 'solver', 'utils', 'configs'
FILES = ('setup.py', 'pyproject.toml', 'train.py', 'test.py', 'pedestal.py', 'README.md', 'LICENSE', 'requirements.txt',
         'requirements-docs.txt', 'requirements-test.txt', 'data/bpe_simple_vocab_16e6.txt.gz')
MODULES = 'train.py', 'test.py', 'pedestal.py'
# Modules of other packages that have the names of Pedestal's modules in the repository.
OTHERS = "NAME = 'of another package'\n"


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built of a copy of the repository, because setuptools writes into the folder."""
    pytest.importorskip('setuptools', reason='setuptools is not installed')
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
import pedestal
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

"""The shell scripts that prepare Python environments: run_scripts/setup_python.sh and run_scripts/test_versions.sh."""
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.support import HANG_TIMEOUT, ROOT

VERSION = '%d.%d' % sys.version_info[:2]
ensurepip = importlib.util.find_spec('ensurepip')
needs_pip = pytest.mark.skipif(not ensurepip or not all(map(importlib.util.find_spec, ('pip', 'venv'))),
                               reason='pip or venv is not installed')


def write_program(path, text):
    path.write_text(f'#!/usr/bin/env bash\n{text}\n')
    path.chmod(0o755)
    return str(path)


# -- setup_python.sh -------------------------------------------------------------------------------------------------

@pytest.fixture
def repository(tmp_path):
    """A repository whose one requirement is a package in a folder beside it."""
    root = tmp_path / 'repository'
    (root / 'run_scripts').mkdir(parents=True)
    shutil.copy(os.path.join(ROOT, 'run_scripts', 'setup_python.sh'), root / 'run_scripts')
    (root / 'requirements.txt').write_text('pedestal-probe>=1.0\n')
    with zipfile.ZipFile(tmp_path / 'pedestal_probe-1.0-py3-none-any.whl', 'w') as wheel:
        folder = 'pedestal_probe-1.0.dist-info'
        wheel.writestr('pedestal_probe.py', 'answer = 42\n')
        wheel.writestr(f'{folder}/METADATA', 'Metadata-Version: 2.1\nName: pedestal-probe\nVersion: 1.0\n')
        wheel.writestr(f'{folder}/WHEEL',
                       'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr(f'{folder}/RECORD', ''.join(f'{name},,\n' for name in [*wheel.namelist(), f'{folder}/RECORD']))
    write_program(root / 'run_scripts' / 'probe.sh', '. run_scripts/setup_python.sh requirements.txt\n'
                  '"$PYTHON" -c "import pedestal_probe, sys; print(pedestal_probe.answer, sys.executable)"')
    return root


def run_offline(*command, **variables):
    """Run a command without the network and without the machine's settings of pip."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith('PIP_')}
    environment.update(PIP_NO_INDEX='1', PIP_CONFIG_FILE=os.devnull, **variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_TIMEOUT)


def probe(repository, python=sys.executable):
    return run_offline('bash', '-c', f'cd "{repository}" && exec bash run_scripts/probe.sh', PYTHON=python,
                       PIP_FIND_LINKS=str(repository.parent))


def made_without_pip(root):
    """As if the making of the environment had been interrupted before pip was there."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', root / '.venv'], check=True)


def made_of_folders_only(root):
    (root / '.venv' / 'bin').mkdir(parents=True)


def made_with_pip(root):
    """Make an environment with the pip that Python brings. venv would also compile all of pip, which takes 5 s."""
    wheels = list(pathlib.Path(ensurepip.origin).parent.glob('_bundled/pip-*.whl'))
    if not wheels:      # some distributions keep pip elsewhere
        subprocess.run([sys.executable, '-m', 'venv', root / '.venv'], check=True)
        return
    made_without_pip(root)
    packages, = (root / '.venv' / 'lib').glob('python3*/site-packages')
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(packages)


def half_unpacked(root):
    """As if pip had been interrupted while it unpacked the package."""
    made_with_pip(root)
    packages, = (root / '.venv' / 'lib').glob('python3*/site-packages')
    (packages / 'pedestal_probe.py').write_text('answer =')
    (packages / 'pedestal_probe-1.0.dist-info').mkdir()


@needs_pip
@pytest.mark.parametrize('interrupt', [made_of_folders_only, made_without_pip, half_unpacked])
def test_a_half_made_environment_is_completed(repository, interrupt):
    interrupt(repository)
    done = probe(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f'42 {repository}/.venv/bin/python'
    again = probe(repository)
    assert again.returncode == 0 and again.stdout == f'42 {repository}/.venv/bin/python\n', 'nothing is left to install'


def broken_link(root):
    made_without_pip(root)
    for link in (root / '.venv' / 'bin').glob('python*'):
        link.unlink()
        link.symlink_to('/nowhere/python3')


def of_an_old_python(root):
    made_without_pip(root)
    (root / '.venv' / 'bin' / 'python').unlink()
    write_program(root / '.venv' / 'bin' / 'python', 'echo 3.9')


@pytest.mark.parametrize('spoil, sentence', [
    (broken_link, '.venv/bin/python does not run: remove the folder {root}/.venv and start again\n'),
    (of_an_old_python, '.venv/bin/python is Python 3.9, and 3.10 or later is needed: '
                       'remove the folder {root}/.venv and start again\n')])
def test_an_environment_that_cannot_be_used_is_one_sentence(repository, spoil, sentence):
    spoil(repository)
    done = probe(repository)
    assert done.returncode == 2 and done.stderr == sentence.format(root=repository) and done.stdout == ''
    assert (repository / '.venv' / 'pyvenv.cfg').exists()       # whose it is has to remove it


@pytest.mark.parametrize('program, sentence', [
    ('exit 127', '{python} does not run: name one: PYTHON=python3.11 bash run_scripts/probe.sh\n'),
    ('[ "$1" = -c ] && echo 3.8',
     '{python} is Python 3.8, and 3.10 or later is needed: name one: PYTHON=python3.11 bash run_scripts/probe.sh\n'),
    ('[ "$1 $2" = "-m venv" ] && echo "No module named ensurepip" && exit 1; echo 3.12; [ "$1" = -c ]',
     'No module named ensurepip\n'
     '{python} cannot make a virtual environment in {root}/.venv (see above): install its venv and ensurepip\n'
     '(Debian and Ubuntu: apt install python3-venv), or name another Python: '
     'PYTHON=python3.11 bash run_scripts/probe.sh\n')])
def test_a_python_that_cannot_make_an_environment_is_one_sentence(repository, tmp_path, program, sentence):
    python = write_program(tmp_path / 'python3', program)
    done = probe(repository, python)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == sentence.format(python=python, root=repository)


@needs_pip
def test_pip_that_fails_is_said_and_the_next_run_continues(repository, tmp_path):
    made_with_pip(repository)
    wheel, = tmp_path.glob('*.whl')
    wheel.rename(tmp_path / 'away')
    done = probe(repository)
    assert done.returncode == 2 and done.stderr.endswith('pip failed (see above); solve that and start again: '
                                                         'the installation continues in .venv\n')
    (tmp_path / 'away').rename(wheel)
    assert probe(repository).returncode == 0


# -- test_versions.sh ------------------------------------------------------------------------------------------------

def run_versions(folder, *arguments):
    """``test_versions.sh`` with the Pythons of ``folder/bin``, without the network."""
    return run_offline('bash', os.path.join(ROOT, 'run_scripts', 'test_versions.sh'), *arguments,
                       PEDESTAL_VERSIONS_DIR=str(folder / 'versions'), PATH=f"{folder}/bin:{os.environ['PATH']}")


@pytest.fixture
def python(tmp_path):
    """A ``python3.x`` whose new environments have the packages of this Python, and count in ``made``.

    Only the first has pip, which takes 5 seconds of a core to find that nothing is left to install.
    """
    packages = sysconfig.get_paths()['purelib']
    (tmp_path / 'bin').mkdir()
    write_program(tmp_path / 'bin' / f'python{VERSION}', f'''
if [ "$1 $2" != "-m venv" ]; then exec "{sys.executable}" "$@"; fi
echo "$3" >>"{tmp_path}/made"
"{sys.executable}" -m venv --without-pip "$3" &&
    echo "{packages}" >"$(echo "$3"/lib/python3*/site-packages)/packages.pth" &&
    if [ "$(wc -l <"{tmp_path}/made")" -gt 1 ]; then
        echo "assert __import__('sys').argv[1] == 'install'" >"$(echo "$3"/lib/python3*/site-packages)/pip.py"
    fi''')


@pytest.fixture
def row():
    """This Python and its torch, if all that the tests need is installed."""
    for name in ('requirements.txt', 'requirements-docs.txt', 'requirements-test.txt'):
        with open(os.path.join(ROOT, name)) as file:
            for package in re.findall(r'^\w[\w-]*', file.read(), flags=re.MULTILINE):
                try:
                    importlib.metadata.version(package)
                except importlib.metadata.PackageNotFoundError:
                    pytest.skip(f'{package} is not installed: pip install -r requirements-test.txt')
    return f"{'.'.join(importlib.metadata.version('torch').split('.')[:2])}@{VERSION}"


@needs_pip
def test_the_suite_in_several_versions_is_one_table(tmp_path, python, row):
    (tmp_path / 'test_probe.py').write_text('import pytest\n\n\ndef test_good():\n    pass\n\n\n'
                                            'def test_bad():\n    assert 0\n\n\n'
                                            'def test_skipped():\n    pytest.skip("no reason")\n')
    arguments = '9.9@3.99', row, str(tmp_path / 'test_probe.py'), '-p', 'no:cacheprovider'
    done = run_versions(tmp_path, *arguments)
    torch, torchvision = map(importlib.metadata.version, ('torch', 'torchvision'))
    python_version = '%d.%d.%d' % sys.version_info[:3]
    head, _, missing, line = done.stdout.splitlines()
    assert head == '| Python | torch | torchvision | passed | failed | skipped | time |'
    assert missing == '| 3.99 | 9.9 | | | | | not run: no python3.99 with venv on the PATH |'
    expected = f'| {python_version} | {torch} | {torchvision} | 1 | 1 | 1 | 0 min 0'
    assert line.startswith(expected), done.stdout + done.stderr
    assert done.returncode == 1 and 'assert 0' in (tmp_path / 'versions' / f'{row}.log').read_text()

    done = run_versions(tmp_path, *arguments, '-k', 'good')
    assert done.returncode == 0 and ' | 1 | 0 | 0 | ' in done.stdout, done.stdout + done.stderr
    assert len((tmp_path / 'made').read_text().splitlines()) == 1, 'a complete environment is used again'
    (tmp_path / 'versions' / row / 'complete').unlink()
    done = run_versions(tmp_path, '--only-install', *arguments)
    assert done.returncode == 0 and f'| {VERSION} | {row.split("@")[0]} | | | | | installed |' in done.stdout
    assert len((tmp_path / 'made').read_text().splitlines()) == 2, 'an incomplete one is made again'
    (tmp_path / 'versions' / row / 'complete').write_text('other requirements')
    done = run_versions(tmp_path, '--only-install', *arguments)
    assert done.returncode == 0 and 'installing' in done.stderr
    assert len((tmp_path / 'made').read_text().splitlines()) == 2, 'one with other requirements is added to'
    run_versions(tmp_path, '--clean', '--only-install', *arguments)
    assert len((tmp_path / 'made').read_text().splitlines()) == 3


def test_no_version_that_could_be_tested_is_a_failure(tmp_path):
    done = run_versions(tmp_path, '9.9@3.99')
    assert done.returncode == 1 and 'not run' in done.stdout

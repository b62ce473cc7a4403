"""A dataset is one file in ``datasets/``, which is found automatically."""
import os
import subprocess
import sys
import textwrap

import pytest

from datasets.registry import dataset_class, datasets, describe_names
from tests.support import HANG_TIMEOUT
from utils.options import build_parser

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_what_there_is():
    assert set(datasets()) >= {'CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid', 'synthpedes'}
    for name, cls in datasets().items():   # each names its annotation, or overrides locate
        assert name == cls.name and (cls.annotations or 'locate' in vars(cls))
    assert dataset_class('RSTPReid').image_key == 'img_path'
    assert all(name in describe_names() for name in datasets())


def test_the_help_of_the_programs_names_them():
    text = ' '.join(build_parser().format_help().split())
    assert f'--dataset_name NAME {describe_names()} (default: CUHK-PEDES)' in text


NEW = '''
    from datasets.bases import BaseDataset
    from utils.iotools import read_json

    class MyPeople(BaseDataset):
        """Its annotation has a form of its own."""
        name = 'MyPeople'
        annotations = ('my_people.json',)
        published = {'train': (1, 1, 1), 'val': (0, 0, 0), 'test': (1, 1, 1)}

        @classmethod
        def read(cls, path):
            return [{'id': int(pid), 'split': split, 'captions': [text], 'file_path': file}
                    for split, people in read_json(path).items() for pid, (file, text) in people.items()]
'''


@pytest.fixture
def project(tmp_path):
    """A copy of the packages that datasets need, to which a test adds files."""
    import shutil
    for package in ('datasets', 'utils', 'data'):
        shutil.copytree(os.path.join(ROOT, package), tmp_path / package, ignore=lambda folder, names: [
            name for name in names if name == '__pycache__' or os.path.basename(folder) == 'data'
            and not name.endswith('.gz')])
    return tmp_path


def run(project, code):
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=project, capture_output=True, text=True,
                          timeout=HANG_TIMEOUT)


def test_a_new_dataset_is_one_file(project):
    """Training, datasets.check and the help know it without another change."""
    (project / 'datasets' / 'my_people.py').write_text(textwrap.dedent(NEW))
    (project / 'datasets' / 'broken.py').write_text('import nothing_of_this_name')
    (project / 'MyPeople' / 'imgs').mkdir(parents=True)
    content = '{"train": {"4": ["a.jpg", "a man"]}, "test": {"5": ["b.jpg", "a woman"]}}'
    (project / 'MyPeople' / 'my_people.json').write_text(content)
    done = run(project, '''
        import sys
        from PIL import Image
        for name, colour in (('a', 'red'), ('b', 'blue')):
            Image.new('RGB', (8, 16), colour).save(f'MyPeople/imgs/{name}.jpg')
        from datasets.build import build_dataset
        dataset = build_dataset('MyPeople', '.')
        assert dataset.train == [(0, 0, './MyPeople/imgs/a.jpg', 'a man')] and dataset.test['captions'] == ['a woman']
        from datasets.check import main
        assert main(['--dataset_name', 'MyPeople', '--root_dir', '.', '--workers', '1']) == 0
        try:
            main(['--help'])
        except SystemExit:
            pass
        assert 'model' not in sys.modules
    ''')
    assert done.returncode == 0, done.stderr
    assert 'MyPeople' in done.stdout.split('--dataset_name')[-1] and 'MyPeople: complete' in done.stdout
    assert done.stderr.count('datasets.broken cannot be imported') == 1

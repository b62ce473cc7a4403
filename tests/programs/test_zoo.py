"""run_scripts/zoo.py: the list of published checkpoints, and whether a run gives the published figures."""
import os
import re
import shutil

import pytest

from run_scripts import ROOT, published_results, zoo
from utils.errors import UserError
from utils.recipes import recipe_names
from utils.tables import METRICS
from utils.weight_files import compute_sha256


@pytest.fixture
def run(trained, tmp_path):
    """The configs.yaml of a run, and its measured metrics on the test split."""
    folder = tmp_path / 'run'
    shutil.copytree(os.path.dirname(trained), folder)
    return str(folder)


@pytest.fixture
def published(monkeypatch):
    """Give the run a published row with some figures, and the dataset no published counts."""
    def give(values, checksum=None):
        row = {'method': 'Small', 'key': 'small', 'backbone': 'clip.pt', 'loss_names': 'sdm', 'values': values}
        entry = {'method': 'Small', 'weights': 'published', 'source': None, 'file': 'best.pth', 'recipe': 'irra.yaml',
                 'files': {'CUHK-PEDES': {'bytes': 1, 'sha256': checksum}}}
        monkeypatch.setattr(zoo, 'published_row', lambda args: row)
        monkeypatch.setattr(zoo, 'read_zoo', lambda: [entry])
        monkeypatch.setattr('processor.results.published_split_note', lambda *args: '')
    return give


def test_every_method_with_a_recipe_is_in_the_zoo(capsys):
    entries = zoo.read_zoo()
    recipes = {entry['recipe'].removesuffix('.yaml') for entry in entries}
    assert recipes <= set(recipe_names())
    with open(os.path.join(ROOT, 'README.md')) as file:
        table = re.findall(r'^\| [^|]+ \| `([\w-]+)\.yaml`', file.read(), flags=re.MULTILINE)
    assert set(table) <= recipes
    for entry in entries:
        assert entry['weights'] in ('published', 'none', None)
        for dataset, file in entry['files'].items():
            assert os.path.exists(os.path.join(published_results.PUBLISHED, f'{dataset.lower()}.yaml'))
            assert not file or re.fullmatch('[0-9a-f]{64}', file['sha256'])
    zoo.main(['list', '--dataset_name', 'RSTPReid'])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120 and 'CUHK' not in printed
    assert '61.60' in next(line for line in printed.splitlines() if line.startswith('| SEN '))


def test_a_run_that_matches_and_one_that_differs(run, published, capsys):
    published([0.0] * 5)
    assert zoo.main(['verify', run, '--num_workers', '0']) == 1
    printed = capsys.readouterr().out
    checksum = compute_sha256(os.path.join(run, 'best.pth'))
    assert 'method: Small; trained on CUHK-PEDES' in printed
    assert f'{checksum}: the zoo has no checksum of this file yet' in printed
    assert printed.splitlines()[-1].startswith('differs: R1, R5, R10, mAP, mINP by more than 0.05 points')
    rows = {cells[1].strip(): cells for cells in (line.split('|') for line in printed.splitlines()) if len(cells) == 7}
    measured = [float(rows[name][2]) for name in METRICS]
    published([round(value, 2) for value in measured[:4]] + [None], checksum)
    assert zoo.main(['verify', run]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == 'matches: every published figure within 0.05 points'
    assert f'{checksum}: the published file' in printed
    published(measured, 64 * '0')
    assert zoo.main(['verify', run]) == 0
    assert 'another file than the published one' in capsys.readouterr().out


def test_a_run_whose_figures_cannot_be_compared(run, tmp_path, capsys):
    assert zoo.main(['verify', run, '--num_workers', '0']) == 1
    printed = capsys.readouterr().out
    assert 'method: unknown (no row in configs/published/cuhk-pedes.yaml' in printed
    assert printed.splitlines()[-1].startswith('unknown: no row in configs/published/cuhk-pedes.yaml')
    assert zoo.main(['verify', run, '--root_dir', str(tmp_path), '--dataset_name', 'RSTPReid']) == 1
    assert 'unknown: the run cannot be tested here: no dataset folder' in capsys.readouterr().out


@pytest.mark.parametrize('words, sentence', [
    (['verify'], 'verify needs a run'), (['verify', '--root_dir', 'x'], 'verify needs a run'),
    (['verfy', 'run'], 'did you mean verify'), (['verify', 'nowhere'], 'no run of this name below logs'),
    (['list', '--dataset_name', 'RSTP'], 'did you mean RSTPReid')])
def test_what_is_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        zoo.main(words)

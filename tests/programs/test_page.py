"""run_scripts/page.py: what is on the page, and, where Chromium is installed, that a browser shows and filters it."""
import base64
import html
import json
import os
import re
import shutil
import subprocess
from xml.dom import minidom

import numpy as np
import pytest
import torch

import pedestal
from processor.evaluation import embed
from processor.provenance import collect_provenance
from processor.results import RERANKED, further_datasets, read_evaluations
from run_scripts import page
from tests.support import HANG_TIMEOUT
from utils.errors import UserError
from utils.ranking import rank_embeddings
from utils.tables import METRICS

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed: apt-get install chromium')


def data_of(path):
    with open(path, encoding='utf-8') as file:
        return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', file.read(),
                                    flags=re.DOTALL)[1])


def shown(path, words=''):
    """The page's DOM after its script has run."""
    results = subprocess.run([CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=20000',
                            '--dump-dom', f'file://{path}#{words}'], capture_output=True, text=True,
                           timeout=HANG_TIMEOUT)
    assert results.returncode == 0, results.stderr
    return results.stdout


@pytest.fixture(scope='module')
def made(trained, tmp_path_factory):
    path = str(tmp_path_factory.mktemp('page') / 'page.html')
    page.main([os.path.dirname(trained), '--out', path, '--top', '3'])
    return path


def test_what_is_on_the_page(made, opened):
    """The model's own ranking, and nothing from anywhere else."""
    data, run = data_of(made), data_of(made)['runs'][0]
    queries, q_pids = embed(opened.model, opened.captions, 'text')
    gallery, g_pids = embed(opened.model, opened.images, 'image')
    ranking = rank_embeddings(queries, gallery, q_pids, g_pids, max_rank=3)
    files = [os.path.basename(path) for path in opened.images.dataset.img_paths]
    assert run['ranks'] == (ranking.first + 1).tolist() and data['captions'] == opened.captions.dataset.captions
    of_each = zip(run['rows'], ranking.top.tolist(), q_pids.tolist(), run['ranks'], strict=True)
    for (images, scores, right, score), top, pid, rank in of_each:
        assert [data['images'][image][2] for image in images] == [files[position] for position in top]
        assert data['images'][right][1] == pid and scores == sorted(scores, reverse=True)
        assert score == scores[rank - 1] if rank <= 3 else score <= scores[-1]
    assert 't2i' in run['table'] and '95%' in run['table'] and 'epoch 1, chosen by the test split' in run['table']
    assert b'<svg' in base64.b64decode(data['curves'])
    with open(made, encoding='utf-8') as file:
        assert not re.findall(r'(?:src|href)\s*=\s*"?(?:https?:|//)', file.read())


def test_what_a_second_stage_reached_is_in_the_table(trained, tmp_path):
    """As test.py --rerank wrote it, of this checkpoint and this split alone."""
    folder, out = str(tmp_path / 'run'), str(tmp_path / 'page.html')
    shutil.copytree(os.path.dirname(trained), folder)
    people = pedestal.load(folder)
    row = dict.fromkeys(METRICS, 12.3456)
    made = collect_provenance(people.args, people.split.run)

    def shown_with(**changes):
        with open(os.path.join(folder, 'metrics.json'), 'w') as file:
            json.dump({'results': {'first': {'t2i': row}, f'{RERANKED}7 best re-ranked': {'t2i': row}},
                       'intervals': {'first': {},
                                     f'{RERANKED}7 best re-ranked': {'t2i': {'R1': [1, 2.5], 'mAP': [3, 4]}}},
                       'produced_by': {**made, **changes}}, file)
        page.main([folder, '--out', out])
        return data_of(out)['runs'][0]['table']
    results, = (line for line in shown_with().splitlines() if '7 best re-ranked' in line)
    assert results.split('|')[1:3] == [' t2i, 7 best re-ranked ', ' 12.346 '] and '1.00 to 2.50' in results
    for changes in ({'checkpoint_sha256': 'of another'}, {'split_sha256': 'of another'}):
        assert 're-ranked' not in shown_with(**changes)


def test_curves_of_each_dataset(tmp_path):
    class Run:
        name, folder = 'two', str(tmp_path)
    kinds = 'evaluation', 'evaluation/B'
    lines = [{'kind': kind, 'epoch': epoch, 'step': epoch, 'R1': 10.0 * epoch} for epoch in (1, 2) for kind in kinds]
    (tmp_path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(line)}\n' for line in lines) + 'cut sho')
    assert further_datasets(str(tmp_path)) == ['B'] and len(read_evaluations(str(tmp_path), 'B')) == 2
    svg = base64.b64decode(page.draw_curves([Run])).decode()
    assert '<!-- two B -->' in svg and '<!-- two -->' in svg


def test_a_run_without_a_journal_has_no_curves(tmp_path):
    class Bare:
        name, folder = 'bare', str(tmp_path)
    assert page.draw_curves([Bare]) == ''


@pytest.mark.parametrize('name', ['_first', 'a$\\frac$b', 'x\x1b[2J', 'x\udcff', '<!--<script>', 'a--b'])
def test_a_runs_name_cannot_break_the_curves(tmp_path, name):
    class Run:
        folder = str(tmp_path)
    Run.name = name
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'kind': 'evaluation', 'epoch': 1, 'step': 1, 'R1': 10.0}))
    assert minidom.parseString(base64.b64decode(page.draw_curves([Run]))).documentElement.tagName == 'svg'


HOSTILE = ['<!--<script>', '<!--', '<script>', '</script><b id=x>', ']]>', '<![CDATA[', '\u2028"\\', '&lt;b&gt;']


def test_what_is_embedded_cannot_leave_its_script(tmp_path):
    """Captions, files and the run's name: no ``<`` of theirs is in the page."""
    data, path = {**many(len(HOSTILE), 20), 'captions': HOSTILE}, str(tmp_path / 'page.html')
    data['runs'][0]['name'], data['images'][0][2] = HOSTILE[0], HOSTILE[3]
    page.write_page(path, data)
    with open(path, encoding='utf-8') as file, open(page.TEMPLATE, encoding='utf-8') as template:
        assert file.read().count('<') == template.read().count('<')
    assert data_of(path) == data


@in_a_browser
def test_a_browser_shows_hostile_captions_as_text(tmp_path):
    path = str(tmp_path / 'page.html')
    page.write_page(path, {**many(len(HOSTILE), 20), 'captions': HOSTILE})
    dom = shown(path)
    assert '<p id="error"></p>' in dom and f'{len(HOSTILE)} of {len(HOSTILE)} captions' in dom
    assert set(map(html.unescape, re.findall(r'<p class="text">(.*?)</p>', dom))) == set(HOSTILE)


@in_a_browser
def test_a_browser_shows_and_filters_it(made):
    data = data_of(made)
    dom = shown(made)
    assert '<p id="error"></p>' in dom and f'{len(data["captions"])} of {len(data["captions"])} captions' in dom
    worst = max(range(len(data['captions'])), key=lambda i: (data['runs'][0]['ranks'][i], -i))
    assert re.search(r'<p class="text">(.*?)</p>', dom)[1] == data['captions'][worst]
    word = data['captions'][0].split()[-1].strip('.').lower()
    expected = [text for text in data['captions'] if re.search(rf'\b{word}', text.lower())]
    dom = shown(made, f'words={word}')
    assert f'{len(expected)} of {len(data["captions"])} captions' in dom
    assert set(re.findall(r'<p class="text">(.*?)</p>', dom)) <= set(expected)


def many(captions, images):
    """A page's data with so many captions and images, of two runs."""
    rng = np.random.default_rng(0)
    jpeg = base64.b64encode(rng.bytes(1200)).decode()
    runs = [{'name': name, 'table': '', 'ranks': rng.integers(1, 50, captions).tolist(),
             'rows': [[row, [0.5] * 8, row[0], 0.5] for row in rng.integers(0, images, (captions, 8)).tolist()]}
            for name in ('a', 'b')]
    return {'runs': runs, 'curves': '', 'captions': [f'a person number {n} in </script> red' for n in range(captions)],
            'pids': rng.integers(0, 1000, captions).tolist(),
            'images': [[jpeg, n % 1000, f'{n}.jpg'] for n in range(images)]}


@in_a_browser
def test_twenty_thousand_captions_of_two_runs(tmp_path, monkeypatch):
    data = many(20_000, 2_000)
    path = str(tmp_path / 'large.html')
    page.write_page(path, data)
    dom = shown(path, 'which=captions+on+which+the+runs+differ')
    differ = sum((a == 1) != (b == 1) for a, b in zip(*(run['ranks'] for run in data['runs'])))
    assert '<p id="error"></p>' in dom and f'{differ} of 20000 captions' in dom
    assert dom.count('class="caption"') == min(30, differ)
    assert '1 of 20000 captions' in shown(path, 'words=number+19999')


def test_two_runs_need_the_same_split(trained, tmp_path):
    run, out = os.path.dirname(trained), str(tmp_path / 'two.html')
    page.main([run, run, '--out', out])
    assert [one['name'] for one in data_of(out)['runs']] == [os.path.basename(run)] * 2
    one, other = (page.RunResults(run, page.build_page_parser().parse([run])) for _ in range(2))
    other.captions = other.captions[1:]
    with pytest.raises(UserError, match='not tested on the same captions'):
        page.refuse_different_splits([one, other])


@pytest.mark.parametrize('words, sentence', [(['a', 'b', 'c'], 'one run or two, not 3'), (['none'], 'none'),
                                             (['{run}', '--out', '{tmp}'], 'page cannot be written; name a file'),
                                             (['{run}', '--out', '{tmp}/no/x.html'],
                                              'page cannot be written; name a file'),
                                             (['{run}', '--top', '0'], 'must be above 0')])
def test_what_is_refused(trained, tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        page.main([word.format(run=os.path.dirname(trained), tmp=tmp_path) for word in words])
    assert os.listdir(tmp_path) == []


def test_what_is_best_for_more_captions_than_are_compared_at_a_time():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(1030, 4, generator=generator), torch.randn(9, 4, generator=generator)
    q_pids, g_pids = torch.arange(1030) % 3, torch.arange(9) % 3
    rows = page.top_images(queries, gallery, q_pids, g_pids, 2)
    similarity = queries @ gallery.t()
    for row, (images, _, right, score) in enumerate(rows):
        assert images == similarity[row].topk(2).indices.tolist()
        assert right % 3 == row % 3 and score == pytest.approx(similarity[row, row % 3::3].max().item(), abs=1e-5)
    assert len(rows) == 1030

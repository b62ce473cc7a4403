"""run_scripts/retrieve.py on a small run: the picture, the ranking that is printed beside it, and what is refused."""
import os
import re

import pytest
import torch
import torch.nn.functional as F

import pedestal
from processor.runs import Split, embed_queries
from processor.search_results import GRAY, GREEN, RED, draw_results, sample_queries
from run_scripts import retrieve
from utils.errors import UserError
from utils.figures import import_pyplot, save_figure


@pytest.fixture
def run(opened):
    return opened


@pytest.fixture(scope='module')
def people(trained):
    return pedestal.load(os.path.dirname(trained), device='cpu')


def test_what_is_retrieved(run, people):
    """The images with the largest cosine similarity to the caption, the best first."""
    queries = sample_queries(people.split, 2)
    rows = retrieve.retrieve(people, queries, top=3)
    assert [(caption, pid) for caption, pid, _ in rows] == queries
    gallery = run.images.dataset
    with torch.no_grad():
        images = torch.cat([run.model.eval().encode_image(gallery[i][1][None]) for i in range(len(gallery))])
    for (caption, pid), (_, _, results) in zip(queries, rows):
        position = run.captions.dataset.captions.index(caption)
        assert pid == run.captions.dataset.caption_pids[position]
        expected = F.cosine_similarity(embed_queries(run.model, [run.captions.dataset[position][1]]), images).tolist()
        order = sorted(range(len(gallery)), key=lambda i: -expected[i])[:3]
        assert [score for *_, score in results] == pytest.approx([expected[i] for i in order], abs=1e-5)
        assert [(path, pid) for path, pid, _ in results] == [(gallery.img_paths[i], gallery.image_pids[i])
                                                             for i in order]


def test_queries_are_spread_over_the_split(run, people):
    dataset = run.captions.dataset
    chosen = [caption for caption, _ in sample_queries(people.split, 3)]
    assert chosen == [dataset.captions[i] for i in (0, (len(dataset) - 1) // 2, len(dataset) - 1)]
    assert len(sample_queries(people.split, 10_000)) == len(dataset)


def test_the_picture_and_what_is_printed(trained, people, tmp_path, capsys):
    out = str(tmp_path / 'found.png')
    retrieve.main(['--config_file', trained, '--out', out, '--captions', '2', '--top', '4'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f'wrote {out}' and open(out, 'rb').read(8) == b'\x89PNG\r\n\x1a\n'
    output = lines[-11:-1]
    assert [output[0], output[5]] == [caption for caption, _ in sample_queries(people.split, 2)]
    for images in (output[1:5], output[6:10]):
        results = [re.fullmatch(r'  (-?\d\.\d{4})  (right|wrong)  (.+\.jpg)', line).groups() for line in images]
        scores = [float(score) for score, _, _ in results]
        assert scores == sorted(scores, reverse=True) and all(os.path.isfile(path) for *_, path in results)


def test_scores_and_frames_are_on_the_picture(run, people):
    (caption, _), = sample_queries(people.split, 1)
    for pid, colours in ((7, {GREEN, RED}), (None, {GRAY})):
        path = run.images.dataset.img_paths[0]
        figure = draw_results([(caption, pid, [(path, 7, 0.5125), (path, 8, -0.25)])])
        text, *images = figure.axes
        assert [axis.get_title() for axis in images] == ['0.512', '-0.250']
        assert {axis.patches[0].get_edgecolor()
                for axis in images} == {import_pyplot().matplotlib.colors.to_rgba(colour) for colour in colours}
        assert text.texts[0].get_text().split() == caption.split()
        import_pyplot().close(figure)


def test_a_caption_of_ones_own(trained, tmp_path, capsys):
    out = str(tmp_path / 'own.pdf')
    retrieve.main(['--config_file', trained, '--out', out, '--caption', 'a $man$ in a red coat', '--top', '2'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == 'a $man$ in a red coat' and 'right' not in lines[-3] + lines[-2]
    assert open(out, 'rb').read(4) == b'%PDF'


@pytest.mark.parametrize('words, sentence', [(['--captions', '0'], '--captions.*must be above 0'),
                                             (['--captions', '-1'], '--captions.*must be above 0'),
                                             (['--top', '0'], '--top.*must be above 0'),
                                             (['--top', '-1'], '--top.*must be above 0'),
                                             (['--caption', ' '], 'a caption is empty'),
                                             (['--out', '{folder}'], 'cannot write the figure .*it is a folder'),
                                             (['--out', 'x'], "its ending gives the format"),
                                             (['--out', 'x.doc'], "'doc' is none"),
                                             (['--out', '{folder}/no/x.png'], 'there is no folder')])
def test_what_is_refused(trained, tmp_path, monkeypatch, words, sentence):
    """Before anything is embedded, and nothing is written."""
    monkeypatch.setattr(Split, 'embed_images', lambda *_: pytest.fail('images were embedded'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        retrieve.main(['--config_file', trained, *(word.format(folder=tmp_path) for word in words)])
    assert os.listdir(tmp_path) == []


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    plt = import_pyplot()
    path = str(tmp_path / 'x.png')
    save_figure(plt.subplots()[0], path)
    before, figure = open(path, 'rb').read(), plt.subplots()[0]

    def fill_the_disk(figure, file, **_):
        file.write(b'half')
        raise OSError(28, 'No space')
    monkeypatch.setattr(type(figure), 'savefig', fill_the_disk)
    with pytest.raises(UserError, match='No space'):
        save_figure(figure, path)
    assert open(path, 'rb').read() == before and os.listdir(tmp_path) == ['x.png']
    assert not plt.fignum_exists(figure.number)

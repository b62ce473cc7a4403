"""Re-ranking in test.py, in training and in the tools that search, on a small run."""
import json
import os
import re
import shutil

import pytest
import torch
import torch.nn.functional as F

import pedestal
import test as test_program
import train as train_program
from processor import evaluation
from processor.report import evaluate
from processor.reranker import rerank
from run_scripts import attention, demo, dialogue, export, galleries, page, retrieve, search
from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.options import build_test_parser, parse_test_options
from utils.ranking import rank_slabs
from utils.rerank_options import KReciprocal, QueryExpansion
from utils.reranking import reranked_slabs
from utils.retrieval_metrics import retrieval_metrics

TEXT = 'a woman in a red coat'
WORDS = ['--rerank', 'k-reciprocal', '--rerank_k1', '4', '--rerank_k2', '2', '--rerank_lambda', '0.1']
SETTINGS = KReciprocal(4, 2, 0.1)


@pytest.fixture(scope='module')
def people(trained):
    return pedestal.load(os.path.dirname(trained), device='cpu')


@pytest.fixture(scope='module')
def photos(people, tmp_path_factory):
    """A folder with the images of the test split."""
    folder = tmp_path_factory.mktemp('photos')
    for number, path in enumerate(people.split.paths):
        shutil.copy(path, folder / f'{number:02}.jpg')
    return str(folder)


def expected_rows(people, captions, settings):
    """The rows of the test split's images in their new order, for each caption alone."""
    gallery = F.normalize(people.split.gallery[0], dim=1)
    slabs = [next(iter(reranked_slabs(people.encode_captions([caption]), gallery, settings))) for caption in captions]
    return torch.cat(slabs).argsort(dim=1, descending=True, stable=True)


@pytest.mark.parametrize('words, settings, title', [
    (WORDS, SETTINGS, 'the same, re-ranked by k-reciprocal neighbors (k1 4, k2 2, lambda 0.1)'),
    (['--rerank', 'k-reciprocal', '--rerank_k1', '4', '--rerank_neighbors', 'split'], KReciprocal(4, neighbors='split'),
     'the same, re-ranked by k-reciprocal neighbors (k1 4, k2 6, lambda 0.3), uses other queries of the test set'),
    (['--rerank', 'query-expansion', '--expansion_images', '2'], QueryExpansion(2),
     'the same, re-ranked by query expansion (2 images, alpha 3)')])
def test_a_table_beside_the_plain_one(trained, opened, people, words, settings, title):
    report = evaluate(parse_test_options(build_test_parser('', ''), ['--config_file', trained, *words]), opened)
    plain, reranked = report.tables.items()
    (queries, q_pids), (gallery, g_pids) = people.split.queries, people.split.gallery
    slabs = reranked_slabs(F.normalize(queries, dim=1), F.normalize(gallery, dim=1), settings)
    assert reranked == (title, {'t2i': retrieval_metrics(rank_slabs(slabs, q_pids, g_pids, 10))})
    assert plain[0].endswith('24 captions, 12 images') and 't2i' in report.intervals[title]
    assert settings != SETTINGS or plain[1]['t2i'] != reranked[1]['t2i']
    assert report.queries[settings.method, 't2i'].names == report.queries['as loaded', 't2i'].names
    assert settings.uses_other_queries == ('a search with one caption ranks otherwise' in report.text)


def test_photos_are_found_in_the_new_order(trained, people, photos, capsys, tmp_path):
    captions, out = [TEXT, people.split.captions[3]], str(tmp_path / 'found.json')
    rows = expected_rows(people, captions, SETTINGS)
    assert rows.tolist() != expected_rows(people, captions, KReciprocal(4, original_weight=1.0)).tolist()   # by cosine
    search.main(['--config_file', trained, '--images', photos, '--caption', captions[0], '--caption', captions[1],
                 '--top', '5', '--out', out, *WORDS])
    assert 'order: re-ranked by k-reciprocal neighbors (k1 4, k2 2, lambda 0.1); the numbers are' in (
        capsys.readouterr().out)
    with open(out) as file:
        results = [[(photo['path'], photo['score']) for photo in found['photos']] for found in json.load(file)]
    paths, index = sorted(os.path.join(photos, name) for name in os.listdir(photos) if name.endswith('.jpg')), None
    similarity = people.encode_captions(captions) @ F.normalize(people.split.gallery[0], dim=1).t()
    for caption, found, expected, scores in zip(captions, results, rows[:, :5].tolist(), similarity):
        assert [path for path, _ in found] == [paths[row] for row in expected]
        assert [score for _, score in found] == pytest.approx(scores[expected].tolist(), abs=1e-5)
        index = index or people.index_images(photos)
        for images in (index, index, paths, photos):
            again = people.search(caption, images, top=5, rerank=SETTINGS)
            assert [path for path, _ in again] == [path for path, _ in found]
    assert list(index.reranked_searches) == [SETTINGS]


def test_photos_that_are_gone_are_no_neighbors(people, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / 'fewer')
    people.index_images(folder)
    os.remove(folder / '03.jpg')
    index = people.index_images(folder)
    paths = [str(folder / name) for name in index.paths]
    assert index.embedding_count == len(paths) + 1 == 12
    torch.testing.assert_close(index.read_embeddings(), people.encode_images(paths))
    assert dict(people.search(TEXT, index, rerank=SETTINGS)) == pytest.approx(
        dict(people.search(TEXT, paths, rerank=SETTINGS)))


def test_the_test_split_is_found_in_the_new_order(trained, people, capsys, tmp_path):
    args = demo.build_demo_parser().parse(['--config_file', trained, *WORDS])
    caption = people.split.captions[0]
    expected = [people.split.paths[row] for row in expected_rows(people, [caption], SETTINGS)[0, :5].tolist()]
    assert [path for path, _ in demo.build_search(people, args)(caption, 5)] == expected
    retrieve.main(['--config_file', trained, '--out', str(tmp_path / 'x.png'), '--captions', '1', '--top', '5', *WORDS])
    output = capsys.readouterr().out
    assert re.findall(r'(?:right|wrong)  (.+\.jpg)', output) == expected and 'order: re-ranked by' in output


def test_the_page_shows_the_new_order(trained, people, tmp_path):
    page.main([os.path.dirname(trained), '--out', str(tmp_path / 'page.html'), '--top', '4', *WORDS])
    with open(tmp_path / 'page.html', encoding='utf-8') as file:
        data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', file.read(), re.S)[1])
    run, (gallery, g_pids), (queries, q_pids) = data['runs'][0], people.split.gallery, people.split.queries
    slab, = reranked_slabs(F.normalize(queries, dim=1), F.normalize(gallery, dim=1), SETTINGS)
    ranking = rank_slabs([slab], q_pids, g_pids, 10)
    files = list(map(os.path.basename, people.split.paths))
    cosine = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).t()
    assert run['ranks'] == (ranking.first + 1).tolist()
    for (images, scores, right, _), top, pid, row in zip(run['rows'], ranking.top.tolist(), q_pids.tolist(), cosine):
        assert [data['images'][image][2] for image in images] == [files[position] for position in top[:4]]
        assert scores == pytest.approx(row[top[:4]].tolist(), abs=1e-3) and data['images'][right][1] == pid
    assert '| t2i, re-ranked by k-reciprocal neighbors (k1 4, k2 2, lambda 0.1) | ' in run['table']
    assert 'order: re-ranked by k-reciprocal' in run['table'] and re.search(r'\| +t2i +\|', run['table'])


@pytest.mark.parametrize('words, sentence', [
    (['--rerank', 'k-reciprocal'], '12 images, which are too few for --rerank_k1 20: give a number from 1 to 11'),
    (['--rerank', 'reciprocal'], "'reciprocal' must be a number of images above 0, k-reciprocal or query-expansion"),
    (['--rerank', '3'], '--rerank needs a loss whose head .* or give --rerank k-reciprocal or query-expansion'),
    (['--rerank', '3', '--rerank_k1', '4'], '--rerank_k1 is only read with --rerank k-reciprocal, and --rerank is 3'),
    (['--rerank_k2', '4'], '--rerank_k2 is only read with --rerank k-reciprocal, and --rerank is not given'),
    (['--rerank', 'query-expansion', '--rerank_score', 'itm'], '--rerank_score is only read with --rerank K, and'),
    ([*WORDS, '--rerank_neighbors', 'split'], 'a search re-ranks each caption alone; give --rerank_neighbors gallery'),
    ([*WORDS, '--faiss'], '--rerank needs an exact search, and --faiss')])
def test_what_a_search_refuses(trained, photos, words, sentence):
    with pytest.raises(UserError, match=sentence):
        search.main(['--config_file', trained, '--images', photos, '--caption', TEXT, *words])


@pytest.mark.parametrize('tool', [attention, dialogue, export, galleries])
def test_a_tool_that_does_not_re_rank_has_no_option_for_it(tool, trained):
    for words in (['--rerank', 'k-reciprocal'], ['--rerank_k1', '4'], ['--expansion_images', '3']):
        with pytest.raises(UserError, match=f'^unknown flag {words[0]}; '):
            tool.main(['--config_file', trained, *words])


def test_re_ranked_rank_1_selects_the_best_epoch(command, run_folder, monkeypatch, capsys):
    """The model does not change, so that without re-ranking the first epoch is the best."""
    values = iter([30.0, 60.0])

    def rerank_by_epoch(*arguments):
        ranking, dependence = rerank(*arguments)
        count = len(ranking.counts)
        ranking.ranks = torch.full_like(ranking.ranks, 1)
        ranking.ranks[(ranking.counts.cumsum(0) - ranking.counts)[:int(next(values) / 100 * count)]] = 0
        return ranking, dependence
    monkeypatch.setattr(evaluation, 'rerank', rerank_by_epoch)
    train_program.main([*command, '--loss_names', 'sdm', '--limit_train', '8', '--lr', '0', '--val_rerank',
                        'query-expansion', '--expansion_images', '2'])
    best = read_checkpoint(os.path.join(run_folder(), 'best.pth'))
    assert best['epoch'] == 2 and 58 < best['metrics']['reranked_R1'] <= 60 > best['metrics']['R1']
    assert best['selected_by'] == 'Rank-1, re-ranked by query expansion (2 images, alpha 3)'
    assert 're-ranked Rank-1 29.167' in capsys.readouterr().out
    assert test_program.main(['--config_file', os.path.join(run_folder(), 'configs.yaml')]) == 0
    output = capsys.readouterr().out
    assert 'epoch 2, chosen by Rank-1, re-ranked by query expansion (2 images, alpha 3) on the test split' in output
    assert 'best re-ranked Rank-1' in output
    with open(os.path.join(run_folder(), 'metrics.json')) as file:
        content = json.load(file)
    assert content['produced_by']['chosen_by_measure'] == best['selected_by'] and len(content['results']) == 1


@pytest.mark.parametrize('words, sentence', [
    (['--val_rerank', '3'], '--val_rerank needs a loss whose head scores pairs'),
    (['--val_rerank', 'k-reciprocal'], '--val_rerank k-reciprocal finds neighbors among 12 images'),
    (['--rerank_k1', '4'], '--rerank_k1 is only read with --val_rerank k-reciprocal, and --val_rerank is not given')])
def test_a_training_that_cannot_be_re_ranked_leaves_no_folder(command, tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        train_program.main([*command, '--loss_names', 'sdm', *words])
    assert not os.path.exists(tmp_path / 'logs')

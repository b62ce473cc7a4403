"""Results of a training: per caption, with intervals, of several epochs, on other datasets, and before training."""
import csv
import json
import os

import numpy as np
import pytest
import torch

import test as test_program
import train as train_program
from datasets import build_dataloader
from model.clip_weights import build_clip
from processor.evaluation import evaluate_embeddings
from processor import report as report_module
from processor.results import read_queries
from run_scripts import compare, matrix, page
from run_scripts.ablation.grid import build_ablation_parser, build_grid
from run_scripts.ablation.table import Table
from utils.errors import UserError
from utils.options import build_test_parser, parse_test_options
from utils.parser import split_at_dashes
from utils.statistics import bootstrap_interval


@pytest.fixture(scope='module')
def run(data, clip, tmp_path_factory):
    """The folder of a run of two epochs on RSTPReid, tested."""
    logs = tmp_path_factory.mktemp('logs')
    train_program.main(['--name', 'short', '--loss_names', 'sdm+id', '--dataset_name', 'RSTPReid', '--root_dir', data,
                        '--num_epoch', '2', '--pretrain_choice', clip, '--img_size', '64', '32', '--batch_size', '8',
                        '--num_workers', '0', '--device', 'cpu', '--lr', '1e-3', '--output_dir', str(logs)])
    folder, = (logs / 'RSTPReid').iterdir()
    assert test_program.main(['--config_file', str(folder / 'configs.yaml'), '--i2t', '--one_by_one']) == 0
    return folder


def metrics_of(folder, name='metrics.json'):
    with open(os.path.join(folder, name)) as file:
        return json.load(file)


def test_what_each_query_reaches_adds_up_to_the_tables(run):
    content, rankings = metrics_of(run), read_queries(run / 'queries.csv')
    assert list(rankings) == [(how, task) for how in ('as loaded', 'shuffled', 'one by one') for task in ('t2i', 'i2t')]
    for (how, task), queries in rankings.items():
        table = content['results'][list(content['results'])[('as loaded', 'shuffled', 'one by one').index(how)]]
        for metric in ('R1', 'R5', 'R10', 'mAP', 'mINP'):
            assert queries.metric_values(metric).mean() == pytest.approx(table[task][metric], abs=1e-4), (how, task,
                                                                                                          metric)


def test_shuffled_queries_are_in_the_splits_order(run):
    """The model is independent of the batch, and so each query reaches the same however it was embedded."""
    rankings = read_queries(run / 'queries.csv')
    for task in ('t2i', 'i2t'):
        for how in ('shuffled', 'one by one'):
            assert rankings[how, task].names == rankings['as loaded', task].names
            assert rankings[how, task].pids.tolist() == rankings['as loaded', task].pids.tolist()
            assert rankings[how, task].AP == pytest.approx(rankings['as loaded', task].AP, abs=1e-3)
    with open(run / 'queries.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows[0]['query'].count(' ') > 3 and rows[-1]['query'].startswith('imgs')


def test_intervals_and_the_course_of_the_training_stand_beside_the_figures(run, capsys):
    content, queries = metrics_of(run), read_queries(run / 'queries.csv')['as loaded', 't2i']
    first = next(iter(content['intervals'].values()))
    for metric in ('R1', 'mAP'):
        assert first['t2i'][metric] == pytest.approx(bootstrap_interval(queries.metric_values(metric), queries.pids),
                                                     abs=1e-3)
    with open(run / 'metrics.jsonl') as file:
        evaluations = [line for line in map(json.loads, file) if line['kind'] == 'evaluation']
    assert content['training']['last']['R1'] == evaluations[-1]['R1'] and content['training']['last']['epochs'] == [2]
    assert content['training']['mean']['mAP'] == pytest.approx(np.mean([line['mAP'] for line in evaluations]))
    log = (run / 'train_log.txt').read_text()
    assert f"last {evaluations[-1]['R1']:.3f} at epoch 2, mean of epochs 1 to 2 " in log
    assert test_program.main(['--config_file', str(run / 'configs.yaml')]) == 0
    printed = capsys.readouterr().out
    assert 'R1, 95%' in printed and '{:.2f} to {:.2f}'.format(*first['t2i']['mAP']) in printed
    assert 'during training, on the test split of RSTPReid: best Rank-1' in printed


def test_runs_are_compared_by_what_test_py_wrote(run, clip, data, capsys, tmp_path):
    """A run with the CLIP that it started from."""
    words = ['--pretrain_choice', clip, '--dataset_name', 'RSTPReid', '--root_dir', data, '--img_size', '64', '32',
             '--device', 'cpu']
    assert test_program.main([*words, '--output_dir', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f'{clip}: before any training' in printed and '| t2i  |' in printed
    untrained = tmp_path / 'RSTPReid' / 'zero-shot_clip'
    by = metrics_of(untrained)['produced_by']
    assert (by['trained_for'], by['trained_on'], by['chosen_by_split']) == ('not at all', None, None)
    assert len(by['checkpoint_sha256']) == 64
    compare.main([str(untrained), str(run)])
    printed = capsys.readouterr().out
    gain = metrics_of(run)['results']['RSTPReid test: 24 captions, 12 images']['t2i']['R1'] - next(
        iter(metrics_of(untrained)['results'].values()))['t2i']['R1']
    assert f'{gain:+.2f}' in printed and '24 captions of 6 identities' in printed


def test_a_clip_before_training_has_the_metrics_of_its_own_embeddings(clip, data, tmp_path):
    """Its class and end tokens, projected, without a head, at the resolution that is asked for."""
    words = ['--pretrain_choice', clip, '--dataset_name', 'RSTPReid', '--root_dir', data, '--img_size', '64', '32',
             '--device', 'cpu']
    args = parse_test_options(build_test_parser('test.py', ''), [*words, '--output_dir', str(tmp_path)])
    images, captions, _ = build_dataloader(args)
    encoders = build_clip(clip, (64, 32), 16).eval()
    with torch.no_grad():
        gallery = torch.cat([encoders.encode_image(batch)[0][:, 0] for _, batch in images])
        ids = captions.dataset.tokens
        queries = encoders.encode_text(ids)[0][torch.arange(len(ids)), ids.argmax(dim=1)]
    expected = evaluate_embeddings(queries, gallery, torch.tensor(captions.dataset.caption_pids),
                                   torch.tensor(images.dataset.image_pids))
    assert test_program.main([*words, '--output_dir', str(tmp_path)]) == 0
    table, = metrics_of(tmp_path / 'RSTPReid' / 'zero-shot_clip')['results'].values()
    assert table['t2i'] == pytest.approx(expected['t2i'], abs=1e-4)


def test_random_weights_are_those_of_the_seed(data, tmp_path):
    words = ['--pretrain_choice', 'scratch:tiny', '--dataset_name', 'RSTPReid', '--root_dir', data, '--img_size', '96',
             '48']
    for name in ('first', 'second'):
        test_program.main([*words, '--output_dir', str(tmp_path / name)])
    first, second = ((tmp_path / name / 'RSTPReid' / 'zero-shot_scratch-tiny' / 'queries.csv').read_text()
                     for name in ('first', 'second'))
    assert first == second


@pytest.mark.parametrize('words, sentence',
                         [([],
                            'no model: give a run with --config_file .* or a pretrained CLIP with --pretrain_choice'),
                          (['--pretrain_choice', 'ViT-B/17'], 'ViT-B/17.*did you mean ViT-B/1'),
                          (['--pretrain_choice', 'scratch:tiny', '--checkpoint', 'best.pth'],
                           '--checkpoint needs --config_file'),
                          (['--config_file', 'RUN', '--pretrain_choice', 'ViT-B/16'],
                           '--pretrain_choice is in the configs.yaml of --config_file'),
                          (['--config_file', 'RUN', '--img_size', '64', '32'],
                           '--img_size is in the configs.yaml of --config_file')])
def test_what_test_py_cannot_do_is_a_sentence(run, data, words, sentence):
    words = [str(run / 'configs.yaml') if word == 'RUN' else word for word in words]
    with pytest.raises(UserError, match=sentence):
        test_program.main([*words, '--root_dir', data, '--dataset_name', 'RSTPReid'])


# -- across datasets -------------------------------------------------------------------------------------------------

def cell_of(text, row, column):
    header, line = (next(line for line in text.splitlines() if name in line) for name in ('| run ', row))
    return [cell.strip() for cell in line.split('|')][[cell.strip() for cell in header.split('|')].index(column)]


def test_each_cell_of_the_matrix_is_evaluated_once(run, data, tmp_path, capsys, monkeypatch):
    words = ['--runs', str(run.parent), '--root_dir', data, '--out', str(tmp_path / 'matrix')]
    assert matrix.main([*words, '--datasets', 'RSTPReid', 'CUHK-PEDES']) == 0
    first = capsys.readouterr()
    # test.py had been run on its own dataset
    assert first.err.count('evaluating') == 1
    calls = []
    monkeypatch.setattr(report_module, 'evaluate', lambda *_: calls.append(1))
    assert matrix.main([*words, '--datasets', 'RSTPReid', 'CUHK-PEDES']) == 0
    again = capsys.readouterr()
    assert not calls and first.out.endswith(again.out)
    elsewhere = metrics_of(run, 'metrics_CUHK-PEDES.json')
    how, = elsewhere['results']
    low, high = elsewhere['intervals'][how]['t2i']['R1']
    assert cell_of(first.out, run.name,
                   'CUHK-PEDES') == f"{elsewhere['results'][how]['t2i']['R1']:.2f} [{low:.2f}, {high:.2f}]"
    with open(tmp_path / 'matrix.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['trained_on'], row['tested_on'])
            for row in rows] == [('RSTPReid', 'RSTPReid'), ('RSTPReid', 'CUHK-PEDES')]
    assert float(rows[1]['mAP']) == elsewhere['results'][how]['t2i']['mAP'] and float(rows[1]['R1_low']) == low
    assert r'\begin{tabular}' in (tmp_path / 'matrix.tex').read_text()
    assert '| --- |' in (tmp_path / 'matrix.md').read_text()
    assert (tmp_path / 'matrix.txt').read_text() == again.out


def test_each_program_says_that_the_split_is_not_the_published_one(run, data, tmp_path, capsys, caplog):
    """RSTPReid by name, with 6 identities: train.py, test.py, matrix, compare, page and ablate."""
    by = metrics_of(run)['produced_by']
    assert by['identities'] == 6
    note = f"not the published test split of RSTPReid: 6 identities (published: 200), {by['images']} images (1000), " \
           f"{by['captions']} captions (2000)"
    assert f'{note}; its results are not comparable with published ones' in (run / 'train_log.txt').read_text()
    assert test_program.main(['--config_file', str(run / 'configs.yaml')]) == 0
    assert f'\n{note}; compare with no published figure\n' in capsys.readouterr().out
    matrix.main(['--runs', str(run), '--root_dir', data, '--datasets', 'RSTPReid', '--out', str(tmp_path / 'm')])
    assert f'\n{note}; compare with no published figure\n' in capsys.readouterr().out
    with open(tmp_path / 'm.csv', newline='') as file:
        assert next(csv.DictReader(file))['note'] == note
    results = compare.read_run(str(run / 'metrics.json'), 'as loaded', 't2i')
    assert f'{note}; compare with no published figure' in compare.format_notes([compare.Model('a', 'a', [results])])[0]
    assert note in page.RunResults(str(run), page.build_page_parser().parse([str(run)])).table
    grid = ['--seeds', '1', '--output_dir', str(tmp_path / 'grid'), '--', '--dataset_name', 'RSTPReid',
            '--root_dir', data]
    original, after = split_at_dashes(grid)
    assert Table(str(tmp_path / 'grid'), *build_grid(build_ablation_parser().parse(original),
                                                                   after)).heading.endswith(note)


def test_a_matrix_that_was_interrupted_goes_on(run, data, monkeypatch, capsys):
    for name in ('metrics_CUHK-PEDES.json', 'metrics_ICFG-PEDES.json'):
        if (run / name).exists():
            os.remove(run / name)
    real, seen = report_module.evaluate, []

    def stopped_in_the_second(args, *rest):
        if seen:
            raise KeyboardInterrupt
        seen.append(args.dataset_name)
        return real(args, *rest)
    monkeypatch.setattr(report_module, 'evaluate', stopped_in_the_second)
    words = ['--runs', str(run), '--root_dir', data, '--datasets', 'CUHK-PEDES', 'ICFG-PEDES']
    with pytest.raises(KeyboardInterrupt):
        matrix.main(words)
    seen.clear()
    assert matrix.main(words) == 0 and seen == ['ICFG-PEDES']


@pytest.mark.parametrize('words, sentence',
                         [(['--datasets', 'CUHK-PEDES', 'ICFG'], "unknown dataset 'ICFG'; did you mean ICFG-PEDES"),
                          (['--datasets', 'synthpedes'], 'synthpedes'),
                          (['--datasets', 'RSTPReid', '--runs', 'nowhere'], 'no folder nowhere')])
def test_a_dataset_that_is_not_there_is_told_before_anything_is_evaluated(run, data, words, sentence, capsys,
                                                                          monkeypatch):
    monkeypatch.setattr(report_module, 'evaluate', lambda *_: pytest.fail('something was evaluated'))
    with pytest.raises(UserError, match=sentence):
        matrix.main(['--runs', str(run), '--root_dir', data, *words])


def test_a_run_without_weights_is_a_row_that_says_why(run, data, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'configs.yaml').write_text('batch_size: 8\n')
    assert matrix.main(['--runs', str(tmp_path), str(run), '--root_dir', data, '--datasets', 'RSTPReid']) == 1
    printed = capsys.readouterr().out
    assert cell_of(printed, 'empty', 'RSTPReid') == '-' and 'empty on RSTPReid: no best.pth' in printed

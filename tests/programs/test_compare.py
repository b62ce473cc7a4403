"""Runs compared, on results as test.py writes them."""
import csv
import json
import os

import numpy as np
import pytest

from processor.results import write_queries
from run_scripts.compare import main
from utils.weight_files import compute_sha256
from utils.errors import UserError
from utils.queries import QueryResults
from utils.statistics import compare_means, bootstrap_interval

IDENTITIES, EACH = 40, 6
PIDS = np.repeat(np.arange(IDENTITIES), EACH)


def ranks(seed, better=0.0):
    """[Q] first ranks: people are hard or easy for all models, captions for each one anew."""
    ease = np.random.default_rng(0).normal(0, 1, IDENTITIES)[PIDS]
    return 1 + np.maximum(0, np.random.default_rng(seed).normal(0, 1, len(PIDS)) - ease - better).astype(int)


def write_run(folder, first_rank, split='gallery', options=None, holds=True, how='as loaded', pids=PIDS, **produced_by):
    """A run's folder with what test.py leaves there."""
    os.makedirs(folder)
    one = QueryResults(pids, first_rank, 100.0 / first_rank, 50.0 / first_rank,
                       [f'caption {i}, of {pid}' for i, pid in enumerate(pids)])
    path = os.path.join(folder, 'queries.csv')
    write_queries(path, {(how, 't2i'): one})
    content = {'queries': {'file': 'queries.csv', 'sha256': compute_sha256(path)}, 'independence': {'holds': holds},
               'produced_by': {'dataset': 'toy', 'images': 80, 'captions': len(pids), 'split_sha256': split,
                               'chosen_by_split': 'test', 'checkpoint_sha256': str(folder),
                               'options': options or {'lr': 1e-5, 'seed': 1}, **produced_by}}
    with open(os.path.join(folder, 'metrics.json'), 'w') as file:
        json.dump(content, file)
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """Seeds of two models, of which the second is better."""
    for seed in (1, 2, 3):
        write_run(tmp_path / f'a_seed{seed}', ranks(seed), options={'lr': 1e-5, 'seed': seed})
        write_run(tmp_path / f'b_seed{seed}', ranks(10 + seed, 0.5), options={'lr': 2e-5, 'seed': seed})
    return tmp_path


def line_of(text, *parts):
    line, = (line for line in text.splitlines() if line.startswith('| ')
             and all(f'| {part} ' in line for part in parts))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_two_runs(runs, capsys):
    a, b = str(runs / 'a_seed1'), str(runs / 'b_seed1')
    main([a, b, '--captions', '2'])
    printed = capsys.readouterr().out
    results = [100.0 * (ranks(*which) == 1) for which in ((1,), (11, 0.5))]
    one = compare_means(results[1], results[0], PIDS)
    rank1 = line_of(printed, 'b_seed1 - a_seed1', 'R1')
    assert rank1[2:4] == [f'{one.value:+.2f}', f'[{one.low:+.2f}, {one.high:+.2f}]']
    assert float(rank1[4]) == pytest.approx(one.p, abs=1e-3) and one.p < 0.05
    assert line_of(printed, 'a_seed1',
                   '1')[2] == '{:.2f} [{:.2f}, {:.2f}]'.format(results[0].mean(), *bootstrap_interval(results[0], PIDS))
    aps = [100.0 / ranks(*which) for which in ((1,), (11, 0.5))]
    assert line_of(printed, 'b_seed1 - a_seed1', 'mAP')[2] == f'{(aps[1] - aps[0]).mean():+.2f}'
    assert 'toy: 240 captions of 40 identities' in printed and 'only one seed of' in printed
    assert line_of(printed, 'lr') == ['lr', '1e-05', '2e-05'] and '| seed ' not in printed     # options that differ
    only_a = np.flatnonzero((results[0] > 0) & (results[1] == 0))
    assert f'only a_seed1 {len(only_a)}, only b_seed1 ' in printed
    assert f'only a_seed1: pid {PIDS[only_a[1]]}, caption {only_a[1]}, of' in printed
    assert f'caption {only_a[2]}, of' not in printed


def test_several_seeds_are_one_model(runs, capsys):
    """By a pattern, by commas, or in one folder."""
    main([str(runs / 'a_seed*'), ','.join(str(runs / f'b_seed{seed}') for seed in (1, 2, 3))])
    printed = capsys.readouterr().out
    a, b = (np.stack([100.0 * (ranks(base + seed, better) == 1) for seed in (1, 2, 3)])
            for base, better in ((0, 0), (10, 0.5)))
    one = compare_means(b, a, PIDS)
    assert line_of(printed, 'R1', f'{one.value:+.2f}')[3] == f'[{one.low:+.2f}, {one.high:+.2f}]'
    assert line_of(printed, 'a_seed*', '3')[1] == '3' and 'only one seed' not in printed
    os.makedirs(runs / 'all')
    for seed in (1, 2, 3):
        os.rename(runs / f'a_seed{seed}', runs / 'all' / f'a_seed{seed}')
    main([str(runs / 'all'), str(runs / 'b_seed*')])
    assert line_of(capsys.readouterr().out, 'R1', f'{one.value:+.2f}')


def test_holms_correction_is_over_the_pairs(runs, capsys):
    names = [str(runs / name) for name in ('a_seed1', 'b_seed1', 'b_seed2')]
    main([*names, '--metrics', 'R1'])
    rows = [line_of(capsys.readouterr().out, 'b_seed1 - a_seed1', 'R1')]
    main([*names, '--metrics', 'R1', '--all_pairs'])
    printed = capsys.readouterr().out
    rows = [line_of(printed, pair, 'R1') for pair in ('b_seed1 - a_seed1', 'b_seed2 - a_seed1', 'b_seed2 - b_seed1')]
    smallest = min(rows, key=lambda row: float(row[4]))
    assert float(smallest[5]) == pytest.approx(3 * float(smallest[4]), abs=2e-3)
    assert all(float(row[5]) >= float(row[4]) for row in rows)


def test_every_caption_goes_into_a_file(runs, capsys):
    out = runs / 'captions.csv'
    main([str(runs / 'a_seed*'), str(runs / 'b_seed1'), '--out', str(out)])
    with open(out, newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['pid', 'query', str(runs / 'a_seed*'), str(runs / 'b_seed1')] and len(rows) == len(PIDS)
    assert np.array(rows)[:, 3].astype(float).tolist() == (100.0 * (ranks(11, 0.5) == 1)).tolist()


def test_formats(runs, capsys):
    main([str(runs / 'a_seed1'), str(runs / 'b_seed1'), '--format', 'markdown', 'latex'])
    printed = capsys.readouterr().out
    assert '| model | n | R1 | mAP |' in printed and r'\begin{tabular}' in printed


def test_what_the_figures_cannot_say(runs, tmp_path, capsys):
    leaking = write_run(tmp_path / 'leaking', ranks(5), holds=False, chosen_by_split='val')
    main([str(runs / 'a_seed1'), leaking])
    printed = capsys.readouterr().out
    assert f"EMBEDDINGS DEPEND ON THE BATCH in {leaking}/metrics.json: compare with --how 'one by one'" in printed
    assert 'were selected on different splits: test, val' in printed


@pytest.mark.parametrize('words, sentence', [
    (['a_seed1'], 'needs two runs or more'),
    (['a_seed1', 'nowhere'], 'there is no run .*nowhere'),
    (['a_seed1', 'empty'], r'there is no metrics.json in or below .*empty: name a folder that test.py has evaluated'),
    (['a_seed1', 'other'],
     r'different galleries \(toy: 80 images, 240 captions, sha256 gallery; toy: .* sha256 another\)'),
    (['a_seed1', 'old'], 'has no results per caption: run test.py again'),
    (['a_seed1', 'torn'], 'belongs to another evaluation than'),
    (['a_seed1', 'mixed'], 'have the same gallery but different queries'),
    (['one', 'one'], 'all queries are of one identity'),
    (['a_seed1', '*_seed1,b_seed2'], 'are not seeds of one model: they differ in lr'),
    (['a_seed1,a_seed1', 'b_seed1'], 'have the same weights'),
    (['a_seed1', 'b_seed1', '--how', 'one by one'], "unknown ranking in .*'one by one, t2i'"),
    (['a_seed1', 'b_seed1', '--task', 'i2t'], "unknown ranking in .*'as loaded, i2t'"),
    (['a_seed1', 'b_seed1', '--metric', 'R1'], 'unknown flag --metric; did you mean --metrics')])
def test_what_cannot_be_compared_is_a_sentence(runs, words, sentence, monkeypatch):
    monkeypatch.chdir(runs)
    os.makedirs('empty')
    write_run('other', ranks(5), split='another')
    write_run('one', ranks(6), pids=np.zeros(len(PIDS), int))
    write_run('mixed', ranks(7), pids=PIDS[::-1])
    for name, change in (('old', lambda content: content.pop('queries')),
                         ('torn', lambda content: content['queries'].update(sha256='0'))):
        write_run(name, ranks(8))
        with open(f'{name}/metrics.json') as file:
            content = json.load(file)
        change(content)
        with open(f'{name}/metrics.json', 'w') as file:
            json.dump(content, file)
    with pytest.raises(UserError, match=sentence):
        main(words)

"""run_scripts/reproduce_tables.py on a folder of runs, and test.py on a run whose embeddings depend on the batch."""
import argparse
import json
import os
import shutil
import sys

import pytest

import test as test_program
import train as train_program
from datasets.rstpreid import RSTPReid
from processor import report
from processor.results import Record, Results, append_record, save_results
from processor.test_run import EXIT_DEPENDENT
from processor.run_folders import find_run_folders
from run_scripts import reproduce_tables
from run_scripts.published_results import PUBLISHED, backbone_name, published_row
from run_scripts.reproduce_tables import METRICS, Row, main, run_rows
from utils.errors import UserError
from utils.options import read_yaml
from utils.tables import ATTRIBUTE_METRICS, MAX_WIDTH
from utils.weight_files import compute_sha256

PHP = ['--loss_names', 'sdm+itc+aux', '--num_experts', '3', '--topk', '2', '--moe_layers', '1', '--moe_heads', '2',
       '--cnum', '3', '--reduction', '4', '--num_epoch', '1']


@pytest.fixture(scope='module')
def trained(data, clip, tmp_path_factory):
    """A folder of runs: irra on CUHK-PEDES, PHP with attention across the batch on RSTPReid."""
    logs = tmp_path_factory.mktemp('runs')
    common = ['--root_dir', data, '--pretrain_choice', clip, '--img_size', '64', '32', '--batch_size', '8',
              '--num_workers', '0', '--device', 'cpu', '--output_dir', str(logs), '--cmt_depth', '1']
    train_program.main([*common, '--name', 'irra', '--loss_names', 'sdm+id', '--dataset_name', 'CUHK-PEDES',
                        '--num_epoch', '1'])
    train_program.main([*common, '--name', 'php', '--dataset_name', 'RSTPReid', '--php_attention', 'batch', *PHP])
    return logs


@pytest.fixture
def runs(trained, tmp_path):
    copies = shutil.copytree(trained, tmp_path / 'runs')
    for folder in find_run_folders(copies):
        path = os.path.join(folder, 'configs.yaml')
        with open(path) as file:
            config = file.read()
        with open(path, 'w') as file:
            file.write(config.replace(str(trained), str(copies)))
    return copies


def folder_of(runs, name):
    results, = (folder for folder, _, _ in os.walk(runs) if folder.endswith(f'_{name}'))
    return results


def metrics_of(folder):
    with open(os.path.join(folder, 'metrics.json')) as file:
        return json.load(file)


# -- test.py on PHP --------------------------------------------------------------------------------------------------

def test_a_dependent_run_is_reported_three_ways(runs, capsys):
    folder = folder_of(runs, 'php')
    status = test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'),
                                '--moe_report', '--test_batch_size', '4'])
    printed = capsys.readouterr().out
    assert status == EXIT_DEPENDENT
    assert 'EMBEDDINGS DEPEND ON THE BATCH' in printed and 'shuffled (seed 1)' in printed and 'one by one' in printed
    assert 'experts: percent of all selections' in printed
    assert {'moe_report.json', 'moe_report.png'} <= set(os.listdir(folder))
    content = metrics_of(folder)
    assert len(content['results']) == 3 and content['independence']['holds'] is False
    assert content['produced_by']['options']['php_attention'] == 'batch'


def test_moe_report_without_experts_says_so_before_anything_is_evaluated(runs):
    folder = folder_of(runs, 'irra')
    with pytest.raises(UserError, match='no experts'):
        test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'), '--moe_report'])
    assert 'metrics.json' not in os.listdir(folder)


# -- the tables ------------------------------------------------------------------------------------------------------

def test_every_run_found_has_its_row(runs, data, capsys):
    broken = runs / 'CUHK-PEDES' / 'a_broken'
    broken.mkdir()
    (broken / 'configs.yaml').write_text('batch_size: 8\n')
    main(['--logs', str(runs), '--root_dir', data, '--format', 'markdown'])     # a line for each row
    printed = capsys.readouterr().out
    assert 'CUHK-PEDES: measured / published' in printed and 'RSTPReid: measured / published' in printed
    line, = (line for line in printed.splitlines() if 'a_broken' in line)
    assert 'no best.pth' in line
    assert 'EMBEDDINGS DEPEND ON THE BATCH' in printed and ', one by one' in printed
    measured = next(iter(metrics_of(folder_of(runs, 'irra'))['results'].values()))['t2i']
    line, = (line for line in printed.splitlines() if '_irra' in line)
    assert f"{measured['mAP']:.2f}" in line


def test_a_row_says_its_losses_and_why_no_method_is_beside_it(runs, data, capsys):
    main(['--logs', str(runs), '--root_dir', data, '--format', 'markdown'])     # a line for each row
    line, = (line for line in capsys.readouterr().out.splitlines() if '_irra' in line)
    cells = [cell.strip() for cell in line.split('|')[1:-1]]
    assert cells[1:3] == ['-', 'sdm+id']
    assert cells[-1].startswith('no row in configs/published/cuhk-pedes.yaml with these losses, ')
    assert reproduce_tables.unpublished_reason(run_of('sdm+id', 'synthpedes')) == 'nothing is published on synthpedes'


def test_no_published_figure_is_beside_a_split_that_is_not_the_published_one(runs, data, monkeypatch):
    """The synthetic dataset is RSTPReid only by name, so its figures are not compared with a paper's."""
    expected = {'method': 'PHP', 'values': [76.70, 92.85, 96.25, 63.47, None]}
    monkeypatch.setattr(reproduce_tables, 'published_row', lambda args: expected)
    folder = folder_of(runs, 'php')
    row, alone = run_rows(folder, runs, ['--root_dir', data])
    by = metrics_of(folder)['produced_by']
    assert row.method == alone.method == 'PHP' and row.published == alone.published == {} and '/' not in row.cell('R1')
    identities = f"{by['identities']} identities (published: 200)"
    assert row.note.endswith(f'not the published test split of RSTPReid: {identities}, '
                             f"{by['images']} images (1000), {by['captions']} captions (2000)")
    monkeypatch.setattr(RSTPReid, 'published', {'test': (by['identities'], by['images'], by['captions'])})
    row, alone = run_rows(folder, runs, ['--root_dir', data])
    assert row.note == 'EMBEDDINGS DEPEND ON THE BATCH'
    assert row.published == alone.published == {'R1': 76.7, 'R5': 92.85, 'R10': 96.25, 'mAP': 63.47}


def test_results_on_other_datasets_are_rows_of_theirs(runs, data, capsys):
    folder = folder_of(runs, 'irra')
    test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'), '--dataset_name', 'RSTPReid',
                       '--root_dir', data])
    with open(os.path.join(folder, 'metrics_RSTPReid.json')) as file:
        measured = next(iter(json.load(file)['results'].values()))['t2i']
    original, other = run_rows(folder, runs, ['--root_dir', data])
    assert (original.dataset, other.dataset, other.losses, other.published) == ('CUHK-PEDES', 'RSTPReid', 'sdm+id', {})
    assert other.measured == measured and other.run.endswith('_irra, trained on CUHK-PEDES')
    assert 'trained on another dataset' in other.note
    with open(os.path.join(folder, 'best.pth'), 'ab') as file:
        file.write(b'another checkpoint')
    assert all(row.dataset != 'RSTPReid' for row in run_rows(folder, runs, ['--root_dir', data]))


def test_results_of_the_same_checkpoint_are_taken_and_others_are_not(runs, data, monkeypatch):
    folder = folder_of(runs, 'irra')
    overrides = ['--root_dir', data]
    first, = run_rows(folder, runs, overrides)
    calls = []
    evaluated = report.evaluate
    monkeypatch.setattr(report, 'evaluate', lambda args, run: calls.append(args) or evaluated(args, run))
    again, = run_rows(folder, runs, overrides)
    assert not calls and again == first
    content = metrics_of(folder)
    for change in (lambda c: c['produced_by'].update(checkpoint_sha256='0'), lambda c: c.pop('results'),
                   lambda c: c['independence'].update(holds=False)):
        changed = json.loads(json.dumps(content))
        change(changed)
        with open(os.path.join(folder, 'metrics.json'), 'w') as file:
            json.dump(changed, file)
        calls.clear()
        assert run_rows(folder, runs, overrides) == [first] and calls
    with open(os.path.join(folder, 'metrics.json'), 'w') as file:
        file.write('{')
    assert run_rows(folder, runs, overrides) == [first]


@pytest.mark.parametrize('damage, why', [
    (lambda folder: os.remove(os.path.join(folder, 'best.pth')), 'no best.pth'),
    (lambda folder: open(os.path.join(folder, 'best.pth'), 'w').close(), 'truncated or no file of weights'),
    (lambda folder: open(os.path.join(folder, 'configs.yaml'), 'a').write('\nloss_names: [sdm'), 'is not YAML')])
def test_a_folder_that_cannot_be_evaluated_says_why(runs, data, damage, why):
    folder = folder_of(runs, 'irra')
    damage(folder)
    row, = run_rows(folder, runs, ['--root_dir', data])
    assert why in row.note and not row.measured and 'Traceback' not in row.note


def test_missing_data_is_a_row(runs, tmp_path):
    row, = run_rows(folder_of(runs, 'irra'), runs, ['--root_dir', str(tmp_path / 'nowhere')])
    assert row.dataset == 'CUHK-PEDES' and 'no dataset folder' in row.note


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match='no run below'):
        main(['--logs', str(tmp_path)])
    with pytest.raises(UserError, match='no folder'):
        main(['--logs', str(tmp_path / 'nowhere')])


def row():
    return Row('a_run|1', 'RSTPReid', 'IRRA', 'sdm+mlm+id', dict(R1=60.65, R5=80.0, R10=88.0, mAP=47.0, mINP=25.0),
               dict(R1=60.2, R5=81.3, R10=88.2, mAP=47.17))


def test_formats():
    assert row().cell('R1') == '60.65 / 60.20 (+0.45)' and row().cell('R5') == '80.00 / 81.30 (-1.30)'
    assert row().cell('mINP') == '25.00'
    text, markdown, latex = (write('RSTPReid', reproduce_tables.table_header(), [row().cells()])
                             for write in reproduce_tables.FORMATS.values())
    assert '60.65 / 60.20 (+0.45)' in text and max(map(len, text.splitlines())) <= MAX_WIDTH
    assert text.count('a_run|1') == 2       # the first column again, next to the columns that do not fit
    header, rule, line = markdown.splitlines()[2:]
    assert header.count('|') == rule.count('|') == line.replace(r'\|', '').count('|') == 12 and r'a_run\|1' in line
    assert r'a\_run|1 & IRRA & sdm+mlm+id & 60.65 / 60.20 (+0.45) &' in latex
    assert latex.count('&') == 20 and latex.endswith(r'\end{tabular}')


def test_the_program_prints_each_format(runs, data, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['reproduce_tables.py'])
    main(['--logs', os.path.join(runs, 'CUHK-PEDES'), '--root_dir', data, '--device', 'cpu', '--format', 'text',
          'markdown', 'latex'])
    printed = capsys.readouterr().out
    assert '| run | method | losses |' in printed and r'\begin{tabular}' in printed and '+---' in printed


def test_a_run_of_attribute_recognition_is_a_row_with_ma(tmp_path, monkeypatch):
    """PA-100K has mA and no Rank-1."""
    (tmp_path / 'best.pth').write_bytes(b'weights')
    config = argparse.Namespace(data=argparse.Namespace(trained_on='PA-100K'))
    args = argparse.Namespace(**vars(run_of('attr', 'PA-100K', backbone='aptm')), config=config,
                              checkpoint=str(tmp_path / 'best.pth'))
    monkeypatch.setattr(reproduce_tables, 'read_run_options', lambda folder, overrides: args)
    metrics = dict.fromkeys(ATTRIBUTE_METRICS, 60.0)
    by = {'dataset': 'PA-100K', 'checkpoint_sha256': compute_sha256(args.checkpoint)}
    save_results(args, Results(attributes=metrics, independence={'holds': True}, provenance=by), {})
    for epoch in (1, 2):
        values = {**metrics, 'mA': 60.0 + epoch, 'split': 'test'}
        append_record(str(tmp_path), Record('evaluation', epoch, epoch, values))
    row, = run_rows(str(tmp_path), tmp_path)
    assert (row.note, row.measured) == ('nothing is published on PA-100K', metrics)
    text = reproduce_tables.format_table('PA-100K', [row], reproduce_tables.FORMATS['markdown'])
    assert '| mA | accuracy | precision | recall | F1 | mA last | mA mean of last 5 | note |' in text
    assert '| 60.00 | 60.00 | 60.00 | 60.00 | 60.00 | 62.00 | 61.50 | nothing' in text


# -- published rows --------------------------------------------------------------------------------------------------

def run_of(loss_names, dataset='CUHK-PEDES', pretrain_choice='ViT-B/16', php_parts=None, init_from='', backbone='clip',
           tuning='none'):
    return argparse.Namespace(loss_names=loss_names, dataset_name=dataset, pretrain_choice=pretrain_choice,
                              php_parts=php_parts, init_from=init_from, backbone=backbone, noisy_rate=0.0,
                              tuning=tuning, split='test', distractors=None)


@pytest.mark.parametrize('run, method', [(run_of('id+sdm+mlm'), 'IRRA'), (run_of('itc'), 'CLIP (itc)'),
                                         (run_of('sdm+mlm+id+cmt'), 'AGM'), (run_of('sdm+id+amm+detail'), 'A2TE'),
                                         (run_of('sdm+mlm+amm+detail'), 'A2TE'),
                                         (run_of('sdm+mlm+id+attribute+detail', 'ICFG-PEDES'), 'A2TE'),
                                         (run_of('sdm+mae+id+tri'), 'SEN'),
                                         (run_of('sdm+mae+id+tri', pretrain_choice='ViT-L/14'), 'SEN-XL'),
                                         (run_of('sdm+itc+aux', php_parts='crfm+efp'), 'PHP'),
                                         (run_of('sdm+itc', php_parts='crfm+efp'), 'PHP without aux'),
                                         (run_of('sdm+itc', php_parts='base'), 'PHP base'),
                                         (run_of('sdm+itc+aux', php_parts='efp'), 'PHP efp'), (run_of('sdm+itc'), None),
                                         (run_of('sdm+mlm+id', pretrain_choice='scratch:tiny'), None),
                                         (run_of('sdm+id', 'synthpedes'), None),
                                         (run_of('sdm+mlm+id', pretrain_choice='/weights/ViT-B-16.pt'), 'IRRA'),
                                         (run_of('sdm+mlm+id', init_from='weights/HAM/best0.pth'), 'HAM + IRRA'),
                                         (run_of('sdm+mlm+id', init_from='ham_irra.pth'), 'HAM + IRRA'),
                                         (run_of('sdm+mlm+id', 'RSTPReid', pretrain_choice='weights/nam.pth'),
                                          'NAM + IRRA'), (run_of('a-sdm+mlm+id+efa'), 'FMFA'),
                                         (run_of('sdm+mlm+id', init_from='logs/champion/best.pth'), 'IRRA'),
                                         (run_of('sdm+aux', tuning='dm-adapter'), 'DM-Adapter'),
                                         (run_of('sdm', tuning='dm-adapter'), None),
                                         (run_of('sdm+mlm+id', tuning='up-person'), None),
                                         (run_of('itc', init_from='ham.pth'), None), (run_of('sdm+tri'), None)])
def test_which_row_a_run_belongs_to(run, method):
    assert published_row(run).get('method') == method


def test_backbone_name():
    names = 'ViT-B/16', 'ViT-L-14.pt', 'w/ViT-B-32.safetensors', 'RN50', 'other.pt'
    assert [backbone_name(name) for name in names] == \
        ['ViT-B/16', 'ViT-L/14', 'ViT-B/32', 'RN50', 'other']


@pytest.mark.parametrize('dataset', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
def test_published_tables_are_whole(dataset):
    content = read_yaml(os.path.join(PUBLISHED, f'{dataset.lower()}.yaml'))
    assert content['dataset'] == dataset
    for entry in content['results']:
        assert entry['key'] in content['sources'] and entry['method'] and entry['backbone']
        assert len(entry['values']) == len(METRICS)
        given, ranks = ([value for value in entry['values'][:end] if value is not None] for end in (5, 3))
        assert entry['values'][0] and all(0 < value <= 100 for value in given) and ranks == sorted(ranks)
    irra, = (entry for entry in content['results'] if entry['method'] == 'IRRA')
    assert irra['values'][0] == {'CUHK-PEDES': 73.38, 'ICFG-PEDES': 63.46, 'RSTPReid': 60.20}[dataset]


def test_all_that_is_published_is_listed_on_request(runs, data, capsys):
    main(['--logs', os.path.join(runs, 'RSTPReid'), '--root_dir', data, '--published', '--format', 'markdown'])
    printed = capsys.readouterr().out
    line, = (line for line in printed.splitlines() if '| HAM + IRRA ' in line)
    assert '| / 71.35 ' in line and '| published ' in line and '| 2025 ' in line
    assert '| / 65.35 ' in next(line for line in printed.splitlines() if '| RDE ' in line)


def test_last_and_mean_stand_beside_the_best(runs, data):
    """Figures of the journal; none where another split was looked at while training."""
    folder = folder_of(runs, 'irra')
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        last = [line for line in map(json.loads, file) if line['kind'] == 'evaluation'][-1]
    more = [{**last, 'epoch': epoch, 'R1': r1} for epoch, r1 in ((2, 90.0), (3, 12.0), (4, 14.0), (5, 16.0), (6, 18.0),
                                                                 (7, 20.0))]
    with open(os.path.join(folder, 'metrics.jsonl'), 'a') as file:
        file.writelines(json.dumps(line) + '\n' for line in more)
    row, = run_rows(folder, runs, ['--root_dir', data])
    assert dict(zip(reproduce_tables.table_header(), row.cells()))['R1 last'] == '20.00'
    assert dict(zip(reproduce_tables.table_header(), row.cells()))['R1 mean of last 5'] == '16.00'
    with open(os.path.join(folder, 'metrics.jsonl'), 'a') as file:
        file.write(json.dumps({**last, 'epoch': 8, 'split': 'val'}) + '\n')
    row, = run_rows(folder, runs, ['--root_dir', data])
    assert row.cells()[-3:-1] == ['-', '-']

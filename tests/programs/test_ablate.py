"""Grids of runs: trained, stopped, gone on with, and their table."""
import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

import train as train_program
from processor.results import Record, append_record
from run_scripts import ROOT, ablate
from run_scripts.ablation import training
from run_scripts.ablation.grid import EPOCHS, build_ablation_parser, build_grid
from run_scripts.ablation.table import EPOCH_HEADINGS, Table, format_mean
from run_scripts.ablation.training import failure_reason, format_result, lock_cell
from tests.several import ForkedProgram
from tests.support import HANG_TIMEOUT
from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.parser import split_at_dashes
from utils.tables import ATTRIBUTE_METRICS, METRICS
from utils.weight_files import compute_sha256


@pytest.fixture(scope='module')
def common(data, clip):
    """Flags of every train.py."""
    return ['--', '--dataset_name', 'CUHK-PEDES', '--root_dir', data, '--pretrain_choice', clip, '--img_size', '64',
            '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu', '--lr', '1e-3', '--num_epoch', '2',
            '--cmt_depth', '1']


@contextlib.contextmanager
def forked_trainings():
    """The grid forks train.py, with a small vocabulary, instead of starting it."""
    def fork(command, stdout, **_):
        return ForkedProgram(train_program.main, command[2:], stdout.name)
    forking = SimpleNamespace(Popen=fork, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'subprocess', forking)
        yield


@pytest.fixture(scope='module')
def grid(common, tmp_path_factory):
    """A grid of two losses and two seeds: after a Ctrl-C in its second run (`stopped`), and after the same command."""
    folder = tmp_path_factory.mktemp('grid')
    command = ['--loss_names', 'sdm', 'sdm+id', '--seeds', '1', '2', '--output_dir', str(folder), *common]

    def stop_the_second_run():
        while not list(folder.glob('sdm+id_seed1_*/CUHK-PEDES/*/last.pth')):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    stopping = threading.Thread(target=stop_the_second_run, daemon=True)
    stopping.start()
    with forked_trainings():
        status = ablate.main(command)
    table, finished = (folder / 'table.txt').read_text(), {path.parent.name for path in folder.glob('*/result.json')}
    stopping.join(HANG_TIMEOUT)
    assert not stopping.is_alive(), 'the second run ended before it could be stopped'
    runs = {str(path) for path in folder.glob('*/CUHK-PEDES/*')}
    times = {path: path.stat().st_mtime_ns for path in folder.glob('*/result.json')}
    stopped = status, table, finished
    with forked_trainings():
        status = ablate.main(command)
    return dict(folder=folder, command=command, stopped=stopped, runs=runs, times=times, status=status)


def test_every_epoch_has_a_heading():
    assert tuple(EPOCH_HEADINGS) == EPOCHS


def cells_of(command):
    original, after = split_at_dashes(command)
    return build_grid(build_ablation_parser().parse(original), after)


def line_of(text, start):
    """The cells of a row. They may have several lines, and a wide table continues below with its first column again."""
    parts, is_row = [], False
    for line in text.splitlines():
        first, *others = (cell.strip() for cell in line.strip('|').split('|'))
        if not line.startswith('|') or first:
            is_row = line.startswith(f'| {start} ')
            parts += [others] if is_row else []
        elif is_row:
            parts[-1] = [' '.join(filter(None, lines)) for lines in zip(parts[-1], others)]
    return [start, *(cell for cells in parts for cell in cells)]


def without_training(monkeypatch):
    monkeypatch.setattr(subprocess, 'Popen', lambda *_, **__: pytest.fail('a run was started'))


# -- a grid ----------------------------------------------------------------------------------------------------------

def test_ctrl_c_ends_the_grid_after_saving(grid):
    status, table, finished = grid['stopped']
    assert status == 130 and [name.startswith('sdm_seed1_') for name in finished] == [True]
    assert line_of(table, 'sdm')[1] == '1' and line_of(table, 'sdm')[-1] == 'seed 2: not trained yet'
    assert line_of(table, 'sdm+id')[1:3] == ['0', '-']
    assert line_of(table, 'sdm+id')[-1] == 'seed 1: not finished; seed 2: not trained yet'


def test_the_same_command_goes_on(grid):
    assert grid['status'] == 0 and len(grid['runs']) == 2
    runs = {str(path) for path in grid['folder'].glob('*/CUHK-PEDES/*')}
    # the stopped one in its own folder
    assert len(runs) == 4 and grid['runs'] < runs
    # the finished one left alone
    assert all(path.stat().st_mtime_ns == moment for path, moment in grid['times'].items())
    resumed, = grid['folder'].glob('sdm+id_seed1_*/output.txt')
    assert 'resumed at epoch' in resumed.read_text()


def test_results_are_those_of_the_best_checkpoints(grid):
    for cell in cells_of(grid['command'])[1]:
        path, = grid['folder'].glob(f'{os.path.basename(cell.folder)}/CUHK-PEDES/*/best.pth')
        best = read_checkpoint(path)
        assert cell.result['metrics'] == best['metrics'] and cell.result['epoch'] == best['epoch']
        assert best['val_dataset'] == 'test'
        assert not (path.parent / 'last.pth').exists() and (path.parent / 'configs.yaml').exists()


def test_the_table_holds_mean_and_sample_deviation(grid, capsys, monkeypatch):
    without_training(monkeypatch)
    before = (grid['folder'] / 'table.txt').read_text()
    assert ablate.main(['--table_only', *grid['command']]) == 0
    assert capsys.readouterr().out == before == (grid['folder'] / 'table.txt').read_text()
    runs = {(cell.setting[0], cell.seed): cell.result['metrics'] for cell in cells_of(grid['command'])[1]}
    for losses in ('sdm', 'sdm+id'):
        expected = []
        for figure in METRICS:
            a, b = runs[losses, 1][figure], runs[losses, 2][figure]
            expected.append(f'{(a + b) / 2:.2f} ± {abs(a - b) / 2 ** 0.5:.2f}')
        assert line_of(before, losses) == [losses, '2', *expected, '']
        markdown = (grid['folder'] / 'table.md').read_text()
        assert line_of(markdown, losses)[2:-1] == expected
        latex_row = ' & '.join([losses, '2', *expected]).replace('±', r'$\pm$')
        assert latex_row in (grid['folder'] / 'table.tex').read_text()
    assert 'color words, garment bands' in markdown and 'on the test split' in before
    assert not list(grid['folder'].glob('*.tmp'))


def test_a_finished_run_names_its_measure():
    assert format_result({'metrics': {'mA': 50.0, 'F1': 1.0}, 'epoch': 2}) == 'finished, mA 50.00 at epoch 2'
    assert format_result({'metrics': {'R1': 50.0, 'mAP': 1.0},
                                 'epoch': 2}) == 'finished, Rank-1 50.00 at epoch 2'


@pytest.mark.parametrize('epoch, epochs, r1, heading', [
    ('best', '2', 30.0, 'at the epoch with its best Rank-1 on the test split'),
    ('last', '4', 20.0, 'after its last epoch, on the test split'),
    ('mean', '1 2 3 4', 22.5, "evaluations in its last five epochs, on the test split")])
def test_tables_of_other_epochs(common, tmp_path, monkeypatch, capsys, epoch, epochs, r1, heading):
    stub(monkeypatch, tmp_path, FINISHED)
    command = ['--loss_names', 'sdm', '--output_dir', str(tmp_path / 'out'), '--epoch', epoch, *common]
    assert ablate.main(command) == 0
    without_training(monkeypatch)
    assert ablate.main(['--table_only', *command]) == 0
    stem = {'best': 'table'}.get(epoch, f'table_{epoch}')
    table = (tmp_path / 'out' / f'{stem}.txt').read_text()
    assert heading in table and line_of(table, 'sdm')[1:3] == ['1', f'{r1:.2f} ± -']
    assert capsys.readouterr().out.endswith(table)
    with open(tmp_path / 'out' / f'{stem}.csv', newline='') as file:
        run, = (row for row in csv.DictReader(file) if row['kind'] == 'run')
    assert (run['epoch'], float(run['R1'])) == (epochs, r1)
    assert {path.name for path in (tmp_path / 'out').glob('table*')} == {f'{stem}.{kind}'
                                                                         for kind in ('txt', 'md', 'tex', 'csv')}


def test_csv_has_every_run(grid):
    with open(grid['folder'] / 'table.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    runs = [row for row in rows if row['kind'] == 'run']
    assert [row['kind'] for row in rows] == ['mean'] * 2 + ['run'] * 4 + ['baseline'] * 2
    assert {(row['losses'], row['seed']) for row in runs} == {(losses, seed) for losses in ('sdm', 'sdm+id')
                                                              for seed in '12'}
    values = [float(row['mAP']) for row in runs if row['losses'] == 'sdm']
    assert float(rows[0]['mAP']) == pytest.approx(statistics.mean(values))
    assert float(rows[0]['mAP_std']) == pytest.approx(statistics.stdev(values))
    assert all(os.path.isdir(row['folder']) for row in runs) and 0 < float(rows[-1]['R1']) <= 100


def test_a_broken_run_is_a_row_and_others_go_on(grid, clip, capsys):
    common = [word for word in grid['command'][grid['command'].index('--'):] if word not in ('--pretrain_choice', clip)]
    command = ['--loss_names', 'sdm', '--seeds', '1', '--vary', 'pretrain_choice', 'nowhere.pt', clip,
               '--output_dir', str(grid['folder'])]
    began = {path.parent: path.stat().st_mtime_ns for path in grid['folder'].glob('*/output.txt')}
    with forked_trainings():
        assert ablate.main([*command, *common]) == 1
    output = capsys.readouterr()
    # another grid has trained it with the same settings
    assert '1 of 2 runs are finished already' in output.err
    assert all(path.joinpath('output.txt').stat().st_mtime_ns == moment for path, moment in began.items())
    lines = (grid['folder'] / 'table.md').read_text().splitlines()      # in one line for each row
    broken, expected = (next(line for line in lines if name in line) for name in ('nowhere.pt', clip))
    assert '| seed 1: ' in broken and 'nowhere.pt' in broken.split('seed 1: ')[1] and 'Traceback' not in output.out
    assert 'failed: ' in output.err and ' ± - ' in expected


# -- what happens to a run -------------------------------------------------------------------------------------------

def stub(monkeypatch, tmp_path, code):
    """train.py replaced by ``code``."""
    (tmp_path / 'train.py').write_text(code)
    monkeypatch.setattr(training, 'ROOT', str(tmp_path))


FINISHED = '''
import json, os, sys
folder = os.path.join(sys.argv[sys.argv.index('--output_dir') + 1], 'CUHK-PEDES', 'run')
os.makedirs(folder, exist_ok=True)
for name in ('last.pth', 'best.pth'):
    open(os.path.join(folder, name), 'w').close()
with open(os.path.join(folder, 'metrics.jsonl'), 'w') as file:
    for epoch, r1 in enumerate((10, 30, 30, 20), 1):
        figures = {'R1': r1, 'R5': 50.0 + epoch, 'R10': 60.0, 'mAP': 20.0, 'mINP': 5.0}
        entry = {'kind': 'evaluation', 'epoch': epoch, 'step': epoch, **figures, 'split': 'test'}
        file.write(json.dumps(entry) + '\\n')
'''


@pytest.mark.parametrize('keep, left', [('none', set()), ('best', {'best.pth'}), ('all', {'best.pth', 'last.pth'})])
def test_what_a_finished_run_leaves(common, tmp_path, monkeypatch, capsys, keep, left):
    stub(monkeypatch, tmp_path, FINISHED)
    command = ['--loss_names', 'sdm', '--keep', keep, '--output_dir', str(tmp_path / 'out'), *common]
    assert ablate.main(command) == 0
    folder, = (tmp_path / 'out').glob('*/CUHK-PEDES/run')
    assert {path.name for path in folder.glob('*.pth')} == left
    cell, = cells_of(command)[1]
    # the first of equal bests
    assert cell.result['epoch'] == 2 and cell.result['metrics']['R5'] == 52.0
    assert line_of((tmp_path / 'out' / 'table.txt').read_text(), 'sdm')[1:3] == ['1', '30.00 ± -']
    without_training(monkeypatch)
    assert ablate.main(command) == 0


def test_a_run_does_not_remove_the_checkpoints_that_the_grid_reads(common, tmp_path, monkeypatch):
    (tmp_path / 'recipe.yaml').write_text('keep: best\n')
    stub(monkeypatch, tmp_path, FINISHED + "assert sys.argv[sys.argv.index('--keep') + 1] == 'all'\n")
    assert ablate.main(['--config_file', str(tmp_path / 'recipe.yaml'), '--loss_names', 'sdm',
                        '--output_dir', str(tmp_path / 'out'), *common]) == 0


def test_a_single_seed_and_results_on_other_datasets_are_told(common, tmp_path, monkeypatch, capsys):
    stub(monkeypatch, tmp_path, FINISHED)
    command = ['--loss_names', 'sdm', '--output_dir', str(tmp_path / 'out'), *common]
    assert ablate.main(command) == 0
    markdown = (tmp_path / 'out' / 'table.md').read_text()     # in one line for each row
    assert line_of(markdown, 'sdm')[-1] == 'one seed has no deviation'
    best, = (tmp_path / 'out').glob('*/CUHK-PEDES/run/best.pth')
    elsewhere = dict.fromkeys(METRICS, 12.5)
    for dataset, checksum in (('RSTPReid', compute_sha256(best)), ('ICFG-PEDES', 'of other weights'),
                              ('CUHK-PEDES', compute_sha256(best))):
        content = {'results': {'test': {'t2i': elsewhere}}, 'independence': {'holds': True},
                   'produced_by': {'dataset': dataset, 'checkpoint_sha256': checksum}}
        best.with_name(f'metrics_{dataset}.json').write_text(json.dumps(content))
    assert ablate.main(['--table_only', *command]) == 0
    lines = (tmp_path / 'out' / 'table.md').read_text().splitlines()
    original, other = (line for line in lines if line.startswith('| sdm '))
    assert '30.00 ± -' in original and '12.50 ± -' in other and 'tested on RSTPReid, test split' in other


@pytest.mark.parametrize('code, why', [
    ('import os; os.kill(os.getpid(), 9)', 'train.py was ended by SIGKILL'),
    ('raise SystemExit(143)', 'another program stopped train.py; start the grid again to continue the run'),
    ('raise SystemExit(3)', 'train.py exited with status 3'),
    ('import sys; sys.exit("a\\ntrain.py: error: no image x\\nlast words")', 'no image x'),
    ('x = 1 / 0', 'ZeroDivisionError: division by zero')])
def test_why_a_run_broke(common, tmp_path, monkeypatch, capsys, code, why):
    stub(monkeypatch, tmp_path, code)
    command = ['--loss_names', 'sdm', '--seeds', '1', '2', '--output_dir', str(tmp_path / 'out'), *common]
    assert ablate.main(command) == 1
    assert line_of(capsys.readouterr().out, 'sdm')[-1] == f'seeds 1, 2: {why}'
    stub(monkeypatch, tmp_path, FINISHED)                                     # a broken one is tried again
    assert ablate.main(command) == 0


def test_a_stopped_grid_names_the_signal(common, tmp_path, monkeypatch, capsys):
    stub(monkeypatch, tmp_path, 'import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(3600)')
    assert ablate.main(['--loss_names', 'sdm', '--output_dir', str(tmp_path / 'out'), *common]) == 130
    assert 'stopped by SIGTERM; continue with: python run_scripts/ablate.py --loss_names sdm' in capsys.readouterr().err


def test_long_errors_are_cut_in_the_table(common, tmp_path, monkeypatch, capsys):
    stub(monkeypatch, tmp_path, 'import sys; sys.exit("train.py: error: at epoch 1 the batch: " + "image.jpg, " * 500)')
    ablate.main(['--loss_names', 'sdm', '--output_dir', str(tmp_path / 'out'), *common])
    assert len(line_of(capsys.readouterr().out, 'sdm')[-1]) < 220


def test_a_run_that_another_process_is_at_is_left_alone(common, tmp_path, monkeypatch, capsys):
    command = ['--loss_names', 'sdm', '--output_dir', str(tmp_path), *common]
    cell, = cells_of(command)[1]
    without_training(monkeypatch)
    with lock_cell(cell) as held:
        assert held
        assert ablate.main(command) == 1
    assert 'another process trains it' in capsys.readouterr().err


def test_a_result_cut_short_is_none(common, tmp_path):
    cell, = cells_of(['--loss_names', 'sdm', '--output_dir', str(tmp_path), *common])[1]
    os.makedirs(cell.folder)
    for content in ('{"metr', '[]', '{"metrics": null}', json.dumps({'metrics': {'R1': 1.0}})):
        with open(cell.path('result.json'), 'w') as file:
            file.write(content)
        assert cell.result == {} and not cell.is_finished


def test_a_table_of_attribute_recognition(common, tmp_path):
    """PA-100K has mA and no Rank-1."""
    _, cells = cells_of(['--loss_names', 'sdm', '--seeds', '1', '2', '--output_dir', str(tmp_path), *common])
    for cell, value in zip(cells, (70.0, 80.0)):
        folder = os.path.join(cell.folder, 'PA-100K', 'run')
        os.makedirs(folder)
        for epoch in (1, 2):
            metrics = {**dict.fromkeys(ATTRIBUTE_METRICS, 60.0), 'mA': value - epoch, 'split': 'test'}
            append_record(folder, Record('evaluation', epoch, epoch, metrics))
        with open(cell.path('result.json'), 'w') as file:
            json.dump(training.read_best_evaluation(folder), file)
    table = Table(str(tmp_path), ('losses',), cells)
    assert table.columns == ATTRIBUTE_METRICS and table.is_complete
    assert line_of(table.write(), 'sdm') == ['sdm', '2', '74.00 ± 7.07', *['60.00 ± 0.00'] * 4, '']
    assert 'at the epoch with its best mA on the test split' in table.heading
    with open(tmp_path / 'table.csv', newline='') as file:
        mean, *runs = (row for row in csv.DictReader(file) if row['kind'] != 'baseline')
    assert (float(mean['mA']), mean['n']) == (74.0, '2') and [float(run['mA']) for run in runs] == [69.0, 79.0]
    assert [cell.evaluation('last')[0]['mA'] for cell in cells] == [68.0, 78.0]


# -- the grid's settings ---------------------------------------------------------------------------------------------

def test_places_follow_from_what_is_trained(common, tmp_path):
    def folder_names(*words, after=()):
        return [os.path.basename(cell.folder) for cell in cells_of([*words, '--output_dir', str(tmp_path), *common,
                                                                    *after])[1]]
    first, = folder_names('--loss_names', 'sdm')
    assert folder_names('--loss_names', 'sdm', after=['--num_workers', '3', '--name', 'x',
                                                      '--device', 'cuda']) == [first]
    # the default
    assert folder_names('--loss_names', 'sdm', after=['--weight_decay', '4e-5']) == [first]
    others = [folder_names('--loss_names', 'sdm', after=[flag, value])[0]
              for flag, value in (('--lr', '2e-3'), ('--num_epoch', '3'), ('--init_from', __file__),
                                  ('--root_dir', '.'))]
    assert len({first, *others, *folder_names('--loss_names', 'sdm', '--seeds', '2')}) == 6


def test_every_combination_with_values_of_all_kinds(tmp_path):
    names, cells = cells_of(['--config_file', os.path.join(ROOT, 'configs/irra.yaml'), '--seeds', '1', '2',
                             '--vary', 'MLM', 'true', 'false', '--vary', 'img_size', '384 128', '256 128',
                              '--vary', 'lr', '1e-5', '3e-5', '1e-4', '--', '--dataset_name', 'RSTPReid'])
    assert names == ('losses', 'MLM', 'img_size', 'lr') and len(cells) == len({cell.folder for cell in cells}) == 24
    # an interrupted grid has every setting
    assert [cell.seed for cell in cells] == [1] * 12 + [2] * 12
    of_one = {(c.args.MLM, c.args.img_size, c.args.lr) for c in cells if c.setting[1:] == ('false', '256 128', '3e-5')}
    assert of_one == {(False, (256, 128), 3e-5)} and cells[0].args.dataset_name == 'RSTPReid'
    assert cells[0].folder.startswith(os.path.join('logs', 'ablation', 'irra_rstpreid', ''))


def test_tunings_are_one_command():
    names, cells = cells_of(['--config_file', os.path.join(ROOT, 'configs/irra.yaml'), '--loss_names', 'sdm',
                             '--vary', 'tuning', 'lora', 'prefix', 'adapter'])
    assert names == ('losses', 'tuning') and [cell.args.tuning for cell in cells] == ['lora', 'prefix', 'adapter']


@pytest.mark.parametrize('recipe, dataset, folder', [
    ('irra', 'CUHK-PEDES', 'irra_cuhk-pedes'), ('a2te-icfg-pedes', 'ICFG-PEDES', 'a2te_icfg-pedes'),
    ('tbps-clip', 'CUHK-PEDES+RSTPReid', 'tbps-clip_cuhk-pedes+rstpreid'),
    ('synthpedes/quickstart', 'synthpedes', 'synthpedes_quickstart'), ('', 'RSTPReid', 'defaults')])
def test_the_folder_of_a_grid_is_named_for_recipe_and_dataset(recipe, dataset, folder):
    words = ['--config_file', os.path.join(ROOT, 'configs', f'{recipe}.yaml')] if recipe else []
    _, cells = cells_of([*words, '--', '--dataset_name', dataset])
    assert {os.path.dirname(cell.folder) for cell in cells} == {os.path.join('logs', 'ablation', folder)}


@pytest.mark.parametrize('words, after, sentence', [
    (['--loss_names', 'sdm', 'sdn'], [], "sdn, seed 1: unknown loss 'sdn'.*did you mean sdm"),
    (['--loss_names', 'sdm', '--vary', 'power', '1', 'much'], [], 'sdm, power much, seed 1: .*--power.*much'),
    (['--vary', 'temprature', '1'], [], "unknown flag 'temprature'; did you mean temperature"),
    (['--vary', 'MLM', 'perhaps'], [], "'perhaps' must be true or false"),
    (['--vary', 'power'], [], '--vary power has no values'),
    (['--vary', 'power', '1', '--vary', 'power', '2'], [], '--vary power is given twice'),
    (['--vary', 'seed', '1', '2'], [], 'the grid sets this flag; use --seeds of ablate.py'),
    (['--vary', 'device', 'cpu', 'cuda'], [], 'does not change the trained model'),
    (['--vary', 'lr', '1', '2'], [], '--lr is both varied and given after --'),
    (['--seeds', '1', '1'], [], "same run twice"),
    (['--vary', 'power', '0.5', '5e-1'], [], "same run twice, 'sdm\\+id\\+mlm, power 0.5, seed 1' and"),
    (['--seeds', '-1'], [], '--seeds'),
    (['--seed', '1'], [], 'unknown flag --seed; did you mean --seeds'),
    (['sdm'], [], "'sdm' follows no flag"),
    ([], ['--seed', '3'], 'use --seeds before --'),
    ([], ['--resume'], "--resume after -- does not apply to a grid's runs"),
    ([], ['--test'], "--test after -- does not apply to a grid's runs"),
    ([], ['--learning_rate', '3'], 'unknown flag --learning_rate'),
    (['--config_file', 'nowhere.yaml'], [], 'no config file nowhere.yaml'),
    ([], ['--root_dir', 'nowhere'], 'no dataset folder'),
    ([], ['--dataset_name', 'CUHK'], "unknown dataset 'CUHK'; did you mean CUHK-PEDES"),
    ([], ['--output_dir', 'there'], 'use --output_dir before --'),
    ([], ['--keep', 'last'], 'use --keep before --')])
def test_nothing_is_trained_by_a_wrong_command(common, tmp_path, monkeypatch, words, after, sentence):
    without_training(monkeypatch)
    with pytest.raises(UserError, match=sentence) as raised:
        ablate.main([*words, '--output_dir', str(tmp_path / 'out'), *common, *after])
    assert '\n' not in str(raised.value) and not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_written(common, tmp_path):
    (tmp_path / 'file').write_text('')
    for only in ([], ['--table_only']):
        with pytest.raises(UserError, match='cannot .*file.*; choose another --output_dir'):
            ablate.main(['--loss_names', 'sdm', *only, '--output_dir', str(tmp_path / 'file' / 'x'), *common])


def test_mean_and_spread():
    assert [format_mean(values) for values in ([], [50.0], [1.0, 2.0, 4.0])] == ['-', '50.00 ± -', '2.33 ± 1.53']


def test_why_broken_without_output(tmp_path):
    (tmp_path / 'output.txt').write_bytes(b'\xff\n\n')
    assert failure_reason(1, tmp_path / 'output.txt') == '\ufffd'

"""``--logger``: what each logger gets from a run, from a resumed one, and what happens if one fails."""
import csv
import json
import logging
import os
import re
import sys
import types

import pytest

from processor import loggers as loggers_package
from processor.interrupt import Interrupted
from processor.loggers import MetricsLogger, registry, require_packages
from processor.progress import MetricsLog
from run_scripts import ROOT
from tests.support import options
from utils.errors import UserError
from utils.options import build_parser, get_args


class Recorder(MetricsLogger):
    """Keeps its calls."""
    name, records = 'recorder', 'records'
    fails_at = None

    def __init__(self, folder, options, step=0, history=()):
        super().__init__(folder, options, step, history)
        self.calls, self.start = [], (options, step, history)

    def log(self, metrics, step, epoch):
        if step == self.fails_at:
            raise ValueError('the server is gone\nand more')
        self.calls.append((metrics, step, epoch))

    def close(self):
        self.calls.append('closed')


class Rewinding(Recorder):
    name, rewinds = 'rewinding', True


@pytest.fixture
def recorders(monkeypatch):
    """Registers both recorders and returns their class."""
    monkeypatch.setattr('processor.progress.registry',
                        lambda: {**registry(), 'recorder': Recorder, 'rewinding': Rewinding})
    return Recorder


def write_steps(metrics_log, steps):
    for step in steps:
        metrics_log.write('train', 1, step, {'loss': 10.0 / step, 'split': 'test'})


def test_loggers_get_the_numbers_of_each_record(tmp_path, recorders):
    metrics_log = MetricsLog(str(tmp_path), loggers=('recorder', 'none'), options={'lr': 0.1})
    recorder, _ = metrics_log.loggers
    write_steps(metrics_log, [1, 2])
    metrics_log.write('evaluation/RSTPReid', 1, 2, {'R1': 60.5, 'split': 'val'})
    metrics_log.close()
    assert recorder.start == ({'lr': 0.1}, 0, [])
    assert recorder.calls == [({'train/loss': 10.0}, 1, 1), ({'train/loss': 5.0}, 2, 1),
                              ({'evaluation/RSTPReid/R1': 60.5}, 2, 1), 'closed']
    assert not [name for name in os.listdir(tmp_path) if 'tfevents' in name]


def test_a_resumed_run_logs_each_record_once(tmp_path, recorders):
    write_steps(MetricsLog(str(tmp_path), loggers=()), [1, 2, 3, 4])        # killed, with a checkpoint after step 2
    metrics_log = MetricsLog(str(tmp_path), step=2, loggers=('recorder', 'rewinding'))
    recorder, rewinding = metrics_log.loggers
    write_steps(metrics_log, [3, 4, 5])
    kept = [({'train/loss': 10.0}, 1, 1), ({'train/loss': 5.0}, 2, 1)]
    assert recorder.start[1:] == rewinding.start[1:] == (2, kept)
    assert [step for _, step, _ in recorder.calls] == [5]
    assert [step for _, step, _ in rewinding.calls] == [3, 4, 5]


def test_a_failing_logger_is_one_warning(tmp_path, recorders, monkeypatch, caplog):
    monkeypatch.setattr(Rewinding, 'fails_at', 2)
    caplog.set_level(logging.WARNING, 'Pedestal.train')
    metrics_log = MetricsLog(str(tmp_path), loggers=('rewinding', 'recorder'))
    failing, recorder = metrics_log.loggers
    write_steps(metrics_log, [1, 2, 3])
    metrics_log.close()
    assert [record.getMessage() for record in caplog.records] == [
        'records cannot be written (the server is gone): the run continues without them; metrics.jsonl has all metrics']
    assert len(recorder.calls) == 4 and failing.calls[1:] == ['closed']

    monkeypatch.setattr(Recorder, '__init__', lambda *_: 1 / 0)
    write_steps(MetricsLog(str(tmp_path), 3, loggers=('recorder',)), [4])
    assert 'records cannot be written (division by zero)' in caplog.text
    assert len(open(tmp_path / 'metrics.jsonl').readlines()) == 4


def test_a_signal_is_no_failure(tmp_path, recorders, monkeypatch):
    def log(*_):
        raise Interrupted(2)
    monkeypatch.setattr(Recorder, 'log', log)
    with pytest.raises(Interrupted):
        write_steps(MetricsLog(str(tmp_path), loggers=('recorder',)), [1])


def read_rows(folder):
    with open(folder / 'metrics.csv', newline='') as file:
        return list(csv.reader(file))


def test_csv_rows_of_a_killed_run_are_those_of_a_whole_one(tmp_path):
    for name, first_part in (('whole', [1, 2, 3]), ('killed', [1, 2])):
        (tmp_path / name).mkdir()
        write_steps(MetricsLog(str(tmp_path / name), loggers=('csv',)), first_part)
    with open(tmp_path / 'killed' / 'metrics.csv', 'a') as file:
        file.write('2,1,train/lo')      # cut off by the kill
    write_steps(MetricsLog(str(tmp_path / 'killed'), step=1, loggers=('csv',)), [2, 3])
    assert read_rows(tmp_path / 'killed') == read_rows(tmp_path / 'whole') == [
        ['step', 'epoch', 'metric', 'value'], ['1', '1', 'train/loss', '10.0'], ['2', '1', 'train/loss', '5.0'],
        ['3', '1', 'train/loss', repr(10 / 3)]]


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    require_packages(('csv', 'none'))
    with pytest.raises(UserError, match='^--logger wandb needs the package wandb, which is not installed: pip install '
                                        'wandb, or leave wandb out$'):
        require_packages(('csv', 'wandb'))


@pytest.mark.parametrize('words, message', [
    (['csvs'], "invalid choice: 'csvs'; did you mean csv"), (['none', 'csv'], '--logger none csv: none excludes all')])
def test_wrong_names_are_one_sentence(words, message):
    with pytest.raises(UserError, match=message):
        get_args(['--logger', *words])


def test_the_default_is_tensorboard_and_names_count_once():
    assert options().logger == ('tensorboard',)
    assert get_args(['--logger', 'csv', 'tensorboard', 'csv']).logger == ('csv', 'tensorboard')
    assert build_parser().expand_flag('--log') == '--log_period'


# -- wandb and MLflow, with modules that record calls ------------------------------------------------------------------

class Calls:
    """An object whose methods record their names and arguments, and return the object or a set result."""

    def __init__(self, results=None):
        self.calls, self.results = [], results or {}

    def __getattr__(self, name):
        def method(*arguments, **settings):
            self.calls.append((name, arguments, settings))
            return self.results.get(name, self)
        return method

    def arguments_of(self, name):
        return [(arguments, settings) for called, arguments, settings in self.calls if called == name]


def run_twice(folder, name):
    """Log two steps, then resume from the first one, repeat the second and log a third."""
    for step, steps in ((0, [1, 2]), (1, [2, 3])):
        metrics_log = MetricsLog(str(folder), step, loggers=(name,), options={'lr': 0.1})
        assert len(metrics_log.loggers) == 1
        write_steps(metrics_log, steps)
        metrics_log.write('epoch', 1, steps[-1], {'loss': 7.0})
        assert len(metrics_log.loggers) == 1
        metrics_log.close()


# The calls that both services get: (metrics, step).
EXPECTED = [({'train/loss': 10.0}, 1), ({'train/loss': 5.0}, 2), ({'epoch/loss': 7.0}, 2),
            ({'train/loss': 10.0 / 3}, 3), ({'epoch/loss': 7.0}, 3)]


def test_wandb_resumes_its_run(tmp_path, monkeypatch):
    wandb = Calls()
    wandb.config = Calls()
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    run_twice(tmp_path, 'wandb')
    (_, first), (_, second) = wandb.arguments_of('init')
    assert first == second and first['resume'] == 'allow' and first['dir'] == str(tmp_path)
    assert first['id'] == (tmp_path / 'wandb_run_id.txt').read_text().strip()
    assert [arguments[0] for arguments, _ in wandb.arguments_of('log')] == [
        {'step': step, 'epoch': 1, **metrics} for metrics, step in EXPECTED]
    assert len(wandb.arguments_of('finish')) == 2
    assert wandb.config.arguments_of('update')[0][0] == ({'lr': 0.1},)


def test_a_damaged_run_id_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', Calls())
    (tmp_path / 'wandb_run_id.txt').write_text('../a b')
    with pytest.raises(UserError, match='wandb_run_id.txt has no id of a run: delete it, and --logger wandb starts a'):
        MetricsLog(str(tmp_path), loggers=('wandb',))


def test_mlflow_resumes_its_run(tmp_path, monkeypatch):
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id='abc123'))
    client = Calls({'create_run': run, 'get_experiment_by_name': None, 'create_experiment': '7'})
    stores = []
    modules = {'mlflow': types.ModuleType('mlflow'),
               'mlflow.entities': types.SimpleNamespace(Metric=lambda *fields: fields, Param=lambda *fields: fields),
               'mlflow.tracking': types.SimpleNamespace(
                   MlflowClient=lambda tracking_uri: stores.append(tracking_uri) or client)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    run_twice(tmp_path, 'mlflow')
    assert stores == [(tmp_path / 'mlruns').as_uri()] * 2
    assert client.arguments_of('create_run') == [(('7',), {'run_name': tmp_path.name})]
    assert client.arguments_of('update_run') == [(('abc123',), {'status': 'RUNNING'})]
    batches = [settings for _, settings in client.arguments_of('log_batch')]
    assert batches[0] == {'params': [('lr', '0.1')]}
    assert [({name: value}, step) for batch in batches[1:] for name, value, _, step in batch['metrics']] == EXPECTED
    assert client.arguments_of('set_terminated') == [(('abc123',), {})] * 2


def test_real_mlflow_has_each_step_once(tmp_path, monkeypatch):
    tracking = pytest.importorskip('mlflow.tracking')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    run_twice(tmp_path, 'mlflow')
    client = tracking.MlflowClient((tmp_path / 'mlruns').as_uri())
    run_id = (tmp_path / 'mlflow_run_id.txt').read_text().strip()
    assert [metric.step for metric in client.get_metric_history(run_id, 'train/loss')] == [1, 2, 3]
    assert [metric.step for metric in client.get_metric_history(run_id, 'epoch/loss')] == [2, 3]
    assert client.get_run(run_id).data.params['lr'] == '0.1'


def test_real_wandb_writes_offline_files(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    run_twice(tmp_path, 'wandb')
    assert len([name for name in os.listdir(tmp_path / 'wandb') if name.startswith('offline-run-')]) == 2


# -- the documented example --------------------------------------------------------------------------------------------

def test_the_pages_logger_works(tmp_path, monkeypatch):
    with open(os.path.join(ROOT, 'docs', 'training_tools.md'), encoding='utf-8') as file:
        (name, code), = re.findall(r'```python\n# processor/loggers/(\w+\.py)\n(.*?)```', file.read(), flags=re.DOTALL)
    (tmp_path / 'plugins').mkdir()
    (tmp_path / 'plugins' / name).write_text(code)
    monkeypatch.setattr(loggers_package, '__path__', [*loggers_package.__path__, str(tmp_path / 'plugins')])
    registry.cache_clear()
    try:
        assert get_args(['--logger', 'latest']).logger == ('latest',)
        metrics_log = MetricsLog(str(tmp_path), loggers=('latest',), options={'name': 'irra'})
        write_steps(metrics_log, [1, 2])
        metrics_log.close()
        assert json.loads((tmp_path / 'latest.json').read_text()) == {
            'name': 'irra', 'step': 2, 'epoch': 1, 'train/loss': 5.0}
    finally:
        registry.cache_clear()

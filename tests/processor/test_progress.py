"""The reports of a run on a disk that fills up."""
import json
import logging
import os
import threading
import time

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from processor.progress import MetricsLog
from utils.errors import UserError
from utils.logger import setup_logger


@pytest.fixture
def fill_disk(monkeypatch):
    """A function that lets a method of TensorBoard's writer fail as on a full disk."""
    def fail(*_):
        raise OSError(28, os.strerror(28))

    def fill(method):
        monkeypatch.setattr(RecordWriter, method, fail)
    return fill


@pytest.mark.parametrize('method', ['write', 'flush'])
def test_a_run_continues_without_tensorboard(tmp_path, fill_disk, caplog, capfd, method):
    hook, metrics_log = threading.excepthook, MetricsLog(str(tmp_path))
    metrics_log.write('train', 1, 1, {'loss': 2.0, 'split': 'test'})
    fill_disk(method)
    caplog.set_level(logging.WARNING, 'Pedestal.train')
    for step in range(2, 40):
        metrics_log.write('train', 1, step, {'loss': 1.0, 'R1': 3.0})
        time.sleep(0.005)
    metrics_log.close()
    lines = [record for record in caplog.records if 'TensorBoard' in record.getMessage()]
    assert len(lines) == 1 and lines[0].getMessage() == (
        'TensorBoard events cannot be written (No space left on device): the run continues without them; metrics.jsonl '
        'has all metrics')
    assert 'Traceback' not in ''.join(capfd.readouterr()) and threading.excepthook == hook
    assert [json.loads(line)['step'] for line in open(tmp_path / 'metrics.jsonl')] == list(range(1, 40))


def test_a_full_disk_for_metrics_is_one_sentence(tmp_path, file_size_limit):
    metrics_log = MetricsLog(str(tmp_path))
    metrics_log.write('train', 1, 1, {'loss': 2.0})
    file_size_limit(os.path.getsize(tmp_path / 'metrics.jsonl'))
    with pytest.raises(UserError, match=f'^cannot write {tmp_path}/metrics.jsonl: File too large$'):
        metrics_log.write('train', 1, 2, {'loss': 2.0})
    metrics_log.close()


def test_a_log_file_on_a_full_disk_is_one_line(tmp_path, file_size_limit, capsys):
    logger = setup_logger('Pedestal', str(tmp_path), if_train=True)
    try:
        logger.info('before')
        file_size_limit(os.path.getsize(tmp_path / 'train_log.txt'))
        for number in range(3):
            logger.info('line %d', number)
    finally:
        setup_logger('Pedestal', '', if_train=True)
    out, errors = capsys.readouterr()
    message = f'{tmp_path}/train_log.txt cannot be written (File too large)'
    assert 'line 2' in out and out.count(message) == 1 and not errors


def test_errors_of_other_threads_are_printed_as_before(tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, 'excepthook', lambda args: seen.append(args.exc_type))
    metrics_log = MetricsLog(str(tmp_path))
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    metrics_log.close()
    assert seen == [ZeroDivisionError]


def test_a_folder_that_takes_no_events_is_one_sentence(tmp_path, fill_disk):
    hook = threading.excepthook
    fill_disk('flush')
    with pytest.raises(UserError, match=f'^cannot write into {tmp_path}: No space left on device$'):
        MetricsLog(str(tmp_path))
    assert threading.excepthook == hook

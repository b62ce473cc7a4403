"""The result files: metrics.jsonl, metrics.json and queries.csv, also of older versions and damaged."""
import argparse
import csv
import json
import logging

import numpy as np
import pytest

from processor.history import format_summary, summarize_evaluations
from processor.results import (
    ONE_BY_ONE, QUERY_COLUMNS, Record, Results, append_record, find_other_results, find_results, further_datasets,
    read_evaluations, read_metrics_log, read_queries, read_results, result_path, save_results, write_queries)
from utils.errors import UserError
from utils.queries import QueryResults
from utils.tables import ATTRIBUTE_METRICS, METRICS
from utils.weight_files import compute_sha256

RETRIEVAL, ATTRIBUTES = dict.fromkeys(METRICS, 50.0), dict.fromkeys(ATTRIBUTE_METRICS, 60.0)


# -- metrics.jsonl -----------------------------------------------------------------------------------------------------

def test_records_are_read_as_they_were_written(tmp_path):
    records = [Record('epoch', 1, 9, {'loss': 3.5}), Record('evaluation', 1, 9, {'R1': 10.0, 'split': 'val'}),
               Record('evaluation/B', 1, 9, {'R1': 5.0, 'split': 'val'})]
    for record in records:
        append_record(str(tmp_path), record)
    assert read_metrics_log(str(tmp_path)) == records and further_datasets(str(tmp_path)) == ['B']
    assert read_evaluations(str(tmp_path)) == records[1:2] and read_evaluations(str(tmp_path), 'B') == records[2:]
    first = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[0])
    assert first == {'kind': 'epoch', 'epoch': 1, 'step': 9, 'loss': 3.5}
    assert records[1].metrics == {'R1': 10.0} and records[1].is_evaluation and not records[0].is_evaluation


@pytest.mark.parametrize('line', [b'5', b'[]', b'{"kind": 1, "epoch": 1, "step": 1}', b'{"kind": "train", "epoch": 1}',
                                  b'{"kind": "train", "epoch": true, "step": 1}', b'\xff\xfe', b'', b'{"kind": "tr'])
def test_damaged_lines_are_skipped(tmp_path, line):
    good = Record('train', 1, 2, {'loss': 1.0})
    (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join([line, good.line.encode(), line]))
    assert read_metrics_log(str(tmp_path)) == [good] and Record.parse(line) is None


def test_attributes_are_summarized_by_ma(tmp_path):
    """Older versions wrote R1 as the key of every measure."""
    append_record(str(tmp_path), Record('evaluation', 1, 9, {'R1': 70.0, 'split': 'val'}))
    for epoch, value in ((2, 90.0), (3, 80.0)):
        append_record(str(tmp_path), Record('evaluation', epoch, 9 * epoch, {'mA': value, 'F1': 50.0, 'split': 'val'}))
    summary = summarize_evaluations(read_evaluations(str(tmp_path)))
    assert summary['best'] == {'mA': 90.0, 'F1': 50.0, 'epochs': [2]} and summary['mean']['mA'] == 80.0
    assert format_summary(summary) == ('during training, on the val split: best mA 90.000 at epoch 2, last 80.000 at '
                                       'epoch 3, mean of epochs 1 to 3 80.000')


def test_an_evaluation_without_numbers_does_not_count(tmp_path):
    append_record(str(tmp_path), Record('evaluation', 1, 9, {'split': 'val'}))
    assert read_evaluations(str(tmp_path)) == [] and summarize_evaluations([]) == {}


# -- metrics.json ------------------------------------------------------------------------------------------------------

def options(folder, checkpoint='best.pth', dataset='RSTPReid', split='test', distractors=None):
    (folder / checkpoint).write_bytes(checkpoint.encode())
    config = argparse.Namespace(data=argparse.Namespace(trained_on='RSTPReid'))
    return argparse.Namespace(checkpoint=str(folder / checkpoint), dataset_name=dataset, split=split,
                              distractors=distractors, config=config)


def provenance(args):
    return {'dataset': args.dataset_name, 'checkpoint_sha256': compute_sha256(args.checkpoint)}


@pytest.mark.parametrize('checkpoint, dataset, name', [
    ('best.pth', 'RSTPReid', 'metrics.json'), ('last.pth', 'RSTPReid', 'metrics_last.json'),
    ('best.pth', 'CUHK-PEDES', 'metrics_CUHK-PEDES.json'), ('last.pth', 'ICFG-PEDES', 'metrics_last_ICFG-PEDES.json')])
def test_the_names_of_files(tmp_path, checkpoint, dataset, name):
    assert result_path(options(tmp_path, checkpoint, dataset), 'metrics.json') == str(tmp_path / name)


def test_other_splits_and_galleries_have_names_of_their_own(tmp_path):
    names = {'metrics_val.json': {'split': 'val'}, 'metrics_distractors.json': {'distractors': 'photos'},
             'metrics_train_distractors_last_CUHK-PEDES.json': {
                 'split': 'train', 'distractors': 'photos', 'checkpoint': 'last.pth', 'dataset': 'CUHK-PEDES'}}
    for name, changes in names.items():
        assert result_path(options(tmp_path, **changes), 'metrics.json') == str(tmp_path / name)


def test_results_of_another_split_or_gallery_are_no_results_on_another_dataset(tmp_path):
    for changes in ({'split': 'val'}, {'distractors': 'photos'}, {}):
        args = options(tmp_path, dataset='CUHK-PEDES', **changes)
        by = {**provenance(args), 'split': args.split, 'distractors': bool(args.distractors)}
        save_results(args, Results({'a': {'t2i': RETRIEVAL}}, independence={'holds': True}, provenance=by), {})
    other, = find_other_results(args.checkpoint, 'RSTPReid')
    assert (other.provenance['split'], other.provenance['distractors']) == ('test', False)


def test_results_are_read_as_they_were_saved(tmp_path):
    args = options(tmp_path)
    results = Results({'a': {'t2i': RETRIEVAL}}, {'a': {'t2i': {'R1': [1.0, 2.0]}}}, {'colors': RETRIEVAL},
                      {'holds': True}, {'best': {'R1': 1.0}}, {}, provenance(args))
    save_results(args, results, {('as loaded', 't2i'): queries()})
    again = read_results(tmp_path / 'metrics.json')
    assert again == results and again.queries['sha256'] == compute_sha256(tmp_path / 'queries.csv')
    assert again.metrics == RETRIEVAL and again.metric_intervals() == {'R1': [1.0, 2.0]} and again.is_complete
    assert list(json.loads((tmp_path / 'metrics.json').read_text())) == [
        'results', 'intervals', 'baselines', 'independence', 'training', 'attributes', 'produced_by', 'queries']


def test_attribute_metrics_are_complete_results(tmp_path):
    """PA-100K has no table of retrieval, and no Rank-1."""
    args = options(tmp_path, dataset='PA-100K')
    save_results(args, Results(attributes=ATTRIBUTES, independence={'holds': False}, provenance=provenance(args)), {})
    results = find_results(result_path(args, 'metrics.json'), compute_sha256(args.checkpoint))
    assert results.metrics == ATTRIBUTES and results.one_by_one == results.metric_intervals() == {}
    assert find_other_results(args.checkpoint, 'RSTPReid') == [results]
    assert find_other_results(args.checkpoint, 'PA-100K') == []


def test_results_that_cannot_be_saved_are_a_warning(tmp_path, caplog):
    args = options(tmp_path)
    (tmp_path / 'metrics.json').mkdir()
    with caplog.at_level(logging.WARNING, 'Pedestal.test'):
        save_results(args, Results(), {})
    assert 'the results are not saved: cannot write' in caplog.text


@pytest.mark.parametrize('change, is_found', [
    ({}, True), ({'intervals': {}}, True), ({'independence': {'holds': False}}, False), ({'independence': {}}, False),
    ({'results': {}}, False), ({'results': {'a': {'t2i': {'R1': 1.0}}}}, False), ({'results': {'a': {}}}, False),
    ({'produced_by': {'checkpoint_sha256': 'abc'}}, True), ({'produced_by': {'checkpoint_sha256': 'another'}}, False),
    ({'independence': {'holds': False}, 'results': {'a': {'t2i': RETRIEVAL}, ONE_BY_ONE: {'t2i': RETRIEVAL}}}, True)])
def test_results_of_older_versions_and_of_other_checkpoints(tmp_path, change, is_found):
    """An older file has fewer keys."""
    content = {'results': {'a': {'t2i': RETRIEVAL}}, 'independence': {'holds': True},
               'produced_by': {'checkpoint_sha256': 'abc', 'dataset': 'RSTPReid'}}
    (tmp_path / 'metrics.json').write_text(json.dumps({**content, **change}))
    assert (find_results(tmp_path / 'metrics.json', 'abc') is not None) is is_found


@pytest.mark.parametrize('content', [[], 5, {}, {'produced_by': 'x'}, {'produced_by': {'a': 1}, 'results': []},
                                     {'produced_by': {'a': 1}, 'results': {'a': 5}},
                                     {'produced_by': {'a': 1}, 'results': {'a': {'t2i': 5}}},
                                     {'produced_by': {'a': 1}, 'intervals': {'a': {'t2i': 'x'}}}])
def test_damaged_results_are_a_sentence(tmp_path, content):
    path = tmp_path / 'metrics.json'
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f'^{path} does not have the results of an evaluation: run test.py again'):
        read_results(path)
    assert find_results(path, 'abc') is None


def test_results_that_are_missing_or_no_json(tmp_path):
    with pytest.raises(UserError, match='no file'):
        read_results(tmp_path / 'metrics.json')
    (tmp_path / 'metrics.json').write_text('{')
    with pytest.raises(UserError, match='is not JSON'):
        read_results(tmp_path / 'metrics.json')


# -- queries.csv -------------------------------------------------------------------------------------------------------

def queries(names=('a man, "tall"', 'déjà vu\nin two lines', '红衣')):
    return QueryResults(np.array([7, 7, 9]), np.array([1, 12, 3]), np.array([100.0, 8.123456, 40]),
                        np.array([50.0, 1, 40]), list(names))


def test_what_is_written_is_read_again(tmp_path):
    path = str(tmp_path / 'queries.csv')
    write_queries(path, {('as loaded', 't2i'): queries(), ('as loaded', 'i2t'): queries(['a.jpg', 'b.jpg', 'c.jpg'])})
    again = read_queries(path)
    assert list(again) == [('as loaded', 't2i'), ('as loaded', 'i2t')]
    one, expected = again['as loaded', 't2i'], queries()
    assert one.names == expected.names and again['as loaded', 'i2t'].names == ['a.jpg', 'b.jpg', 'c.jpg']
    for column in ('pids', 'first_rank', 'AP', 'INP'):
        assert getattr(one, column).tolist() == getattr(expected, column).tolist()


def test_any_program_reads_it(tmp_path):
    path = tmp_path / 'queries.csv'
    write_queries(str(path), {('as loaded', 't2i'): queries()})
    with open(path, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == QUERY_COLUMNS and rows[1]['first_rank'] == '12' and float(rows[1]['AP']) == 8.123456
    assert rows[1]['query'] == 'déjà vu\nin two lines'


@pytest.mark.parametrize('content, sentence', [
    ('', "holds no queries' results"), ('pid,rank\n1,2\n', 'its columns must be how,task,pid'),
    (','.join(QUERY_COLUMNS) + '\nas loaded,t2i,3,1\n', 'is damaged'),
    (','.join(QUERY_COLUMNS) + '\nas loaded,t2i,three,1,2,3,x\n', 'is damaged'),
    (','.join(QUERY_COLUMNS) + '\nas loaded\n', 'is damaged'),
    (','.join(QUERY_COLUMNS) + '\nas loaded,t2i,3,1,2,3,\xff', 'is damaged')])
def test_other_files_are_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / 'queries.csv'
    path.write_bytes(content.encode('latin-1'))
    with pytest.raises(UserError, match=sentence):
        read_queries(str(path))


def test_there_is_none(tmp_path):
    with pytest.raises(UserError, match='no file'):
        read_queries(str(tmp_path / 'queries.csv'))
    with pytest.raises(UserError, match='cannot write'):
        write_queries(str(tmp_path / 'nowhere' / 'queries.csv'), {})

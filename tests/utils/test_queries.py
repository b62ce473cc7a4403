"""The file of the queries' results."""
import csv

import numpy as np
import pytest

from utils.errors import UserError
from utils.queries import COLUMNS, QueryResults, read_queries, write_queries


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
    assert tuple(rows[0]) == COLUMNS and rows[1]['first_rank'] == '12' and float(rows[1]['AP']) == 8.123456
    assert rows[1]['query'] == 'déjà vu\nin two lines'


def test_figures_are_means_of_what_queries_reach():
    one = queries()
    assert one.metric_values('R1').tolist() == [100, 0, 0] and one.metric_values('R5').tolist() == [100, 0, 100]
    assert one.metric_values('R10').tolist() == [100, 0, 100]
    assert one.metric_values('mAP').tolist() == one.AP.tolist()
    assert one.metric_values('mINP').tolist() == one.INP.tolist()


@pytest.mark.parametrize('content, sentence', [
    ('', "holds no queries' results"), ('pid,rank\n1,2\n', 'its columns must be how,task,pid'),
    (','.join(COLUMNS) + '\nas loaded,t2i,3,1\n', 'is damaged'),
    (','.join(COLUMNS) + '\nas loaded,t2i,three,1,2,3,x\n', 'is damaged'),
    (','.join(COLUMNS) + '\nas loaded\n', 'is damaged'),
    (','.join(COLUMNS) + '\nas loaded,t2i,3,1,2,3,\xff', 'is damaged')])
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

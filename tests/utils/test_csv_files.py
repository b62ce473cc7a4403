"""CSV files: no spreadsheet runs a cell, and read_csv returns the original text."""
import csv
import io
import os
import random
import re
import string

import numpy as np
import pytest

from run_scripts import compare, matrix
from utils.csv_files import neutralize, read_csv, restore, write_csv
from processor.results import read_queries, write_queries
from utils.queries import QueryResults

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FORMULAS = ['=HYPERLINK("http://x","y")', "+cmd|' /C calc'!A0", '-2+3', '@SUM(A1)', '\tx', '\rx', '\nx', '\uff1dx', '=',
            '-']
OTHERS = ['a man, "tall"', "'tis a man", "'=x", "''=x", "'", '', ' =x', 'two\r\nlines', 'one\rline', '红衣', '-0.5',
          '1e-5', '+7', "'-0.5"]


def written(rows):
    file = io.StringIO()
    write_csv(file, rows)
    return file.getvalue()


def raw(text):
    return list(csv.reader(io.StringIO(text, newline='')))


@pytest.mark.parametrize('text', FORMULAS)
def test_a_formula_gets_a_quote_mark(text):
    (cell,), = raw(written([[text]]))
    assert cell == f"'{text}" and list(read_csv(io.StringIO(written([[text]]), newline=''))) == [[text]]


def test_numbers_stay_numbers():
    assert written([[-1, -0.5, '-0.5', '1e-5', '+7']]) == '-1,-0.5,-0.5,1e-5,+7\n'


def test_any_text_is_read_as_it_was_written():
    rng, letters = random.Random(0), "'=+-@\t\r\n, \"1.e" + string.ascii_lowercase[:3]
    texts = [*FORMULAS, *OTHERS, *(''.join(rng.choices(letters, k=rng.randrange(6))) for _ in range(2000))]
    assert [restore(neutralize(text)) for text in texts] == texts
    rows = [[text, 'x'] for text in texts]
    assert list(read_csv(io.StringIO(written(rows), newline=''))) == rows


def queries(names):
    count = len(names)
    return QueryResults(np.arange(count), np.ones(count, int), np.full(count, 100.0), np.full(count, 50.0), list(names))


def test_captions_of_queries_csv_are_neutral_and_read_again(tmp_path):
    names, path = [*FORMULAS, *OTHERS], str(tmp_path / 'queries.csv')
    write_queries(path, {('as loaded', 't2i'): queries(names)})
    assert read_queries(path)['as loaded', 't2i'].names == names
    with open(path, encoding='utf-8', newline='') as file:
        assert not [row for row in csv.DictReader(file) if re.match('[=+@\t\r\n\uff1d]', row['query'])
                    and row['query'] != '+7']


def test_captions_of_compare_and_runs_of_matrix_are_neutral(tmp_path):
    """Other CSV files: a caption and a run's folder that begin like a formula."""
    model = compare.Model('=a', 'a', [compare.Run('a', {}, queries(['=cmd()', 'a man']), True)])
    compare.write_captions(str(tmp_path / 'out.csv'), [model], model.runs[0].queries)
    assert (tmp_path / 'out.csv').read_text() == "pid,query,'=a\n0,'=cmd(),100.0\n1,a man,100.0\n"
    assert raw(matrix.format_csv([matrix.Cell('@run', 'A', 'B', {'R1': -1.5})]))[1][:4] == ["'@run", 'A', 'B', '-1.5']


def test_every_csv_file_is_written_here():
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith('.') and name != 'tests']
        for path in (os.path.join(folder, name) for name in files if name.endswith('.py')):
            with open(path, encoding='utf-8') as file:
                found += [os.path.relpath(path, ROOT)] if re.search(r'csv\.(Dict)?[wW]riter\(', file.read()) else []
    assert found == [os.path.join('utils', 'csv_files.py')]

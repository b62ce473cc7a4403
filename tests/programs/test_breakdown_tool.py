"""test.py --by, run_scripts/breakdown.py, and the words on the page."""
import csv
import os
import shutil

import pytest

import test as test_program
from datasets.lexicon import DEFAULT_LEXICON
from processor import breakdown
from run_scripts import breakdown as tool
from run_scripts import page
from utils import group_statistics
from utils.errors import UserError


@pytest.fixture(scope='module')
def run(trained, tmp_path_factory):
    """A copy of a run that was tested by attributes and words, and what test.py printed."""
    folder = str(tmp_path_factory.mktemp('broken down') / 'run')
    shutil.copytree(os.path.dirname(trained), folder)
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        use_small_split(patch)
        patch.setattr('processor.test_run.print', lambda *texts: printed.extend(texts), raising=False)
        test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'), '--by', 'attributes', 'words'])
    return folder, printed


def use_small_split(patch):
    """Test words of two people, because the split has six."""
    patch.setattr(breakdown, 'MIN_IDENTITIES', 2)
    patch.setattr(group_statistics, 'DRAWS', 200)


def read_rows(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_test_py_prints_and_writes_both_tables(run):
    folder, printed = run
    assert {'by_attributes.csv', 'by_attributes.png', 'by_words.csv'} <= set(os.listdir(folder))
    rows = read_rows(os.path.join(folder, 'by_attributes.csv'))
    queries = [row['query'] for row in read_rows(os.path.join(folder, 'queries.csv'))]
    man, = (row for row in rows if row['word'] == 'woman')
    assert int(man['captions']) == sum(any(word in caption.lower() for word in ('woman', 'female', 'lady', 'girl'))
                                       for caption in queries)
    assert 'CUHK-PEDES test, as loaded\nby attributes of the caption' in printed[-1] and 'by_words.csv' in printed[-1]


def test_the_tool_writes_the_same_without_the_model(run, tmp_path, capsys, monkeypatch):
    use_small_split(monkeypatch)
    folder = str(tmp_path / 'copy')
    os.makedirs(folder)
    for name in ('metrics.json', 'queries.csv'):
        shutil.copy(os.path.join(run[0], name), folder)
    tool.main([folder])
    assert capsys.readouterr().out.replace(folder, run[0]).strip() == run[1][-1].strip()
    for name in ('by_attributes.csv', 'by_words.csv'):
        assert read_rows(os.path.join(folder, name)) == read_rows(os.path.join(run[0], name))


def test_an_own_lexicon(run, tmp_path, capsys, monkeypatch):
    use_small_split(monkeypatch)
    lexicon = tmp_path / 'mine.yaml'
    lexicon.write_text('person: {"he": [his], "she": [her]}')
    shutil.copytree(run[0], tmp_path / 'run')
    tool.main([str(tmp_path / 'run'), '--by', 'attributes', '--lexicon', str(lexicon)])
    assert '| person ' in capsys.readouterr().out
    assert {row['category'] for row in read_rows(tmp_path / 'run' / 'by_attributes.csv')} == {'person'}


@pytest.mark.parametrize('flags, sentence', [
    (['--by', 'words', '--lexicon', DEFAULT_LEXICON], 'needs --by attributes'),
    (['--by', 'attributes', '--lexicon', 'none.yaml'], 'none.yaml'),
    (['--by', 'colors'], "invalid choice: 'colors'"),
    (['--how', 'shuffled'], "unknown ranking in .*'shuffled, t2i'; known: as loaded, t2i"),
    (['--results', 'metrics_x.json'], 'there is no .*metrics_x.json: name a folder that test.py has evaluated')])
def test_what_the_tool_refuses(run, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        tool.main([run[0], *flags])


def test_a_run_that_is_not_there():
    with pytest.raises(UserError, match='no run of this name below logs.*: name a folder that test.py has evaluated'):
        tool.main(['nowhere/none'])


def test_test_py_refuses_a_lexicon_before_it_loads_the_run(trained, monkeypatch):
    monkeypatch.setattr('processor.test_run.load_run', lambda args: pytest.fail('the run is loaded'))
    with pytest.raises(UserError, match='none.yaml'):
        test_program.main(['--config_file', trained, '--by', 'attributes', '--lexicon', 'none.yaml'])


def test_the_words_on_the_page(monkeypatch):
    """Each with the percentages of captions that are missed with it and without it."""
    row = {'word': 'red', 'captions': 40, 'R1': 30.0, 'R1_difference': -20.0, 'R1_p': 0.001, 'R1_p_holm': 0.01}
    words = breakdown.WordBreakdown({'R1': (45.0, 40.0, 50.0)}, [row, {**row, 'R1_p_holm': 0.06}], [], 100)
    table = page.word_table(words)
    assert table['rows'] == [['red', 40, 70.0, 50.0, 0.001, 0.01]] and '2 words are tested' in table['summary']

"""Results by attribute and by word: the table, the files, and what is reported on runs with and without an effect."""
import csv

import numpy as np
import pytest
from PIL import Image

from datasets.lexicon import Lexicon
from processor import breakdown
from processor.breakdown import break_down_by_attributes, break_down_by_words, list_terms, write_breakdowns
from utils import group_statistics
from utils.figures import import_pyplot
from utils.options import Parser, add_breakdown_options
from utils.queries import QueryResults
from utils.statistics import bootstrap_interval

LEXICON = Lexicon({'color': {'red': [], 'gray': ['grey'], 'pink': []}, 'garment': {'coat': [], 'skirt': []}},
                  {'garment color': ('color', 'garment')})


def draw_queries(seed, hard_word='', identities=60, each=4):
    """Queries whose captions have random words; those with ``hard_word`` are missed more often."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(identities), each)
    words = rng.choice(['red', 'grey'], identities)[pids], rng.choice(['coat', 'skirt'], identities)[pids]
    extra = rng.choice(['walking', 'standing', 'waiting', ''], len(pids))
    captions = [f'A person in a {color} {garment}, {doing}.' for color, garment, doing in zip(*words, extra)]
    is_hard = np.array([bool(hard_word) and hard_word in caption for caption in captions])
    ease = rng.normal(0, 1, identities)[pids] + 1 - 4 * is_hard
    missed = rng.random(len(pids)) > 1 / (1 + np.exp(-ease))
    rank = 1 + missed * rng.integers(1, 20, len(pids))
    return QueryResults(pids, rank, 100 / rank, 100 / rank, captions)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(group_statistics, 'DRAWS', 1000)


def test_a_row_has_the_results_of_the_captions_with_its_word():
    queries = draw_queries(0, 'grey')
    rows = {(row['category'], row['word']): row for row in break_down_by_attributes(queries, LEXICON).rows}
    assert list(dict.fromkeys(category for category, _ in rows)) == ['color', 'garment', 'garment color']
    row, group = rows['color', 'gray'], np.array(['grey' in caption for caption in queries.names])
    for metric in ('R1', 'mAP'):
        values = queries.metric_values(metric)
        assert row[metric] == pytest.approx(values[group].mean())
        assert row[f'{metric}_difference'] == pytest.approx(values[group].mean() - values[~group].mean())
        assert [row[f'{metric}_low'], row[f'{metric}_high']] == pytest.approx(
            bootstrap_interval(values[group], queries.pids[group]), abs=2)
        assert row[f'{metric}_p'] < row[f'{metric}_p_holm'] < 0.05 < rows['garment', 'coat'][f'{metric}_p_holm']
    assert (row['captions'], row['identities']) == (group.sum(), len(set(queries.pids[group])))
    assert rows['garment color', 'gray']['captions'] == group.sum()


def test_the_hardest_word_of_a_category_is_first():
    rows = break_down_by_attributes(draw_queries(1, 'red'), LEXICON).rows
    assert [row['word'] for row in rows if row['category'] == 'color'] == ['red', 'gray']


def test_rare_words_are_not_tested_and_the_table_says_so(tmp_path):
    queries = draw_queries(2)
    queries.names[:9] = ['a pink coat'] * 9      # of 3 people
    result = break_down_by_attributes(queries, LEXICON)
    assert ('color', 'pink') not in [(row['category'], row['word']) for row in result.rows]
    assert 'not tested, with their captions: color: pink 9; garment color: pink 9' in result.text
    assert '6 attributes are tested, each with captions of 20 people that mention it' in result.text
    result.write_csv(tmp_path / 'by.csv')
    with open(tmp_path / 'by.csv', newline='') as file:
        row, = (row for row in csv.DictReader(file) if (row['category'], row['word']) == ('color', 'pink'))
    assert row['captions'] == '9' and row['R1'] == row['R1_p_holm'] == ''


def test_lines_on_the_screen_are_short():
    queries = draw_queries(3)
    queries.names = [caption.replace('coat', 'sleeveless jacket and leather shoes') for caption in queries.names]
    assert max(map(len, break_down_by_attributes(queries).text.splitlines())) <= 120


def test_a_split_of_few_people_has_no_table():
    queries = draw_queries(4, identities=10)
    for result in (break_down_by_attributes(queries, LEXICON), break_down_by_words(queries)):
        assert result.text == ('no word is tested: a word needs captions of 20 people that mention it, and of 20 that '
                               'do not, and the captions are of 10 people')


def test_captions_in_another_language_need_another_lexicon():
    queries = draw_queries(4)
    queries.names = ['一个男人穿着红色外套'] * len(queries.names)
    assert break_down_by_attributes(queries, LEXICON).text == (
        'no caption has a word of the lexicon: give one for the language of the captions with --lexicon')


def test_a_planted_word_is_found():
    """The captions without it are easier, so the words that replace it may differ also, in the other direction."""
    found = break_down_by_words(draw_queries(5, 'waiting')).significant
    assert found[0]['word'] == 'waiting' and found[0]['R1_difference'] < -30
    assert all(row['R1_difference'] > 0 for row in found[1:])


def test_by_chance_few_runs_report_a_word():
    """At most 5% of runs without an effect (standard error 3%)."""
    reports = [bool(break_down_by_words(draw_queries(seed)).significant) for seed in range(100, 150)]
    assert np.mean(reports) <= 0.12


def test_nothing_is_a_valid_result():
    text = break_down_by_words(draw_queries(0)).text
    assert text.endswith('(p after Holm <= 0.05): none in Rank-1') and '|' not in text


def test_words_and_phrases_of_a_caption():
    assert list_terms("The man's red-and-white coat. Very long hair") == {
        "man's", 'red', 'white', 'coat', 'white coat', 'long', 'hair', 'long hair', "man's red"}
    assert list_terms('红色外套') >= {'红色', '外套', '色外'}


def test_files_are_written_next_to_each_other(tmp_path):
    parser = Parser()
    add_breakdown_options(parser)
    args = parser.parse(['--by', 'attributes', 'words'])
    text = write_breakdowns(args, draw_queries(6), LEXICON, 'toy test', lambda name: str(tmp_path / name))
    assert {path.name for path in tmp_path.iterdir()} == {'by_attributes.csv', 'by_attributes.png', 'by_words.csv'}
    assert all(str(path) in text for path in tmp_path.iterdir()) and 'toy test\nby attributes' in text
    with Image.open(tmp_path / 'by_attributes.png') as image:
        assert min(image.size) > 100


def test_a_folder_that_cannot_be_written_costs_no_table(tmp_path, caplog):
    parser = Parser()
    add_breakdown_options(parser)
    args = parser.parse(['--by', 'words'])
    text = write_breakdowns(args, draw_queries(7), None, 'toy', lambda name: str(tmp_path / 'none' / name))
    assert 'words are tested' in text and 'are not saved' in caplog.text


def test_the_red_diamond_is_at_words_that_differ():
    drawn = breakdown.draw_breakdown(break_down_by_attributes(draw_queries(0, 'grey'), LEXICON))
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    markers = {line.get_ydata()[0]: line.get_marker() for line in drawn.axes[0].lines if line.get_marker() != 'None'}
    position, = (index for index, label in enumerate(labels) if label.startswith('coat ('))
    import_pyplot().close(drawn)
    assert labels[0] == 'color' and labels[1].startswith('gray (') and markers[1] == 'D' and markers[position] == 'o'

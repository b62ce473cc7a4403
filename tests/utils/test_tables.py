"""Tables as text: at most 120 columns."""
import random

from utils.tables import MAX_WIDTH, format_text, wrap_cell


def lines_of(text):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]


def test_a_narrow_table_has_one_line_per_row():
    text = format_text('title', ['run', 'R1'], [['a', '60.00'], ['b', '61.00']])
    assert lines_of(text) == [['run', 'R1'], ['a', '60.00'], ['b', '61.00']] and text.startswith('title\n+--')
    assert format_text('title', ['run', 'R1'], []).count('\n') == 4


def test_a_wide_table_continues_below_with_its_first_column():
    header = ['run', *(f'column {number}' for number in range(6))]
    rows = [[f'run {row}', *(f'6{row}.0{number} / 61.00 (-1.00)' for number in range(6))] for row in range(2)]
    text = format_text('title', header, rows)
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    blocks = [lines_of(text)[start:start + 3] for start in (0, 3)]
    assert [block[0][0] for block in blocks] == ['run', 'run'] and len(lines_of(text)) == 6
    assert [first[1:] + second[1:] for first, second in zip(*blocks)] == [line[1:] for line in [header, *rows]]


def test_words_continue_on_the_next_line_and_numbers_do_not():
    note = 'word ' * 30
    text = format_text('title', ['run', *'abcd', 'note'], [['one', *['60.00 (0.50)'] * 4, note.strip()]])
    assert max(map(len, text.splitlines())) <= MAX_WIDTH and text.count('run') == 1
    assert ' '.join(line[-1] for line in lines_of(text)[1:]).split() == note.split()


def test_a_long_cell_continues_on_the_next_line():
    path = 'logs/CUHK-PEDES/' + '_'.join(f'part{number}' for number in range(30))
    text = format_text('title', ['run', 'note'], [[path, 'word ' * 40], ['b', 'short']])
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    lines = lines_of(text)
    assert ''.join(line[0] for line in lines[1:-1]) == path
    assert ' '.join(line[1] for line in lines[1:-1]).split() == 40 * ['word'] and lines[-1] == ['b', 'short']
    assert text.count('\n+--') == 4                       # a rule below each row


def test_lines_of_a_cell_are_never_longer_than_the_width():
    rng = random.Random(0)
    for _ in range(2000):
        text = ''.join(rng.choices('ab/_+, -', k=rng.randrange(1, 80)))
        width = rng.randrange(2, 30)
        lines = wrap_cell(text, width).split('\n')
        assert max(map(len, lines)) <= width
        assert ''.join(lines).replace(' ', '') == text.replace(' ', '')


def test_any_table_ends():
    """Names that end in a separator, and an error of thousands of characters."""
    rng = random.Random(0)
    for _ in range(50):
        rows = [[''.join(rng.choices('abcd/_ ', k=rng.choice((3, 40, 90)))) for _ in range(8)] for _ in range(3)]
        assert max(map(len, format_text('title', list('abcdefgh'), rows).splitlines()))
    assert max(map(len, format_text('t', ['run', 'note'], [['a/' * 40, 'error ' * 2000]]).splitlines())) <= MAX_WIDTH

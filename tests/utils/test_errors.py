"""How programs say what is wrong."""
import pytest

from utils.errors import UserError, run


def printed_by(message, capsys):
    def main():
        raise UserError(message)
    with pytest.raises(SystemExit) as left:
        run(main)
    assert left.value.code == 2
    line, = capsys.readouterr().err.split('error: ', 1)[1].splitlines()
    return line


def test_a_sentence_is_printed_as_it_is(capsys):
    sentence = "no dataset folder d\u00e9j\u00e0 vu/CUHK-PEDES: it should hold reid_raw.json and imgs/"
    assert printed_by(sentence, capsys) == sentence


@pytest.mark.parametrize('name, shown', [('a\nb', r'a\nb'), ('\x1b[31mred', r'\x1b[31mred'), ('\u202e', r'\u202e'), ('\udcff', r'\udcff')])
def test_names_with_control_characters_stay_on_one_line_and_do_nothing_to_a_terminal(name, shown, capsys):
    assert printed_by(f'no image {name}', capsys) == f'no image {shown}'


def test_what_is_said_of_a_name_is_not_lost_behind_it(capsys):
    line = printed_by(f"no image {'x' * 1000000}: put it there", capsys)
    assert len(line) < 300 and line.startswith('no image xxx') and line.endswith('... (1000001 characters) put it there')
    line = printed_by(f"unknown value '{'word ' * 5000}'; give another one", capsys)
    assert len(line) < 1000 and line.startswith("unknown value 'word") and line.endswith('give another one')

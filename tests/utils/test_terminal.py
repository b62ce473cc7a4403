"""Names and captions from files do not control the terminal, in output and logs."""
import io
import logging
import sys

import pytest
from PIL import Image
from tqdm import tqdm

from datasets import check
from datasets.synthpedes import generate
from processor.search_results import format_results
from tests.several import run_forked
from utils.errors import run_program
from utils.logger import setup_logger
from utils.terminal import ProtectedStream, escape_controls, escape_line

HOSTILE = ['\x1b[2J', '\x1b]0;title\x07', '\x9b31m', 'a\rb', '\x08\x08', '\x00', '\x7f', '\u202e', '\u2066', '\u2028',
           '\x0b']
HARMLESS = ['a red coat', 'déjà vu', '红衣\u3000女人', 'two\nlines', 'tab\there', '\U0001f469\u200d\U0001f9bd']


@pytest.mark.parametrize('text', HOSTILE)
def test_controls_are_escaped(text):
    shown = escape_controls(f'x{text}y')
    assert shown.isprintable() and shown.startswith('x') and shown.endswith('y') and '\\' in shown


@pytest.mark.parametrize('text', HARMLESS)
def test_what_people_read_stays(text):
    assert escape_controls(text) == text and '\n' not in escape_line(text) and '\t' not in escape_line(text)


def test_a_program_prints_no_escape_sequence(capsys):
    def main():
        print('found \x1b[31m.jpg')
        print('left out \x1b[31m.jpg\rx', file=sys.stderr)
        logging.getLogger('Pedestal.some').warning('odd \x9b2J')
    with pytest.raises(SystemExit):
        run_program(main)
    printed = capsys.readouterr()
    assert printed.out.startswith('found \\x1b[31m.jpg\n') and '\\x1b[31m.jpg\\rx' in printed.err
    text = printed.out + printed.err        # with the log's line, if another test has set the log up
    assert not any(character in text for character in '\x1b\x9b\r')


def test_a_log_holds_none(tmp_path, capsys):
    logger = setup_logger('Pedestal.test_terminal', str(tmp_path), if_train=True)
    logger.warning('left out: %s cannot be read', 'x\x1b[2J.jpg')
    for handler in logger.handlers:
        handler.flush()
    assert 'x\\x1b[2J.jpg' in (tmp_path / 'train_log.txt').read_text() and '\x1b' not in capsys.readouterr().out


def test_progress_bars_still_move():
    plain, protected = io.StringIO(), io.StringIO()
    for file in (plain, ProtectedStream(protected, has_bars=True)):
        outer, inner = (tqdm(total=2, file=file, position=place, ncols=40, bar_format='{desc}{n}', ascii=True)
                        for place in (0, 1))
        outer.update()
        inner.update()
        inner.close()
        outer.close()
    assert protected.getvalue() == plain.getvalue() and '\r' in plain.getvalue() and '\x1b[A' in plain.getvalue()


def test_lines_of_names_are_one_line_each():
    text = format_results([('a\ncaption', None, [('/x/\x1b[2J\n0.9999  /y.jpg', None, 0.5)])])
    assert text.splitlines() == ['a\\ncaption', '  0.5000  /x/\\x1b[2J\\n0.9999  /y.jpg']


def test_check_names_a_file_with_an_escape_sequence_harmlessly(tmp_path):
    """Run the complete program with a hostile name: an extra image next to the annotated ones."""
    generate(str(tmp_path), 4, images_per_id=1, size=(32, 16), format='CUHK-PEDES', test_ids=1, val_ids=1, workers=1)
    Image.new('RGB', (4, 4)).save(tmp_path / 'CUHK-PEDES' / 'imgs' / 'stray\x1b[2J.png')
    status, output, errors = run_forked(check.main, ['--root_dir', str(tmp_path), '--workers', '1'], tmp_path,
                                        'check.py')
    assert status == 1 and 'stray\\x1b[2J.png' in output
    assert '\x1b' not in output + errors

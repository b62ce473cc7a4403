"""Figures and their texts."""
import os
import subprocess
import sys
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from utils.figures import import_pyplot, save_figure, wrap_text

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def make_font(path, name, characters):
    """Make a font that draws nothing for some characters."""
    glyphs = ['.notdef', *(f'uni{ord(character):04X}' for character in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(character): glyph for character, glyph in zip(characters, glyphs[1:])})
    font.setupGlyf({glyph: TTGlyphPen(None).glyph() for glyph in glyphs})
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({'familyName': name, 'styleName': 'Regular'})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


def saved_figure(path, texts):
    figure, axis = import_pyplot().subplots()
    drawn = [axis.text(0, 0, text) for text in texts]
    axis.set_title(texts[0])
    save_figure(figure, str(path))
    return [text.get_fontfamily() for text in drawn]


@pytest.fixture
def installed(monkeypatch):
    """Install only the given fonts."""
    fonts = []
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *args, **kwargs: fonts)
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', list(font_manager.fontManager.ttflist))
    return fonts


@pytest.mark.parametrize('ending', ['png', 'pdf', 'svg'])
def test_chinese_falls_back_to_an_installed_font(tmp_path, installed, caplog, ending):
    installed += [make_font(tmp_path / 'some.ttf', 'Some', '人'), make_font(tmp_path / 'most.ttf', 'Most', '红衣人'),
                  make_font(tmp_path / 'thai.ttf', 'Thai', 'ก')]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plain, chinese, mixed = saved_figure(tmp_path / f'a.{ending}', ['a man', '红衣人', 'a man, 红衣 ก'])
    assert 'Most' not in plain and chinese[-2:] == mixed[-2:] == ['Most', 'Thai'] and 'Some' not in chinese
    assert not caplog.text


def test_characters_that_no_font_has_are_told_in_one_line(tmp_path, installed, caplog):
    installed.append(make_font(tmp_path / 'some.ttf', 'Some', '人'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        saved_figure(tmp_path / 'a.png', ['红衣人', '红'])
    assert [record.message.split(':')[0] for record in caplog.records] == ['no installed font draws 红衣']
    assert 'fonts-noto-cjk' in caplog.text and Image.open(tmp_path / 'a.png').size[0] > 100


def test_captions_in_letters_look_for_no_font(tmp_path, monkeypatch):
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *args, **kwargs: pytest.fail('not needed'))
    saved_figure(tmp_path / 'a.png', ['a café', 'plain'])


def test_wrapped_lines_of_wide_characters():
    lines = wrap_text('一个穿红色外套的女人 with a bag', 10).split('\n')
    assert lines == ['一个穿红色', '外套的女人', 'with a bag']
    assert wrap_text('a man in a red coat', 9) == 'a man in\na red\ncoat'


# -- arguments and file names ------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from utils.errors import run_program
from utils.iotools import atomic_write, read_image
from utils.option_types import valid_text

def main():
    folder, caption = map(valid_text, sys.argv[1:])
    read_image(f'{{folder}}/图.png')
    with atomic_write(f'{{folder}}/写.txt') as file:
        file.write(caption)
    print(caption)

if __name__ == '__main__':
    run_program(main)
"""


@pytest.mark.skipif(os.name != 'posix', reason='only there an encoding may be ASCII')
def test_chinese_paths_and_captions_without_pythons_utf8_mode(tmp_path):
    folder = tmp_path / '照片'
    folder.mkdir()
    Image.new('RGB', (4, 8)).save(folder / '图.png')
    (tmp_path / 'program.py').write_text(PROGRAM.format(root=ROOT), encoding='utf-8')
    done = subprocess.run([sys.executable, 'program.py', str(folder), '红衣人'], cwd=tmp_path, capture_output=True,
                          encoding='utf-8',
                          env={**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0'})
    assert (done.returncode, done.stdout, done.stderr) == (0, '红衣人\n', '')
    assert (folder / '写.txt').read_text(encoding='utf-8') == '红衣人'

"""Pictures that the tools and the heads' reports draw. matplotlib is imported late: it takes a second that others need not wait."""
import logging
import os
import textwrap
import unicodedata
import warnings

from utils.errors import UserError
from utils.iotools import atomic_write
from utils.terminal import one_line

logger = logging.getLogger('Pedestal.figures')


def pyplot():
    """matplotlib's pyplot, drawing into files alone."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    return plt


def as_label(name):
    """A run's or a file's name as matplotlib shows it literally: without mathematics, and in characters that SVG can hold.

    >>> as_label('a$b_\\x1b')
    'a\\\\$b_\\\\x1b'
    """
    text = one_line(name).encode('utf-8', 'backslashreplace').decode().replace('$', r'\$')
    return f' {text}' if text.startswith('_') else text     # a legend skips labels that begin with _


def check_picture(path):
    """Raise :class:`UserError` where no picture can be written to ``path``: before hours of embedding rather than after them."""
    from matplotlib.backend_bases import FigureCanvasBase
    ending = os.path.splitext(path)[1].removeprefix('.').lower()
    folder = os.path.dirname(path) or '.'
    why = None
    if os.path.isdir(path):
        why = 'it is a folder; name a file in it'
    elif ending not in FigureCanvasBase.filetypes:
        why = f"its ending tells the format, and '{ending}' is none; try .png or .pdf"
    elif not os.path.isdir(folder):
        why = f'there is no folder {folder}'
    if why:
        raise UserError(f'cannot write the picture {path}: {why}')


def save_picture(picture, path, dpi=80):
    """Write a matplotlib figure to ``path``, whole or not at all, in the format of its ending, and close it. Raises
    :class:`UserError` where that cannot be."""
    try:
        check_picture(path)
        with atomic_write(path, 'wb') as file:
            save_figure(picture, file, dpi=dpi, format=os.path.splitext(path)[1][1:].lower())
    finally:
        pyplot().close(picture)


def save_figure(picture, file, **options):
    """Call ``picture.savefig(file, **options)`` with installed fonts for characters that matplotlib's own font lacks."""
    add_fallback_fonts(picture)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from')     # add_fallback_fonts says it once for all characters
        picture.savefig(file, **options)


def add_fallback_fonts(picture):
    """Let the texts of a matplotlib figure fall back to installed fonts, and log the characters that no font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.text import Text
    texts = [text for text in picture.findobj(Text) if not text.get_text().isascii()]
    lacking = {character for text in texts for character in text.get_text() if character.isprintable()}
    if not lacking:
        return
    lacking -= get_characters(findfont(FontProperties()))
    families = []
    for path, characters in choose_fallback_fonts(lacking):
        fontManager.addfont(path)
        families.append(FontProperties(fname=path).get_name())
        lacking -= characters
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if lacking:
        logger.warning('no installed font draws %s: the figure shows boxes; install one, as Noto Sans CJK for Chinese '
                       '(Debian, Ubuntu: fonts-noto-cjk)', ''.join(sorted(lacking)[:20]))


def choose_fallback_fonts(lacking):
    """Choose few installed fonts that together have as many of the characters in the set ``lacking`` as possible.

    Returns:
        ``[(path, its characters of these), ...]``
    """
    from matplotlib.font_manager import findSystemFonts
    fonts, found = {}, []
    for path in sorted(findSystemFonts(), key=lambda path: (not is_sans_regular(path), path)) if lacking else ():
        characters = lacking & get_characters(path)
        if characters:
            fonts[path] = characters
        if characters == lacking:     # no need to open the others
            fonts = {path: characters}
            break
    while lacking and fonts:
        path = max(fonts, key=lambda path: len(fonts[path] & lacking))
        characters = fonts.pop(path)
        if characters & lacking:
            found.append((path, characters))
        lacking = lacking - characters
    return found


def is_sans_regular(path):
    """Whether a font's file is called sans and regular, rather than bold, italic or serif."""
    name = os.path.basename(path).lower()
    return 'sans' in name and 'mono' not in name and ('regular' in name or '-' not in name)


def get_characters(path):
    """The characters that a font has; none of one that matplotlib cannot draw with."""
    from matplotlib.ft2font import FT2Font
    try:
        font = FT2Font(path)
        return set(map(chr, font.get_charmap())) if font.scalable else set()
    except (OSError, RuntimeError, ValueError):
        return set()


def wrap_text(text, width):
    """``text`` in lines of at most ``width`` columns, of which a Chinese character takes two.

    >>> wrap_text('a red coat', 6)
    'a red\\ncoat'
    >>> wrap_text('红色外套', 4)
    '红色\\n外套'
    """
    padded = ''.join(f'{letter}\0' if unicodedata.east_asian_width(letter) in 'WF' else letter for letter in text)
    return textwrap.fill(padded, width).replace('\0', '')

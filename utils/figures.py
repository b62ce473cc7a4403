"""Figures of the tools and of the heads' reports. matplotlib is imported late, because that takes a second."""
import logging
import os
import textwrap
import unicodedata
import warnings

from utils.errors import UserError
from utils.iotools import atomic_write
from utils.terminal import escape_line

logger = logging.getLogger('Pedestal.figures')


def import_pyplot():
    """Return matplotlib's pyplot, which draws into files only."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    return plt


def to_label(name):
    """Escape a name so that matplotlib shows it literally, without mathematics, in characters that SVG can hold.

    Example:
        >>> to_label('a$b_\\x1b')
        'a\\\\$b_\\\\x1b'
    """
    text = escape_line(name).encode('utf-8', 'backslashreplace').decode().replace('$', r'\$')
    return f' {text}' if text.startswith('_') else text     # a legend skips labels that begin with _


def check_figure_path(path):
    """Raise :class:`UserError` if no figure can be written to ``path``. Tools call it before hours of embedding."""
    from matplotlib.backend_bases import FigureCanvasBase
    ending = os.path.splitext(path)[1].removeprefix('.').lower()
    folder = os.path.dirname(path) or '.'
    reason = None
    if os.path.isdir(path):
        reason = 'it is a folder; name a file in it'
    elif ending not in FigureCanvasBase.filetypes:
        reason = f"its ending gives the format, and '{ending}' is none; try .png or .pdf"
    elif not os.path.isdir(folder):
        reason = f'there is no folder {folder}'
    if reason:
        raise UserError(f'cannot write the figure {path}: {reason}')


def save_figure(figure, path, dpi=80):
    """Write a matplotlib figure atomically to ``path``, in the format of its ending, and close it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        check_figure_path(path)
        with atomic_write(path, 'wb') as file:
            write_figure(figure, file, dpi=dpi, format=os.path.splitext(path)[1][1:].lower())
    finally:
        import_pyplot().close(figure)


def write_figure(figure, file, **options):
    """Call ``figure.savefig(file, **options)`` with installed fonts for characters that matplotlib's own font lacks."""
    add_fallback_fonts(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from')     # add_fallback_fonts has warned once for all
        figure.savefig(file, **options)


def add_fallback_fonts(figure):
    """Let the texts of a matplotlib figure fall back to installed fonts, and log the characters that no font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager
    from matplotlib.text import Text
    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    missing = {character for text in texts for character in text.get_text() if character.isprintable()}
    if not missing:
        return
    missing -= get_characters(findfont(FontProperties()))
    families = []
    for path, characters in choose_fallback_fonts(missing):
        fontManager.addfont(path)
        families.append(FontProperties(fname=path).get_name())
        missing -= characters
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if missing:
        logger.warning('no installed font draws %s: the figure shows boxes; install a font, such as Noto Sans CJK for '
                       'Chinese (Debian, Ubuntu: fonts-noto-cjk)', ''.join(sorted(missing)[:20]))


def choose_fallback_fonts(missing):
    """Choose few installed fonts that together draw as many of the characters in the set ``missing`` as possible.

    Returns:
        ``[(path, characters in missing that the font draws), ...]``
    """
    from matplotlib.font_manager import findSystemFonts
    fonts, chosen = {}, []
    for path in sorted(findSystemFonts(), key=lambda path: (not is_sans_regular(path), path)) if missing else ():
        characters = missing & get_characters(path)
        if characters:
            fonts[path] = characters
        if characters == missing:     # no need to open the others
            fonts = {path: characters}
            break
    while missing and fonts:
        path = max(fonts, key=lambda path: len(fonts[path] & missing))
        characters = fonts.pop(path)
        if characters & missing:
            chosen.append((path, characters))
        missing = missing - characters
    return chosen


def is_sans_regular(path):
    """Whether the file name of a font says that it is sans and regular, not bold, italic or serif."""
    name = os.path.basename(path).lower()
    return 'sans' in name and 'mono' not in name and ('regular' in name or '-' not in name)


def get_characters(path):
    """Return the set of characters of a font; an empty set if matplotlib cannot use the font."""
    from matplotlib.ft2font import FT2Font
    try:
        font = FT2Font(path)
        return set(map(chr, font.get_charmap())) if font.scalable else set()
    except (OSError, RuntimeError, ValueError):
        return set()


def wrap_text(text, width):
    """Wrap ``text`` into lines of at most ``width`` columns. A Chinese character has two columns.

    Example:
        >>> wrap_text('a red coat', 6)
        'a red\\ncoat'
        >>> wrap_text('红色外套', 4)
        '红色\\n外套'
    """
    padded = ''.join(f'{letter}\0' if unicodedata.east_asian_width(letter) in 'WF' else letter for letter in text)
    return textwrap.fill(padded, width).replace('\0', '')

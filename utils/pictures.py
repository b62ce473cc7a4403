"""Pictures that the tools and the heads' reports draw. matplotlib is imported late: it takes a second that others need not wait."""
import os

from utils.errors import UserError
from utils.iotools import atomic_write
from utils.terminal import one_line


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
            picture.savefig(file, dpi=dpi, format=os.path.splitext(path)[1][1:].lower())
    finally:
        pyplot().close(picture)

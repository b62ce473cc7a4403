"""Text from files on a terminal: names and captions may hold escape sequences, which move the cursor or hide lines.

:func:`escape_controls` is the one place that makes text harmless. Programs print through it (:func:`protect_streams`),
and so do logs.
"""
import os
import re
import sys

# C0 and C1 controls but for line feed and tab, line and paragraph separators, and marks that change the direction of writing.
CONTROLS = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]')
# A progress bar's own writes: back to the start of the line, or some lines up or down.
CURSOR = re.compile('\r|\n*(\x1b\\[A)+$')


def escape_controls(text):
    """``text`` with control characters as Python writes them; line feeds, tabs and all that is visible stay.

    >>> escape_controls('\\x1b[2Jred\\x9b1m\\nnext line')
    '\\\\x1b[2Jred\\\\x9b1m\\nnext line'
    """
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text):
    """``text`` as a part of one line: also its line feeds and tabs are escaped.

    >>> one_line('a\\nb.jpg')
    'a\\\\nb.jpg'
    """
    return escape_controls(text).replace('\n', r'\n').replace('\t', r'\t')


class ProtectedStream:
    """A text stream that escapes control characters. ``has_bars``: progress bars move the cursor on it."""

    def __init__(self, stream, has_bars=False):
        self._stream, self._has_bars = stream, has_bars

    def write(self, text):
        cursor = CURSOR.match(text) if self._has_bars else None
        kept = cursor[0] if cursor else ''
        return self._stream.write(kept + escape_controls(text[len(kept):]))

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        if name.startswith('__') or name == '_stream':
            raise AttributeError(name)
        return getattr(self._stream, name)


def protect_streams():
    """Let ``sys.stdout`` and ``sys.stderr`` escape control characters from here on. Python's own colors are off."""
    os.environ.setdefault('NO_COLOR', '1')
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ProtectedStream):
            setattr(sys, name, ProtectedStream(stream, has_bars=name == 'stderr'))

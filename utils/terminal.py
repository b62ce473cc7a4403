"""Text from files, made safe for a terminal.

A name or a caption may hold escape sequences, which would move the cursor, recolor or hide lines. Programs and logs
therefore write through :func:`escape_controls` (:func:`protect_streams`).
"""
import os
import re
import sys

# C0 and C1 controls except line feed and tab; line and paragraph separators; marks that change the text direction.
CONTROLS = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]')
# Cursor movements of a progress bar: to the start of the line, or some lines up or down.
CURSOR = re.compile('\r|\n*(\x1b\\[A)+$')


def escape_controls(text):
    """Escape the control characters in ``text`` as Python does, except line feeds and tabs.

    Example:
        >>> escape_controls('\\x1b[2Jred\\x9b1m\\nnext line')
        '\\\\x1b[2Jred\\\\x9b1m\\nnext line'
    """
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def escape_line(text):
    """Escape all control characters in ``text``, also line feeds and tabs, so that it stays on one line.

    Example:
        >>> escape_line('a\\nb.jpg')
        'a\\\\nb.jpg'
    """
    return escape_controls(text).replace('\n', r'\n').replace('\t', r'\t')


class ProtectedStream:
    """A text stream that escapes control characters.

    Args:
        stream: the stream to write to.
        has_bars: whether progress bars may move the cursor on it.
    """

    def __init__(self, stream, has_bars=False):
        self._stream, self._has_bars = stream, has_bars

    def write(self, text):
        match = CURSOR.match(text) if self._has_bars else None
        movement = match[0] if match else ''
        return self._stream.write(movement + escape_controls(text[len(movement):]))

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        if name.startswith('__') or name == '_stream':
            raise AttributeError(name)
        return getattr(self._stream, name)


def protect_streams():
    """Let ``sys.stdout`` and ``sys.stderr`` escape control characters, and switch off Python's own colors."""
    os.environ.setdefault('NO_COLOR', '1')
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, ProtectedStream):
            setattr(sys, name, ProtectedStream(stream, has_bars=name == 'stderr'))

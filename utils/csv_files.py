"""CSV files that a spreadsheet opens without running what a cell holds.

A spreadsheet takes a text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break for a formula. Captions and
file names come from strangers, so such a text gets a quote mark ``'`` in front. :func:`read_csv` removes it, so that our
programs read the same text again. Numbers are written as they are.
"""
import csv
import re

FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r'[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?')


def neutralize(cell):
    """A cell that no spreadsheet takes for a formula; anything but text stays as it is.

    >>> neutralize('=cmd()'), neutralize("'=cmd()"), neutralize('-0.5'), neutralize(-0.5), neutralize('a red coat')
    ("'=cmd()", "''=cmd()", '-0.5', -0.5, 'a red coat')
    """
    is_formula = isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def restore(cell):
    """The text that :func:`neutralize` was given.

    >>> restore("'=cmd()"), restore("''=cmd()"), restore('-0.5'), restore("'tis a man")
    ('=cmd()', "'=cmd()", '-0.5', "'tis a man")
    """
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


class _Lines:
    """The file that ``csv.writer`` writes into.

    The writer's ``\\r\\n`` makes it quote a cell with a carriage return; the file gets ``\\n``.
    """

    def __init__(self, file):
        self.file = file

    def write(self, line):
        return self.file.write(line.removesuffix('\r\n') + '\n')


def write_csv(file, rows):
    """Write ``rows``, lists of cells, into an open text file."""
    csv.writer(_Lines(file)).writerows([neutralize(cell) for cell in row] for row in rows)


def read_csv(file):
    """The rows of a text file that :func:`write_csv` wrote and that is opened with ``newline=''``, as lists of texts.

    Raises:
        csv.Error: the file is damaged.
    """
    for row in csv.reader(file):
        yield [restore(cell) for cell in row]

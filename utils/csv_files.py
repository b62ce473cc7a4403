"""CSV files whose cells a spreadsheet does not run as formulas.

A spreadsheet runs a text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break. Captions and file names
may come from anybody, so such a text gets a quote mark ``'`` in front. :func:`read_csv` removes it, so that Pedestal
reads the original text. Numbers are unchanged.
"""
import csv
import re

FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r'[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?')


def neutralize(cell):
    """Add a quote mark to a text that a spreadsheet would run. Other values are unchanged.

    Example:
        >>> neutralize('=cmd()'), neutralize("'=cmd()"), neutralize('-0.5'), neutralize(-0.5), neutralize('a red coat')
        ("'=cmd()", "''=cmd()", '-0.5', -0.5, 'a red coat')
    """
    is_formula = isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def restore(cell):
    """Return the text that :func:`neutralize` changed.

    Example:
        >>> restore("'=cmd()"), restore("''=cmd()"), restore('-0.5'), restore("'tis a man")
        ('=cmd()', "'=cmd()", '-0.5', "'tis a man")
    """
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


class _LineFeedFile:
    """A file for ``csv.writer`` whose lines end with ``\\n``.

    The writer itself must end lines with ``\\r\\n``, because it then quotes cells with a carriage return.
    """

    def __init__(self, file):
        self.file = file

    def write(self, line):
        return self.file.write(line.removesuffix('\r\n') + '\n')


def write_csv(file, rows):
    """Write ``rows``, lists of cells, into an open text file."""
    csv.writer(_LineFeedFile(file)).writerows([neutralize(cell) for cell in row] for row in rows)


def read_csv(file):
    """Yield the rows, lists of texts, of a file of :func:`write_csv` that is opened with ``newline=''``.

    Raises:
        csv.Error: the file is damaged.
    """
    for row in csv.reader(file):
        yield [restore(cell) for cell in row]

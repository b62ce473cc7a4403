"""Tables as text, Markdown and LaTeX, each from a heading, a header and rows of texts."""
import re

from prettytable import PrettyTable

MAX_WIDTH = 120     # characters of a line of a text table
MIN_CELL, MAX_CELL = 12, 56     # characters of a line of a long cell, in a table that fits and in one that does not
METRICS = ('R1', 'R5', 'R10', 'mAP', 'mINP')                          # of retrieval
ATTRIBUTE_METRICS = ('mA', 'accuracy', 'precision', 'recall', 'F1')   # of attribute recognition


def format_text(heading, header, rows):
    """A table of at most ``MAX_WIDTH`` columns.

    Cells of words continue on the next line. A table that is still too wide continues below, with its first column
    again. Numbers stay on one line.
    """
    columns = fit_columns(list(zip(header, *rows)) if rows else [(name,) for name in header])
    blocks = [format_block([columns[0], *block]) for block in split_columns(columns)]
    return '\n'.join([heading, *blocks])


def split_columns(columns):
    """Split the columns after the first one into groups that fit next to the first one.

    Example:
        >>> split_columns([('run', 'a' * 50), ('x', 'b' * 40), ('y', 'c'), ('z', 'd' * 40)]) == [
        ...     [('x', 'b' * 40), ('y', 'c')], [('z', 'd' * 40)]]
        True
    """
    first, *others = columns
    groups, used = [[]], 0
    for column in others:
        if groups[-1] and column_width(first) + used + column_width(column) + 1 > MAX_WIDTH:
            groups.append([])
            used = 0
        groups[-1].append(column)
        used += column_width(column)
    return groups


def column_width(column):
    """The width of a column with the two spaces around its cells and one line."""
    return max(len(line) for cell in column for line in cell.split('\n')) + 3


def format_block(columns):
    header, *rows = zip(*columns)
    has_lines = any('\n' in cell for row in rows for cell in row)
    table = PrettyTable(header, align='l')
    for row in rows:
        table.add_row(row, divider=has_lines and row is not rows[-1])
    return table.get_string()


def fit_columns(columns):
    """Wrap the cells of words, as few as possible, so that the columns fit next to each other.

    If they cannot fit, cells have at most ``MAX_CELL`` characters in a line.
    """
    has_words = [any(re.search('[A-Za-z]{2}', cell) for cell in column[1:]) for column in columns]
    wrapped = list(columns)
    while sum(map(column_width, wrapped)) + 1 > MAX_WIDTH:
        widths = [column_width(column) - 3 if words else 0 for column, words in zip(wrapped, has_words)]
        widest = widths.index(max(widths))
        if widths[widest] <= MIN_CELL:
            return [wrap_column(column, MAX_CELL) for column in columns]
        wrapped[widest] = wrap_column(columns[widest], min(widths[widest], MAX_WIDTH) - 1)
    return wrapped


def wrap_column(column, width):
    return [wrap_cell(cell, width) for cell in column]


def wrap_cell(text, width):
    """Break a long text into lines of at most ``width`` characters, after spaces and the characters that join names.

    Example:
        >>> wrap_cell('logs/CUHK-PEDES/irra', 15)
        'logs/\\nCUHK-PEDES/irra'
    """
    lines = ['']
    for piece in re.findall(r'[^ /_+,]{0,%d}[/_+,]|[^ /_+,]{1,%d} ?| ' % (width - 1, width), text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append('')
        lines[-1] += piece
    return '\n'.join(line.rstrip() for line in lines)


def format_markdown(heading, header, rows):
    rows = [header, ['---'] * len(header)] + [[cell.replace('|', r'\|') for cell in row] for row in rows]
    return f'**{heading}**\n\n' + '\n'.join(f"| {' | '.join(row)} |" for row in rows)


def format_latex(heading, header, rows):
    lines = [' & '.join(map(escape_latex, cells)) + r' \\' for cells in [header, *rows]]
    lines[0] += r' \hline'
    columns = ''.join('r' if name in ('n', *METRICS, *ATTRIBUTE_METRICS) else 'l' for name in header)
    body = '\n'.join([f'\\begin{{tabular}}{{{columns}}}', *lines, r'\end{tabular}'])
    return f'% {heading}\n{body}'


def escape_latex(text):
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$'}
    return ''.join(special.get(letter, f'\\{letter}' if letter in '&%$#_{}' else letter) for letter in text)


FORMATS = {'text': format_text, 'markdown': format_markdown, 'latex': format_latex}

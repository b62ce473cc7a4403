"""Read the rows of a table: .json, .jsonl, .csv or .tsv."""
import csv
import io
import logging
import os
import re

from datasets.annotation import read_entries
from utils.errors import UserError, describe_type
from utils.iotools import MAX_JSON_BYTES, parse_json, check_regular_file

logger = logging.getLogger('Pedestal.dataset')

DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'vertical bars'}


def read_rows(path):
    """Read the rows of a table, a list of mappings.

    Raises:
        UserError: the file is not a table in UTF-8.
    """
    check_regular_file(path, MAX_JSON_BYTES)
    ending = os.path.splitext(path)[1].lower()
    if ending == '.json':
        try:
            rows = read_entries(path)
        except UserError:
            read_text(path)     # its error is more helpful if the file is not in UTF-8
            raise
    else:
        text = read_text(path)
        is_json = ending == '.jsonl'
        rows = parse_json_lines(text, path) if is_json else parse_table(text, path, '\t' if ending == '.tsv' else ',')
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f'{path}: row {number} (counted from 0) is {describe_type(row)} instead of a mapping')
    if not rows:
        raise UserError(f'{path} has no rows')
    return rows


def read_text(path):
    """Read a file in UTF-8."""
    try:
        with open(path, 'rb') as file:
            content = file.read()
        return content.decode('utf-8-sig')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise UserError(f'{path} is no table in UTF-8 (line {line}): save it as "CSV UTF-8", as Excel calls it, or '
                        f'convert it: iconv -f {guess_encoding(content)} -t UTF-8 {path} > <new file>') from None


def guess_encoding(content):
    """Guess the encoding of bytes that are not UTF-8, with iconv's name."""
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
        return 'UTF-16'
    try:
        content.decode('gb18030')
        return 'GB18030'
    except UnicodeDecodeError:
        return 'CP1252'


def parse_json_lines(text, path):
    rows = []
    for number, line in enumerate(io.StringIO(text), start=1):
        try:
            rows += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f'{path}, line {number} is not JSON: {error}') from None
    return rows


def parse_table(text, path, default_delimiter):
    """Parse a table with a header. ``default_delimiter`` belongs to the file's ending; the header can have another."""
    first_line = text.partition('\n')[0].rstrip('\r')
    declaration = re.fullmatch(r'sep=(.)', first_line)     # Excel's declaration of the delimiter
    text = text[len(first_line):].lstrip('\r\n') if declaration else text
    delimiter = declaration[1] if declaration else detect_delimiter(first_line, default_delimiter)
    if delimiter != default_delimiter:
        logger.info('%s: its columns are separated by %s', path, DELIMITERS.get(delimiter, repr(delimiter)))
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    try:
        return parse_rows(reader, delimiter, path)
    except csv.Error as error:
        is_about_quotes = any(sign in str(error) for sign in ('"', 'end of data', 'limit'))
        cause = ': a quote mark is not closed, or one within a text is not doubled' if is_about_quotes else ''
        raise UserError(f'{path}, line {reader.line_num} is no row of a table: {error}{cause}') from None


def parse_rows(reader, delimiter, path):
    names, rows, end = next(reader, []), [], reader.line_num
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f'{path} has the column {repeated!r} more than once')
    for cells in reader:
        begin, end = end + 1, reader.line_num
        if not cells:
            continue
        lines = f'line {begin}' if begin == end else f'lines {begin} to {end}'
        location = f'{path}: row {len(rows)} (counted from 0, {lines})'
        if len(cells) != len(names):
            remedy = f'put quotes around texts with {DELIMITERS.get(delimiter, repr(delimiter))}' if begin == end else \
                'a quote mark may not be closed'
            raise UserError(f'{location} has not as many cells as there are columns ({len(cells)} and {len(names)}); '
                            f'{remedy}')
        if begin < end and any(contains_rows(cells, column, delimiter) for column in range(len(cells))):
            raise UserError(f'{location} has a text over several lines that looks like rows: a quote mark is not '
                            'closed. If it is one text, write it on one line')
        rows.append(dict(zip(names, cells)))
    return rows


def contains_rows(cells, column, delimiter):
    """Whether a cell holds the end of a row, complete rows, and the start of another row.

    It is then the text between a quote mark that is not closed and the next quote mark.
    """
    lines = cells[column].splitlines()
    if len(lines) < 2:
        return False
    first, *middle, last = lines
    return first.count(delimiter) >= len(cells) - 1 - column and last.count(delimiter) >= column and all(
        line.count(delimiter) >= len(cells) - 1 for line in middle if line)


def detect_delimiter(header, default):
    """Detect the delimiter of a header: the default, unless it gives one column and another gives more."""
    counts = {delimiter: len(next(csv.reader([header], delimiter=delimiter), []))
              for delimiter in (default, *DELIMITERS)}
    return default if counts[default] > 1 else max(counts, key=counts.get)

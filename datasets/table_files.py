"""The rows of a table's file: .json, .jsonl, .csv or .tsv."""
import csv
import io
import logging
import os
import re

from datasets.bases import read_entries
from utils.errors import UserError
from utils.iotools import MOST_JSON, parse_json, refuse_irregular

logger = logging.getLogger('Pedestal.dataset')

DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'vertical bars'}


def read_rows(path):
    """The rows of a table: a list of mappings."""
    refuse_irregular(path, MOST_JSON)
    ending = os.path.splitext(path)[1].lower()
    if ending == '.json':
        try:
            rows = read_entries(path)
        except UserError:
            read_text(path)     # says more of a file that is not in UTF-8
            raise
    else:
        rows = parse_json_lines(read_text(path), path) if ending == '.jsonl' else \
            parse_table(read_text(path), path, '\t' if ending == '.tsv' else ',')
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f'{path}: row {number} (counted from 0) is a {type(row).__name__} instead of a mapping')
    if not rows:
        raise UserError(f'{path} has no rows')
    return rows


def read_text(path):
    """A file's text, which is in UTF-8."""
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
    """Guess the encoding of bytes that are not UTF-8, by iconv's name: UTF-16 by its mark, GB18030 if all bytes fit."""
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


def parse_table(text, path, usual):
    """The rows of a table with a header. ``usual``: the delimiter by the file's ending; the header may have another."""
    first = text.partition('\n')[0].rstrip('\r')
    named = re.fullmatch(r'sep=(.)', first)     # Excel's way to name it
    text = text[len(first):].lstrip('\r\n') if named else text
    delimiter = named[1] if named else detect_delimiter(first, usual)
    if delimiter != usual:
        logger.info('%s: its columns are separated by %s', path, DELIMITERS.get(delimiter, repr(delimiter)))
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    try:
        return parse_rows(reader, delimiter, path)
    except csv.Error as error:
        of_quotes = any(sign in str(error) for sign in ('"', 'end of data', 'limit'))
        cause = ': a quote mark is not closed, or one within a text is not doubled' if of_quotes else ''
        raise UserError(f'{path}, line {reader.line_num} is no row of a table: {error}{cause}') from None


def parse_rows(reader, delimiter, path):
    names, rows, end = next(reader, []), [], reader.line_num
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise UserError(f'{path} has the column {again!r} more than once')
    for cells in reader:
        begin, end = end + 1, reader.line_num
        if not cells:
            continue
        lines = f'line {begin}' if begin == end else f'lines {begin} to {end}'
        place = f'{path}: row {len(rows)} (counted from 0, {lines})'
        if len(cells) != len(names):
            remedy = f'put quotes around texts with {DELIMITERS.get(delimiter, repr(delimiter))}' if begin == end else \
                'a quote mark may not be closed'
            raise UserError(f'{place} has not as many cells as there are columns ({len(cells)} and {len(names)}); '
                            f'{remedy}')
        if begin < end and any(contains_rows(cells, column, delimiter) for column in range(len(cells))):
            raise UserError(f'{place} has a text over several lines that looks like rows: a quote mark is not closed. If '
                            'it is one text, write it on one line')
        rows.append(dict(zip(names, cells)))
    return rows


def contains_rows(cells, column, delimiter):
    """Whether a cell holds the rest of a row, whole rows, and the beginning of another.

    That is what lies between a quote mark that is not closed and the next one.
    """
    lines = cells[column].splitlines()
    if len(lines) < 2:
        return False
    first, *between, last = lines
    return first.count(delimiter) >= len(cells) - 1 - column and last.count(delimiter) >= column and all(
        line.count(delimiter) >= len(cells) - 1 for line in between if line)


def detect_delimiter(header, usual):
    """The delimiter of a header: the usual one, unless it makes one column and another makes more."""
    counts = {delimiter: len(next(csv.reader([header], delimiter=delimiter), [])) for delimiter in (usual, *DELIMITERS)}
    return usual if counts[usual] > 1 else max(counts, key=counts.get)

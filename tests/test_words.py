"""Prose has no metaphors, and lines end at 120 characters (CONTRIBUTING.md, "Style")."""
import ast
import io
import os
import re
import tokenize

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LONGEST_LINE = 120
SKIPPED_FOLDERS = {'__pycache__', 'data', 'logs'}      # and hidden ones
# Figures of speech that a reader has to guess. The fix is a literal word, not another figure.
METAPHORS = re.compile(r'''\b(
    rooms? | houses? | doors? | doorsteps? | front\ doors? | floors?(?!\s+division) | dwells? | lives?\ in | living\ in
  | born | deaf | leaves?\ of\ absence | take\ leave | parting | stand-ins? | stands?\ in\b(?!\s+front)
  | stands?\ (beside|behind|for\ itself) | stood\ (beside|behind) | (lie|lies|lay)\ (beside|behind|with)
  | (makes?|made|begins?|begun|drawn|read|built)\ anew | goes?\ on\ with | going\ on\ with | without\ a\ word
  | hangs?\ on\ (a|an|the|it|its|that|this|what|which)\b | speaks?\ for | for\ nothing
  | (is|are|was|were|be|been)\ told | has\ nothing\ to\ say | (has|have)\ no\ say
  | released\ way | released\ code
)\b''', re.IGNORECASE | re.VERBOSE)
RELATIVES = re.compile(r'(Of|What|Where|Whatever|Whoever|Behind|Beside|Such)\s')


def list_files(*endings):
    """The repository's files with one of the ``endings``, relative to its root."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith('.'))
        for name in sorted(names):
            if name.endswith(endings):
                yield os.path.relpath(os.path.join(folder, name), ROOT).replace(os.sep, '/')


def read_text(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as file:
        return file.read()


def python_prose(source):
    """(line number, text) of the docstrings and comments of Python source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, 'lineno', 1), re.sub(r'``[^`]*``', '``code``', docstring)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip('# ')


def markdown_prose(source):
    """(line number, text) of the paragraphs, headings and table rows of Markdown, without code."""
    paragraph, start, in_code = [], 1, False
    for number, line in enumerate([*source.split('\n'), ''], 1):
        fence = line.lstrip().startswith('```')
        if fence or in_code or not line.strip() or line.startswith(('|', '#')) or re.match(r'\s*([-*]|\d+\.)\s', line):
            if paragraph:
                yield start, ' '.join(paragraph)
            paragraph, start = [], number
        in_code ^= fence
        if line.strip() and not fence and not in_code:
            paragraph.append(re.sub(r'`[^`]*`', '`code`', line.strip()))


def hash_comments(source):
    """(line number, text) of the comments of a shell script or a YAML file."""
    for number, line in enumerate(source.split('\n'), 1):
        match = re.search(r'(?:^|\s)#\s?(.*)$', line)
        if match:
            yield number, match[1]


def prose_of(path):
    readers = {'.py': python_prose, '.md': markdown_prose, '.sh': hash_comments, '.yaml': hash_comments}
    return readers[os.path.splitext(path)[1]](read_text(path))


def find_long_lines(path):
    for number, line in enumerate(read_text(path).split('\n'), 1):
        if len(line) > LONGEST_LINE and not line.startswith('|') and not re.search(r'https?://', line):
            yield f'{path}:{number}: {len(line)} characters'


def find_metaphors(path):
    for number, text in prose_of(path):
        for match in METAPHORS.finditer(text):
            yield f'{path}:{number}: {match[0]}'


def find_relatives(path):
    for number, text in prose_of(path):
        text = re.sub(r'^(?:[-*]|\d+\.)\s+', '', text)
        for sentence in re.split(r'(?<=[.!?])\s+', text.replace('**', '')):
            if RELATIVES.match(sentence) and not sentence.endswith('?') and not text.startswith('#'):
                yield f'{path}:{number}: {sentence[:80]}'


ENDINGS = ('.py', '.sh', '.yaml', '.md')
CASES = {'metaphors': (find_metaphors, ENDINGS),
         'long lines': (find_long_lines, ENDINGS),
         'sentences that begin with Of, What, Where ...': (find_relatives, ('.md',))}


@pytest.mark.parametrize('case', CASES)
def test_no_file_has(case):
    find, endings = CASES[case]
    places = [place for path in list_files(*endings) for place in find(path)]
    assert not places, f'{len(places)} {case}:\n' + '\n'.join(places)


@pytest.mark.parametrize('text, count', [
    ('Each model has a room of its own.', 1), ('Files are made anew and stand behind the door.', 3),
    ('The array is created again after the loop.', 0), ('It uses the floor division of numbers.', 0)])
def test_metaphors_are_recognized(text, count):
    assert len(METAPHORS.findall(text)) == count

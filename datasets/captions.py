"""Validate captions of annotations and queries."""
import ast
import html
import json
import re
import unicodedata

MAX_CAPTION_LENGTH = 10_000   # characters; byte pair encoding takes time quadratic in the length of a word
INVISIBLE = {'Cc', 'Cf', 'Cs', 'Zs', 'Zl', 'Zp', 'Mn', 'Me'}   # Unicode categories of invisible characters
BLANK = frozenset('\u115f\u1160\u2800\u3164\uffa0')   # letters and symbols without a visible glyph

STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
LIST = re.compile(rf'\[\s*(?:{STRING})(?:\s*,\s*(?:{STRING}))*\s*,?\s*\]', re.DOTALL)
LIST_LIKE = re.compile(r"""\[\s*['"].*\]""", re.DOTALL)


def is_empty_caption(text):
    r"""Whether a text is invisible: white space, zero-width and other invisible characters, also as HTML entities.

    >>> is_empty_caption(' \u200b&nbsp;'), is_empty_caption('a')
    (True, False)
    """
    return all(unicodedata.category(character) in INVISIBLE or character in BLANK
               for character in html.unescape(html.unescape(text)))


def caption_problem(caption):
    """Describe the problem of a caption; None if there is none."""
    if len(caption) > MAX_CAPTION_LENGTH:
        return f'a caption of {len(caption):,} characters, and at most {MAX_CAPTION_LENGTH:,} are read'
    if is_empty_caption(caption):
        return 'an empty caption'
    if not is_encodable(caption):
        return 'a caption with half of a character (a lone surrogate)'
    return None


def is_encodable(text):
    """Whether a text can be encoded: JSON's escapes can contain lone surrogates, which are no characters."""
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        return False
    return True


def looks_like_list(caption):
    """Whether a caption is a list of texts that is written as one text, such as ``"['a man', 'a tall man']"``."""
    return '[' in caption and LIST_LIKE.fullmatch(caption.strip()) is not None


def parse_caption_list(caption):
    """Parse a list that is written as one text in the syntax of JSON or Python; None for other syntax.

    >>> parse_caption_list("['a man', 'a tall man']")
    ['a man', 'a tall man']
    """
    caption = caption.strip()
    try:
        texts = json.loads(caption)
        return texts if all(isinstance(text, str) for text in texts) else None
    except (ValueError, RecursionError):
        pass
    if not LIST.fullmatch(caption):    # NumPy writes no commas, so Python would join the texts
        return None
    try:
        return [ast.literal_eval(text) for text in re.findall(STRING, caption, re.DOTALL)]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None

"""Find attributes in captions by a lexicon: a YAML file of words, their synonyms and their categories.

The file has one mapping ``{word: [synonyms]}`` per category, and combinations such as ``color + upper garment``.
``configs/lexicon/english.yaml`` is the default lexicon and explains the format.
"""
import os
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from datasets.eda import STOP_WORDS
from utils.errors import UserError, unknown_name_error
from utils.safe_yaml import load_yaml

DEFAULT_LEXICON = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs', 'lexicon',
                               'english.yaml')

# A word, or one Chinese or Japanese character, because these languages have no spaces; else a punctuation mark.
CJK = '\u3040-\u30ff\u3400-\u9fff'
WORD = rf"[{CJK}]|[^\W{CJK}]+(?:['\u2019][^\W{CJK}]+)*"
TOKEN = rf'{WORD}|[^\w\s]'

# A combination such as `color + upper garment` matches "black and white striped shirt": a word of the first category,
# more such words, few modifiers, then a word of the second category. It also matches "the shirt is black and white".
MAX_MODIFIERS = 3
JOINERS = frozenset(('and', 'or', '&', '/', '-', ','))
COPULAS = frozenset(('is', 'are', 'was', 'were'))
# Words that end the phrase of a garment, as in 'a man in black wearing jeans'.
PHRASE_ENDS = STOP_WORDS | {'wearing', 'wears', 'wear', 'carrying', 'carries', 'holding', 'holds', 'walking', 'walks',
                            'standing', 'stands', 'dressed', 'looking', 'worn', 'along'}


@dataclass(frozen=True)
class Token:
    """A token of a caption: its text in lower case, and the ``{category: word}`` that the lexicon has for it."""
    text: str
    words: dict


class Lexicon:
    """Words by category.

    Args:
        categories: ``{category: {word: [synonyms]}}``.
        combinations: ``{category: (first category, second category)}``.

    Attributes:
        words: ``[(category, word)]`` of all categories that are reported, in the file's order.

    Example:
        >>> lexicon = Lexicon({'color': {'red': [], 'gray': ['grey']}, 'garment': {'coat': [], 'shoes': ['shoe']}},
        ...                   {'garment color': ('color', 'garment')})
        >>> sorted(lexicon.find('A red coat. His shoes are grey.'))     # doctest: +NORMALIZE_WHITESPACE
        [('color', 'gray'), ('color', 'red'), ('garment', 'coat'), ('garment', 'shoes'), ('garment color', 'gray'),
         ('garment color', 'red')]
    """

    def __init__(self, categories, combinations=None):
        self.categories, self.combinations = categories, dict(combinations or {})
        self.words = [(category, word) for category, words in categories.items() if not category.startswith('_')
                      for word in words]
        self.words += [(name, word) for name, (first, _) in self.combinations.items() for word in categories[first]]
        self.words_by_entry = {}       # {entry: {category: word}}
        for category, words in categories.items():
            for word, synonyms in words.items():
                for entry in (word, *synonyms):
                    self.words_by_entry.setdefault(normalize_entry(entry), {})[category] = word
        self.entries = sorted(self.words_by_entry, key=lambda entry: (-len(entry), entry))    # the longest first
        self.tokens = re.compile('|'.join([*map(entry_pattern, self.entries), TOKEN]))
        self.described = {second for _, second in self.combinations.values()}

    def find(self, caption):
        """Return the set of ``(category, word)`` that a caption mentions."""
        tokens = self.tokenize(caption)
        found = {(category, word) for token in tokens for category, word in token.words.items()
                 if not category.startswith('_')}
        for name, (first, second) in self.combinations.items():
            for position, token in enumerate(tokens):
                if first in token.words and self.describes(tokens, position, first, second):
                    found.add((name, token.words[first]))
        return found

    def tokenize(self, caption):
        """Split a caption into :class:`Token`; an entry of several words is one token."""
        return [Token(match[0], self.words_by_entry[self.entries[match.lastindex - 1]] if match.lastindex else {})
                for match in self.tokens.finditer(normalize_entry(caption))]

    def describes(self, tokens, position, first, second):
        """Whether the word at ``position`` describes a word of the category ``second``, after or before it."""
        return (second in self.described_after(tokens, position, first)
                or second in self.described_before(tokens, position, first))

    def described_after(self, tokens, position, first):
        """The categories of the word after a color that the color describes, as in 'black and white striped shirt'."""
        index = end_of_series(tokens, position, first, step=1)
        for token in tokens[index:index + MAX_MODIFIERS + 1]:
            if self.described & token.words.keys():
                return token.words
            if token.text in PHRASE_ENDS or is_punctuation(token.text) and token.text != '-':
                break
        return {}

    def described_before(self, tokens, position, first):
        """The categories of the subject of a sentence such as 'the shirt is black and white'."""
        before = tokens[:end_of_series(tokens, position, first, step=-1) + 1]
        if before and before[-1].text in ('and', ','):     # 'the hair is long and black'
            before = before[:-1]
        for modifiers in range(2):                         # 'is dark black'
            rest = before[:len(before) - modifiers]
            if len(rest) > 1 and rest[-1].text in COPULAS:
                subject = rest[-3] if rest[-2].text in ('that', 'which') and len(rest) > 2 else rest[-2]
                return subject.words if self.described & subject.words.keys() else {}
        return {}

    def group_captions(self, captions):
        """Return ``{(category, word): bool [Q]}``, which captions mention each word, in the order of :attr:`words`."""
        groups = {key: np.zeros(len(captions), bool) for key in self.words}
        for index, caption in enumerate(captions):
            for key in self.find(caption):
                groups[key][index] = True
        return groups


def end_of_series(tokens, position, category, step):
    """The index after the words of a category that are joined to the one at ``position``; before, if ``step`` is -1.

    >>> tokens = [Token(text, words) for text, words in (('red', {'color': 'red'}), ('and', {}),
    ...                                                  ('blue', {'color': 'blue'}), ('coat', {}))]
    >>> end_of_series(tokens, 0, 'color', step=1)
    3
    """
    def has_category(index):
        return 0 <= index < len(tokens) and category in tokens[index].words

    index = position + step
    while True:
        is_joined = 0 <= index < len(tokens) and tokens[index].text in JOINERS and has_category(index + step)
        if not (is_joined or has_category(index)):
            return index
        index += 2 * step if is_joined else step


def is_punctuation(text):
    return not any(character.isalnum() for character in text)


def normalize_entry(text):
    """Convert to lower case and to composed characters, so that equal texts have equal characters."""
    return unicodedata.normalize('NFKC', text).lower().strip()


def entry_pattern(entry):
    """The regular expression of an entry, as one group. Characters of Chinese and Japanese need no word boundary.

    >>> pattern = entry_pattern('shoulder bag')
    >>> [bool(re.search(pattern, text)) for text in ('a shoulder-bag.', 'shoulder bags', 'shoulder bagpipe')]
    [True, True, False]
    """
    parts = [re.escape(part) for part in re.split(r'[\s-]+', entry)]
    before = '' if re.match(f'[{CJK}]', entry) else r'(?<!\w)'
    after = '' if re.search(f'[{CJK}]$', entry) else r'(?:s|es)?(?!\w)'
    return f"({before}{'[ -]*'.join(parts)}{after})"


# -- reading -----------------------------------------------------------------------------------------------------------

def read_lexicon(path=DEFAULT_LEXICON):
    """Read a :class:`Lexicon` from a YAML file.

    Raises:
        UserError: the file is missing, or is no lexicon. The error names the file, the category and the word.
    """
    content = load_yaml(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f'{path} must hold categories of words, such as `color: {{red: [], gray: [grey]}}`')
    for category in content:
        require_text(path, 'the category', category)
    categories = {category: read_words(path, category, value) for category, value in content.items()
                  if not isinstance(value, str)}
    combinations = {name: read_combination(path, name, value, categories) for name, value in content.items()
                    if isinstance(value, str)}
    return Lexicon(categories, combinations)


def read_words(path, category, words):
    """Validate the mapping of a category, and return ``{word: [synonyms]}``."""
    if not isinstance(words, dict) or not words:
        raise UserError(f'{path}, {category}: must hold words with their synonyms, such as `gray: [grey]`, or name two '
                        'categories, such as `color + upper garment`')
    known, result = {}, {}     # {entry: its word}
    for word, synonyms in words.items():
        synonyms = [] if synonyms is None else [synonyms] if isinstance(synonyms, str) else synonyms
        if not isinstance(synonyms, list):
            raise UserError(f'{path}, {category}, {word}: the synonyms must be a list, such as [grey, charcoal]')
        for entry in (word, *synonyms):
            require_text(path, f'{category}: the word', entry)
            other = known.setdefault(normalize_entry(entry), word)
            if other != word:
                raise UserError(f"{path}, {category}: '{entry}' is listed for both '{other}' and '{word}'; remove one")
        result[word] = synonyms
    return result


def read_combination(path, name, text, categories):
    """Validate a combination, and return ``(first category, second category)``."""
    parts = [part.strip() for part in text.split('+')]
    if len(parts) != 2:
        raise UserError(f"{path}, {name}: '{text}' must name two categories, such as `color + upper garment`")
    for part in parts:
        if part not in categories:
            raise unknown_name_error(f'category in {path}, {name}:', part, categories)
    return tuple(parts)


def require_text(path, what, entry):
    """Raise :class:`UserError` unless an entry is a text with a letter. YAML reads ``no`` as false and ``1`` as 1."""
    if not isinstance(entry, str):
        raise UserError(f"{path}, {what} {entry!r} must be text: put it in quotes")
    if not any(character.isalnum() for character in entry):
        raise UserError(f'{path}, {what} {entry!r} has no letter')

"""Find attributes in captions by a lexicon: a YAML file of words, their synonyms and their categories.

The file has one mapping ``{word: [synonyms]}`` per category, and combinations such as ``color + upper garment``.
``configs/lexicon/english.yaml`` is the default lexicon and explains the format.
"""
import os
import re
import unicodedata
from typing import NamedTuple

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


class Token(NamedTuple):
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
        self.words_by_key = {}         # {key of an entry: {category: word}}
        for category, words in categories.items():
            for word, synonyms in words.items():
                for entry in (word, *synonyms):
                    self.words_by_key.setdefault(entry_key(entry), {})[category] = word
        self.prefixes = {key[:length] for key in self.words_by_key for length in range(1, len(key))}
        self.described = {}            # {first category: the second categories of its combinations}
        for first, second in self.combinations.values():
            self.described.setdefault(first, set()).add(second)

    def find(self, caption):
        """Return the set of ``(category, word)`` that a caption mentions."""
        tokens = self.tokenize(caption)
        found = {(category, word) for token in tokens for category, word in token.words.items()
                 if not category.startswith('_')}
        for position in (position for position, token in enumerate(tokens) if token.words):
            words = tokens[position].words
            for name, (first, second) in self.combinations.items():
                if first in words and self.describes(tokens, position, first, second):
                    found.add((name, words[first]))
        return found

    def tokenize(self, caption):
        """Split a caption into :class:`Token`; an entry of several words is one token."""
        texts, tokens, start = split_tokens(caption), [], 0
        while start < len(texts):
            end, words = self.match_entry(texts, start)
            tokens.append(Token(' '.join(texts[start:end]), words))
            start = end
        return tokens

    def match_entry(self, texts, start):
        """Match the longest entry at ``start``: ``(end, {category: word})``; one token and ``{}`` if there is none."""
        key, match = '', (start + 1, {})
        for end in range(start, len(texts)):
            if texts[end] != '-':
                if is_punctuation(texts[end]):
                    break
                key += remove_possessive(texts[end])
                words = self.look_up(key)
                match = match if words is None else (end + 1, words)
            if key not in self.prefixes:
                break
        return match

    def look_up(self, key):
        """Return ``{category: word}`` of a key, also if it has s or es at its end; None if there is no such entry."""
        words = self.words_by_key.get(key)
        if words is None and key.endswith('s'):
            words = self.words_by_key.get(key[:-1])
            if words is None and key.endswith('es'):
                words = self.words_by_key.get(key[:-2])
        return words

    def describes(self, tokens, position, first, second):
        """Whether the word at ``position`` describes a word of the category ``second``, after or before it."""
        return (second in self.described_after(tokens, position, first)
                or second in self.described_before(tokens, position, first))

    def described_after(self, tokens, position, first):
        """The categories of the word after a color that the color describes, as in 'black and white striped shirt'."""
        index = end_of_series(tokens, position, first, step=1)
        rest = [token for token in tokens[index:index + 2 * MAX_MODIFIERS + 1] if token.text != '-']
        for token in rest[:MAX_MODIFIERS + 1]:
            if self.described[first] & token.words.keys():
                return token.words
            if token.text in PHRASE_ENDS or is_punctuation(token.text):
                break
        return {}

    def described_before(self, tokens, position, first):
        """The categories of the subject of a sentence such as 'the shirt is black and white'."""
        before = tokens[:end_of_series(tokens, position, first, step=-1) + 1]
        if before and before[-1].text in ('and', ','):     # 'the hair is long and black'
            before = before[:-1]
        has_modifier = bool(before) and before[-1].text not in PHRASE_ENDS
        for modifiers in range(1 + has_modifier):          # 'is dark black'
            rest = before[:len(before) - modifiers]
            if len(rest) > 1 and rest[-1].text in COPULAS:
                subject = rest[-3] if rest[-2].text in ('that', 'which') and len(rest) > 2 else rest[-2]
                return subject.words if self.described[first] & subject.words.keys() else {}
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


def is_punctuation(token):
    return not token[0].isalnum()


def split_tokens(text):
    """Split a text into words and punctuation marks, in lower case.

    >>> split_tokens("A man's T-shirt, red.")
    ['a', "man's", 't', '-', 'shirt', ',', 'red', '.']
    """
    return re.findall(TOKEN, unicodedata.normalize('NFKC', text).lower())


def entry_key(entry):
    """Return an entry without spaces and hyphens, so that 'T-shirt', 't shirt' and 'tshirt' are equal."""
    return ''.join(remove_possessive(token) for token in split_tokens(entry) if not is_punctuation(token))


def remove_possessive(token):
    return token.removesuffix("'s").removesuffix('\u2019s')


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
            other = known.setdefault(entry_key(entry), word)
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

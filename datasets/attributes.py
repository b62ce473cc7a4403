"""What captions are made of: each word's part of speech, and the attributes ('a bright red leather jacket') that A2TE's
``attribute`` compares with images."""
import functools
import importlib.util
import re
from collections import namedtuple

import torch
from tqdm import tqdm

from utils.errors import UserError, unknown

Word = namedtuple('Word', 'text tag start end')
Word.__doc__ = """A word of a text: ``text[start:end]`` and its Penn Treebank tag ('NN', 'JJ', 'PRP$', ...)."""


def is_noun(tag):
    return tag.startswith('NN')


def is_adjective(tag):
    return tag.startswith('JJ')


def is_pronoun(tag):
    return tag.startswith(('PRP', 'WP'))


# -- taggers -------------------------------------------------------------------------------------------------------------

def load_tagger(name):
    """The tagger that ``--attribute_tagger`` names: a function from a text to its list of :class:`Word`.

    'textblob' works from files that the package brings along, 'spacy' takes the first English model that is installed.

    Raises:
        UserError: an unknown tagger, or one whose package or model isn't installed.
    """
    if name not in TAGGERS:
        raise unknown('tagger', name, TAGGERS)
    return TAGGERS[name]()


@functools.lru_cache(maxsize=None)
def textblob_tagger():
    """The pattern library's tagger (De Smedt and Daelemans, JMLR 2012), as TextBlob ships it."""
    try:
        from textblob.en import lexicon, parse
    except ImportError:
        raise UserError('--attribute_tagger textblob needs the package textblob: pip install textblob') from None

    def tag(text):
        tagged = [(word, tag) for sentence in parse(text, chunks=False, collapse=False) for word, tag in sentence]
        return correct_tags(locate_words(text, tagged), text, lexicon)
    return tag


def locate_words(text, tagged):
    """``[(word, tag), ...]`` that cover a text but for its white space -> its Words. The tagger moves white space within words
    (it joins ': )'), so characters are counted rather than words searched."""
    places = [place for place, character in enumerate(text) if not character.isspace()]
    words, done = [], 0
    for word, tag in tagged:
        first, done = done, done + len(word)
        if word and done <= len(places):
            start, end = places[first], places[done - 1] + 1
            words.append(Word(text[start:end], tag, start, end))
    return words


CLITIC = re.compile(r"(?<=\w)(n't|'(s|t|re|ve|m|ll|d))\b")


def correct_tags(words, text, lexicon):
    """TextBlob's words without two of its habits: the pieces of "'s" and "n't" count as pronouns and nouns, and whatever has a
    hyphen as an adjective, as in 'a white t-shirt'."""
    clitics = {place for clitic in CLITIC.finditer(text) for place in range(*clitic.span())}
    following = [word.tag for word in words[1:]] + ['']
    result = []
    for word, next_tag in zip(words, following):
        if word.start in clitics:
            word = word._replace(tag='POS')
        elif '-' in word.text and is_adjective(word.tag) and not (is_noun(next_tag) or is_adjective(next_tag)):
            last_part = lexicon.get(word.text.rsplit('-', 1)[1], '')
            word = word._replace(tag=last_part if is_noun(last_part) else word.tag)
        result.append(word)
    return result


@functools.lru_cache(maxsize=None)
def spacy_tagger():
    if importlib.util.find_spec('spacy') is None:
        raise UserError('--attribute_tagger spacy needs the package spacy and an English model; textblob needs neither')
    import spacy
    models = [model for model in SPACY_MODELS if spacy.util.is_package(model)]
    if not models:
        raise UserError('--attribute_tagger spacy needs an English model: python -m spacy download en_core_web_sm')
    pipeline = spacy.load(models[0], exclude=['parser', 'ner', 'lemmatizer'])

    def tag(text):
        return [Word(word.text, word.tag_, word.idx, word.idx + len(word.text)) for word in pipeline(text) if not word.is_space]
    return tag


SPACY_MODELS = ('en_core_web_sm', 'en_core_web_md', 'en_core_web_lg', 'en_core_web_trf')
TAGGERS = {'textblob': textblob_tagger, 'spacy': spacy_tagger}


# -- annotation ----------------------------------------------------------------------------------------------------------

OTHER, NOUN, ADJECTIVE, PRONOUN = range(4)   # what annotate_all says of a token

# Tags as letters, to search noun chunks with: nouns after adjectives, which may be joined by a conjunction and followed by
# participles: 'black and red running shoes'.
CHUNK = re.compile('J(?:J|CJ|V)*N+')


def part_of_speech(tag):
    return NOUN if is_noun(tag) else ADJECTIVE if is_adjective(tag) else PRONOUN if is_pronoun(tag) else OTHER


def attribute_groups(words):
    """The words' attribute numbers, a list of ints: 1, 2, ... for the adjectives and nouns of the first, second, ... noun chunk
    that has both, else 0."""
    letters = ''.join({NOUN: 'N', ADJECTIVE: 'J'}.get(part_of_speech(word.tag)) or
                      {'CC': 'C', 'VBN': 'V', 'VBG': 'V'}.get(word.tag, '.') for word in words)
    groups = [0] * len(words)
    for number, chunk in enumerate(CHUNK.finditer(letters), start=1):
        for place in range(*chunk.span()):
            if letters[place] in 'JN':
                groups[place] = number
    return groups


def annotate(caption, tokenizer, tagger, text_length=77):
    """``(attributes, parts)`` of a caption: for each place of its token ids (:func:`datasets.bases.tokenize`) the number of the
    attribute that the token belongs to, 1, 2, ... or 0, and its word's part of speech: OTHER, NOUN, ADJECTIVE or PRONOUN.

    A word that byte pairs split gives all its tokens its number. An attribute that loses its adjective or its noun where a long
    caption is cut is none. Start, end and padding are 0 in both.
    """
    _, spans, text = tokenizer.encode_with_offsets(caption)
    words = tagger(text)
    group_at, part_at = {}, {}     # by character
    for word, group in zip(words, attribute_groups(words)):
        places = range(word.start, word.end)
        group_at.update(dict.fromkeys(places, group))
        part_at.update(dict.fromkeys(places, part_of_speech(word.tag)))
    kept = spans[:text_length - 2]
    attributes = [group_at.get(start, 0) for start, _ in kept]
    parts = [part_at.get(start, OTHER) for start, _ in kept]
    whole = {group for group in set(attributes)
             if {NOUN, ADJECTIVE} <= {part for part, other in zip(parts, attributes) if other == group}}
    attributes = [group if group in whole else 0 for group in attributes]
    rest = [0] * (text_length - 1 - len(kept))
    return [0, *attributes, *rest], [0, *parts, *rest]


def annotate_all(captions, tokenizer, tagger, text_length=77):
    """:func:`annotate` for many captions, once and before workers start: two uint8 tensors [S, L], which they then share."""
    attributes, parts = bytearray(), bytearray()
    for caption in tqdm(captions, desc='parts of speech', leave=False, disable=None):
        for rows, row in zip((attributes, parts), annotate(caption, tokenizer, tagger, text_length)):
            rows.extend(row)
    if not captions:
        return torch.zeros(2, 0, text_length, dtype=torch.uint8).unbind()
    return tuple(torch.frombuffer(rows, dtype=torch.uint8).view(-1, text_length) for rows in (attributes, parts))

"""Tag captions: each word's part of speech, and attributes such as 'a bright red leather jacket'.

A2TE's loss ``attribute`` compares the attributes with images.
"""
import functools
import importlib.util
import re
from collections import namedtuple

import torch
from tqdm import tqdm

from utils.errors import UserError, unknown_name_error

Word = namedtuple('Word', 'text tag start end')
Word.__doc__ = """A word of a text: ``text[start:end]`` and its Penn Treebank tag ('NN', 'JJ', 'PRP$', ...)."""


def is_noun(tag):
    return tag.startswith('NN')


def is_adjective(tag):
    return tag.startswith('JJ')


def is_pronoun(tag):
    return tag.startswith(('PRP', 'WP'))


# -- taggers -----------------------------------------------------------------------------------------------------------

def load_tagger(name):
    """Load the tagger that ``--attribute_tagger`` names: a function from a text to its list of :class:`Word`.

    'textblob' uses files that its package contains. 'spacy' uses the first English model that is installed.

    Raises:
        UserError: the tagger is unknown, or its package or model is not installed.
    """
    if name not in TAGGERS:
        raise unknown_name_error('tagger', name, TAGGERS)
    return TAGGERS[name]()


@functools.lru_cache(maxsize=None)
def textblob_tagger():
    """The tagger of the pattern library (De Smedt and Daelemans, JMLR 2012), which TextBlob contains."""
    try:
        from textblob.en import lexicon, parse
    except ImportError:
        raise UserError('--attribute_tagger textblob needs the package textblob: pip install textblob') from None

    def tag_words(text):
        tagged = [(word, tag) for sentence in parse(text, chunks=False, collapse=False) for word, tag in sentence]
        return correct_tags(locate_words(text, tagged), text, lexicon)
    return tag_words


def locate_words(text, tagged):
    """Find the offsets of ``[(word, tag), ...]``, which cover a text without its white space: a list of :class:`Word`.

    The tagger moves white space within words (it joins ': )'), so characters are counted instead of searching words.
    """
    offsets = [offset for offset, character in enumerate(text) if not character.isspace()]
    words, end_count = [], 0
    for word, tag in tagged:
        start_count, end_count = end_count, end_count + len(word)
        if word and end_count <= len(offsets):
            start, end = offsets[start_count], offsets[end_count - 1] + 1
            words.append(Word(text[start:end], tag, start, end))
    return words


CLITIC = re.compile(r"(?<=\w)(n't|'(s|t|re|ve|m|ll|d))\b")


def correct_tags(words, text, lexicon):
    """Correct two mistakes of TextBlob's tags.

    It tags parts of "'s" and "n't" as pronouns and nouns, and words with a hyphen as adjectives, as in 'a white
    t-shirt'.
    """
    clitic_offsets = {offset for clitic in CLITIC.finditer(text) for offset in range(*clitic.span())}
    next_tags = [word.tag for word in words[1:]] + ['']
    result = []
    for word, next_tag in zip(words, next_tags):
        if word.start in clitic_offsets:
            word = word._replace(tag='POS')
        elif '-' in word.text and is_adjective(word.tag) and not (is_noun(next_tag) or is_adjective(next_tag)):
            last_tag = lexicon.get(word.text.rsplit('-', 1)[1], '')
            word = word._replace(tag=last_tag if is_noun(last_tag) else word.tag)
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

    def tag_words(text):
        return [Word(word.text, word.tag_, word.idx, word.idx + len(word.text))
                for word in pipeline(text) if not word.is_space]
    return tag_words


SPACY_MODELS = ('en_core_web_sm', 'en_core_web_md', 'en_core_web_lg', 'en_core_web_trf')
TAGGERS = {'textblob': textblob_tagger, 'spacy': spacy_tagger}


# -- annotation --------------------------------------------------------------------------------------------------------

OTHER, NOUN, ADJECTIVE, PRONOUN = range(4)

# Noun chunks in a string with a letter for each tag: adjectives, which may be joined by conjunctions or followed by
# participles, then nouns, as in 'black and red running shoes'.
NOUN_CHUNK = re.compile('J(?:J|CJ|V)*N+')


def part_of_speech(tag):
    return NOUN if is_noun(tag) else ADJECTIVE if is_adjective(tag) else PRONOUN if is_pronoun(tag) else OTHER


def attribute_groups(words):
    """Number the attributes of a text, a list with an int for each word.

    The adjectives and nouns of the first noun chunk that has both get 1, those of the second 2, and so on. Other words
    get 0.
    """
    letters = ''.join({NOUN: 'N', ADJECTIVE: 'J'}.get(part_of_speech(word.tag)) or
                      {'CC': 'C', 'VBN': 'V', 'VBG': 'V'}.get(word.tag, '.') for word in words)
    groups = [0] * len(words)
    for number, chunk in enumerate(NOUN_CHUNK.finditer(letters), start=1):
        for index in range(*chunk.span()):
            if letters[index] in 'JN':
                groups[index] = number
    return groups


def annotate(caption, tokenizer, tagger, text_length=77):
    """Tag the tokens of a caption (:func:`datasets.text.tokenize`). The tagger reads words, not tokens.

    A word of several tokens gives each of them its values. If truncation removes an attribute's adjective or noun, the
    attribute is dropped. Start, end and padding are 0.

    Returns:
        ``(groups, parts_of_speech)``: lists of ``text_length`` ints. A group is the number of the attribute that the
        token belongs to, 1, 2, ..., or 0. A part of speech is OTHER, NOUN, ADJECTIVE or PRONOUN.
    """
    _, spans, text = tokenizer.encode_with_offsets(caption)
    words = tagger(text)
    group_at, part_at = {}, {}     # by character offset
    for word, group in zip(words, attribute_groups(words)):
        offsets = range(word.start, word.end)
        group_at.update(dict.fromkeys(offsets, group))
        part_at.update(dict.fromkeys(offsets, part_of_speech(word.tag)))
    spans = spans[:text_length - len(tokenizer.add_special_tokens([], text_length))]
    groups = [group_at.get(start, 0) for start, _ in spans]
    parts = [part_at.get(start, OTHER) for start, _ in spans]
    complete = {group for group in set(groups)
                if {NOUN, ADJECTIVE} <= {part for part, part_group in zip(parts, groups) if part_group == group}}
    groups = [group if group in complete else 0 for group in groups]
    padding = [0] * (text_length - 1 - len(spans))
    return [0, *groups, *padding], [0, *parts, *padding]


def annotate_all(captions, tokenizer, tagger, text_length=77):
    """Apply :func:`annotate` to all captions before workers start, which then share the result.

    Returns:
        ``(groups, parts_of_speech)``: uint8 [S, L] each.
    """
    groups, parts_of_speech = bytearray(), bytearray()
    for caption in tqdm(captions, desc='parts of speech', leave=False, disable=None):
        for rows, row in zip((groups, parts_of_speech), annotate(caption, tokenizer, tagger, text_length)):
            rows.extend(row)
    if not captions:
        return torch.zeros(2, 0, text_length, dtype=torch.uint8).unbind()
    return tuple(torch.frombuffer(rows, dtype=torch.uint8).view(-1, text_length) for rows in (groups, parts_of_speech))

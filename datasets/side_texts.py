"""Side texts: further texts that an annotation gives for each caption of an image.

A side text stands under its own key next to ``captions``, in a list in the order of the captions. It belongs to the
caption: it follows its caption if ``--noisy_rate`` moves the caption to another image. An empty text means that a
caption has none.

=======================  ==============================================================================================
key                      a side text
=======================  ==============================================================================================
``captions_bt``          a back-translation, a text (TBPS-CLIP, AAAI 2024)
``diversity_captions``   a second caption, a text or a list of sub-sentences; a sub-sentence is a text or a list of
                         rewritings, each a text (ICL, CVPR 2025)
=======================  ==============================================================================================
"""
import contextlib
import json
import re
from collections.abc import Sequence

import numpy as np

from datasets.array_cache import Strings
from datasets.captions import caption_problem
from utils.errors import describe_type

LIST_TEXT = re.compile(r'\s*\[\s*[\[\'"].*\]\s*', re.DOTALL)     # a list of texts or lists that is written as text
BACK_TRANSLATIONS, SECOND_CAPTIONS = 'captions_bt', 'diversity_captions'
DESCRIPTIONS = {BACK_TRANSLATIONS: 'texts, a back-translation of each caption',
                SECOND_CAPTIONS: 'second captions, one for each caption (docs/icl.md)'}


class SideTexts(Sequence):
    """The side texts of training pairs under one key: ``side_texts[i]`` is that of pair i, '' if it has none.

    Args:
        strings: :class:`datasets.array_cache.Strings`, the side texts as JSON; an empty text for none.
        rows: int64 [S], the index in ``strings`` of each pair's side text; by default, all in their order.
    """

    def __init__(self, strings, rows=None):
        self.strings, self.rows = strings, np.arange(len(strings)) if rows is None else rows

    @classmethod
    def from_values(cls, values):
        return cls(Strings.from_texts(json.dumps(value) if value else '' for value in values))

    @classmethod
    def join(cls, parts):
        """Concatenate the side texts of several datasets."""
        return cls(Strings.from_texts(part.strings[row] for part in parts for row in part.rows.tolist()))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        text = self.strings[int(self.rows[index])]
        return json.loads(text) if text else ''

    def select(self, rows):
        """The side texts of the pairs ``rows``, int64 [N]."""
        return SideTexts(self.strings, self.rows[rows])

    @property
    def missing_count(self):
        """The number of pairs without a side text."""
        return int((np.diff(self.strings.ends, prepend=0)[self.rows] == 0).sum())


def side_text_problem(entry):
    """Describe the problem of the side texts of an annotation's entry; None if there is none."""
    count = len(entry['captions'])
    for key in DESCRIPTIONS:
        if key in entry and (problem := list_problem(entry[key], key, count)):
            return f"has '{key}' {problem}"
    return None


def list_problem(side_texts, key, count):
    """Describe the problem of the side texts of ``count`` captions under a key; None if there is none."""
    is_complete = isinstance(side_texts, list) and len(side_texts) == count
    if not is_complete or key == BACK_TRANSLATIONS and not all(isinstance(text, str) for text in side_texts):
        return f'that are no list of {count} {DESCRIPTIONS[key]}'
    if key == SECOND_CAPTIONS:
        for number, side_text in enumerate(side_texts, start=1):
            if side_text != '' and (problem := second_caption_problem(side_text)):
                return f'whose element {number} {problem} (docs/icl.md)'
    return None


def read_side_texts(row, columns, has_list):
    """Read the side texts of a row of a table: ``{key: a list with one of each caption}``, without missing ones.

    Args:
        row: the row, a mapping.
        columns: ``{key: column}``; the row may lack columns.
        has_list: whether the row has a list of captions. It then has lists of side texts.
    """
    values = {key: parse_list(row.get(column)) for key, column in columns.items()}
    return {key: value if has_list else [value] for key, value in values.items()
            if value not in (None, '') and value == value}      # tables have NaN in empty cells


def parse_list(value):
    """Parse a list that is written as one text of JSON, as in a table in CSV. Other values do not change."""
    if isinstance(value, str) and LIST_TEXT.fullmatch(value):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def append_captions(entry, captions, side_texts):
    """Append captions to an annotation's entry, with their side texts ``{key: list}``, in place."""
    for key in DESCRIPTIONS:
        if key in entry or key in side_texts:
            known = entry.setdefault(key, [''] * len(entry['captions']))
            known += side_texts.get(key) or [''] * len(captions)
    entry['captions'] += captions


def second_caption_problem(second_caption):
    """Describe the problem of a second caption; None if there is none."""
    sub_sentences = second_caption if isinstance(second_caption, list) else [second_caption]
    if not sub_sentences:
        return 'is an empty list instead of a text or a list of sub-sentences'
    for sub_sentence in sub_sentences:
        rewritings = sub_sentence if isinstance(sub_sentence, list) else [sub_sentence]
        if not rewritings:
            return 'has a sub-sentence without rewritings'
        for text in rewritings:
            if not isinstance(text, str):
                return f'holds {describe_type(text)} instead of a text'
            if problem := caption_problem(text):
                return f'holds {problem}'
            if LIST_TEXT.fullmatch(text):
                return 'holds a list that is written as text and is no JSON'
    return None


def draw_second_caption(second_caption, rng):
    """Draw a text from a second caption as ICL does.

    The sub-sentences are shuffled, and one rewriting of each is chosen. A second caption that is a text stays as it is.

    Args:
        second_caption: a text, or a list of sub-sentences, each a text or a list of texts.
        rng: a ``random.Random``.

    Example:
        >>> import random
        >>> draw_second_caption([['a man', 'a guy'], 'in a red coat'], random.Random(0))
        'a guy in a red coat'
    """
    if isinstance(second_caption, str):
        return second_caption
    sub_sentences = list(second_caption)
    rng.shuffle(sub_sentences)
    return ' '.join(text if isinstance(text, str) else rng.choice(text) for text in sub_sentences)

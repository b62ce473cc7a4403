"""CLIP's byte-pair encoding (Radford et al., ICML 2021), with one token exchanged for ``<|mask|>``."""
import functools
import gzip
import html
import os

import ftfy
import regex

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VOCABULARY = os.path.join(ROOT, 'data', 'bpe_simple_vocab_16e6.txt.gz')
MERGES = 48894   # of the file's merges, those that CLIP uses
START, MASK, END = '<|startoftext|>', '<|mask|>', '<|endoftext|>'


@functools.lru_cache(maxsize=None)
def byte_characters():
    """{byte: character} with a visible character for each byte: printable Latin-1 stands for itself, other bytes for
    characters from 256 on. The order is that of the vocabulary's first 256 tokens."""
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def clean(text):
    """Repaired encoding, no HTML entities, single spaces, lower case.

    >>> clean('A  woman &amp; a dog ')
    'a woman & a dog'
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return ' '.join(text.split()).lower()


REMOVED_CHARACTERS = regex.compile(r'[.!"()*#:;~]')


def remove_punctuation(caption, most_words=77):
    """A caption as TBPS-CLIP reads it, in training and in evaluation: lower case, no ``. ! " ( ) * # : ; ~``, single spaces, the first
    77 words.

    >>> remove_punctuation('A man (tall): red jacket.')
    'a man tall red jacket'
    """
    return ' '.join(REMOVED_CHARACTERS.sub(' ', caption.lower()).split()[:most_words])


class SimpleTokenizer:
    """Text to token ids and back: ``SimpleTokenizer().encode('a red coat')`` gives ``[320, 736, 7356]``.

    ``encoder`` maps tokens to ids: 256 bytes, the same at a word's end (``</w>``), 48,893 merges, and mask, start
    and end (49405, 49406, 49407). ``<|mask|>`` takes the place of the last merge, so that the vocabulary stays CLIP's
    49,408.
    """

    def __init__(self, bpe_path=VOCABULARY):
        self.byte_encoder = byte_characters()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        with gzip.open(bpe_path, 'rt', encoding='utf-8') as file:
            next(file)  # the version
            # Without the merge whose id is the mask's: its token could be made but has no id.
            merges = [tuple(next(file).split()) for _ in range(MERGES - 1)]
        characters = list(self.byte_encoder.values())
        tokens = characters + [c + '</w>' for c in characters] + [''.join(merge) for merge in merges]
        tokens += [MASK, START, END]
        self.encoder = {token: number for number, token in enumerate(tokens)}
        self.decoder = {number: token for token, number in self.encoder.items()}
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.pattern = regex.compile(
            r"<\|startoftext\|>|<\|mask\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE)
        self.cache = {token: [self.encoder[token]] for token in (MASK, START, END)}

    pad = 0                     # a word's id, too: "!"
    key = 'clip'                # of what is kept of its ids
    continues = frozenset()     # no id says that it goes on with a word

    @property
    def start(self):
        return self.encoder[START]

    @property
    def end(self):
        return self.encoder[END]

    @property
    def mask(self):
        return self.encoder[MASK]

    def encode_all(self, texts):
        """:meth:`encode` for many texts."""
        return [self.encode(text) for text in texts]

    def add_special_tokens(self, ids, length):
        """A caption's ids between start and end, cut to ``length`` (None: not cut) without losing the end."""
        ids = [self.start, *ids, self.end]
        return ids if length is None or len(ids) <= length else ids[:length - 1] + ids[-1:]

    def lengths(self, tokens):
        """How many tokens each caption has, start and end included: [S, L] -> [S]. The end has the largest id."""
        return tokens.argmax(dim=1) + 1

    def encode(self, text):
        """The token ids of a text, without start and end.

        >>> SimpleTokenizer().encode('a red coat')
        [320, 736, 7356]
        """
        return [number for word in self.pattern.findall(clean(text)) for number in self.word_ids(word)]

    def encode_with_offsets(self, text):
        """``(ids, spans, cleaned text)``: the ids that ``encode`` gives, and of each the ``(start, end)`` of its characters in
        the cleaned, lower-case text. Tokens that share a character's bytes both span the character.

        >>> SimpleTokenizer().encode_with_offsets('A  red raincoat')
        ([320, 736, 3128, 7356], [(0, 1), (2, 5), (6, 10), (10, 14)], 'a red raincoat')
        """
        text = clean(text)
        ids, spans = [], []
        for match in self.pattern.finditer(text):
            places = range(*match.span())   # of each byte's character
            if not match[0].isascii():
                places = [place for place, c in zip(places, match[0]) for _ in c.encode('utf-8')]
            done = 0
            for number in self.word_ids(match[0]):
                first, done = done, done + len(self.decoder[number].removesuffix('</w>'))
                ids.append(number)
                spans.append((places[first], places[done - 1] + 1))
        return ids, spans, text

    def decode(self, ids):
        """The text of token ids; words are followed by a space.

        >>> SimpleTokenizer().decode([320, 736, 7356])
        'a red coat '
        """
        text = ''.join(self.decoder[int(number)] for number in ids)
        return bytes(self.byte_decoder[c] for c in text).decode('utf-8', errors='replace').replace('</w>', ' ')

    def word_ids(self, word):
        if word not in self.cache:
            characters = [self.byte_encoder[byte] for byte in word.encode('utf-8')]
            characters[-1] += '</w>'
            self.cache[word] = [self.encoder[token] for token in self.merge(characters)]
        return self.cache[word]

    def merge(self, tokens):
        """Join neighbours, the pair of the lowest rank first and everywhere at once, until no known pair is left."""
        while len(tokens) > 1:
            pair = min(zip(tokens, tokens[1:]), key=lambda p: self.ranks.get(p, MERGES))
            if pair not in self.ranks:
                break
            merged, i = [], 0
            while i < len(tokens):
                joined = tuple(tokens[i:i + 2]) == pair
                merged.append(''.join(pair) if joined else tokens[i])
                i += 2 if joined else 1
            tokens = merged
        return tokens


class CleaningTokenizer(SimpleTokenizer):
    """CLIP's tokenizer of captions that are cleaned first, as TBPS-CLIP does (:func:`remove_punctuation`)."""

    key = 'clip without marks'

    def encode(self, text):
        return super().encode(remove_punctuation(text))

    def encode_with_offsets(self, text):
        return super().encode_with_offsets(remove_punctuation(text))

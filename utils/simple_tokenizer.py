"""CLIP's byte-pair encoding (Radford et al., ICML 2021), with one token replaced by ``<|mask|>``."""
import functools
import gzip
import html
import os

import ftfy
import regex

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MERGES_FILE = 'bpe_simple_vocab_16e6.txt.gz'
VOCABULARY = os.path.join(ROOT, 'data', MERGES_FILE)
MERGES = 48894   # number of the file's merges that CLIP uses
START, MASK, END = '<|startoftext|>', '<|mask|>', '<|endoftext|>'


@functools.lru_cache(maxsize=None)
def byte_characters():
    """Map each byte to a visible character.

    Printable Latin-1 bytes map to themselves, other bytes to characters from 256 on. The order is that of the
    vocabulary's first 256 tokens.

    Returns:
        ``{byte: character}``
    """
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def clean_text(text):
    """Repair the encoding, replace HTML entities, collapse spaces, and convert to lower case.

    Example:
        >>> clean_text('A  woman &amp; a dog ')
        'a woman & a dog'
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return ' '.join(text.split()).lower()


REMOVED_CHARACTERS = regex.compile(r'[.!"()*#:;~]')


def remove_punctuation(caption, max_words=77):
    """Clean a caption as TBPS-CLIP does in training and evaluation.

    The result is in lower case, without ``. ! " ( ) * # : ; ~``, with single spaces, cut to ``max_words`` words.

    Example:
        >>> remove_punctuation('A man (tall): red jacket.')
        'a man tall red jacket'
    """
    return ' '.join(REMOVED_CHARACTERS.sub(' ', caption.lower()).split()[:max_words])


class SimpleTokenizer:
    """Converts text to token ids and back.

    Args:
        bpe_path: the file of merges.

    Attributes:
        encoder: ``{token: id}``: 256 bytes, the same at the end of a word (``</w>``), 48,893 merges, and mask, start
            and end (49405, 49406, 49407). ``<|mask|>`` replaces the last merge, so the vocabulary size is still 49,408.
    """

    def __init__(self, bpe_path=VOCABULARY):
        self.byte_encoder = byte_characters()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        with gzip.open(bpe_path, 'rt', encoding='utf-8') as file:
            next(file)  # the version
            # Skip the last merge: its id is the mask's, so its token would have no id.
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

    pad_id = 0                          # also the id of "!"
    cache_key = 'clip'                  # for caches of ids
    continuation_ids = frozenset()      # no id continues a word

    @property
    def start_id(self):
        return self.encoder[START]

    @property
    def end_id(self):
        return self.encoder[END]

    @property
    def mask_id(self):
        return self.encoder[MASK]

    def encode_all(self, texts):
        """Call :meth:`encode` on each text."""
        return [self.encode(text) for text in texts]

    def add_special_tokens(self, ids, length):
        """Add start and end to a caption's ids, and cut them to ``length`` before the end (None: no cut)."""
        ids = [self.start_id, *ids, self.end_id]
        return ids if length is None or len(ids) <= length else ids[:length - 1] + ids[-1:]

    def lengths(self, tokens):
        """Count the tokens of each caption, with start and end: [S, L] -> [S]. The end has the largest id."""
        return tokens.argmax(dim=1) + 1

    def encode(self, text):
        """Return the token ids of a text, without start and end.

        Example:
            >>> SimpleTokenizer().encode('a red coat')
            [320, 736, 7356]
        """
        return [number for word in self.pattern.findall(clean_text(text)) for number in self.word_ids(word)]

    def encode_with_offsets(self, text):
        """Encode a text, and find the characters of each token.

        Returns:
            ``(ids, spans, cleaned text)``. A span is the ``(start, end)`` of a token's characters in the cleaned text.
            If several tokens share the bytes of a character, each spans the character.

        Example:
            >>> SimpleTokenizer().encode_with_offsets('A  red raincoat')
            ([320, 736, 3128, 7356], [(0, 1), (2, 5), (6, 10), (10, 14)], 'a red raincoat')
        """
        text = clean_text(text)
        ids, spans = [], []
        for match in self.pattern.finditer(text):
            positions = range(*match.span())   # position of each byte's character
            if not match[0].isascii():
                positions = [position for position, character in zip(positions, match[0])
                             for _ in character.encode('utf-8')]
            end = 0
            for number in self.word_ids(match[0]):
                start, end = end, end + len(self.decoder[number].removesuffix('</w>'))
                ids.append(number)
                spans.append((positions[start], positions[end - 1] + 1))
        return ids, spans, text

    def decode(self, ids):
        """Return the text of token ids, with a space after each word.

        Example:
            >>> SimpleTokenizer().decode([320, 736, 7356])
            'a red coat '
        """
        text = ''.join(self.decoder[int(number)] for number in ids)
        return bytes(self.byte_decoder[c] for c in text).decode('utf-8', errors='replace').replace('</w>', ' ')

    def word_ids(self, word):
        """Return the token ids of a word of cleaned text."""
        if word not in self.cache:
            characters = [self.byte_encoder[byte] for byte in word.encode('utf-8')]
            characters[-1] += '</w>'
            self.cache[word] = [self.encoder[token] for token in self.merge(characters)]
        return self.cache[word]

    def merge(self, tokens):
        """Merge pairs of neighboring tokens, by rising rank, until no known pair is left."""
        while len(tokens) > 1:
            pair = min(zip(tokens, tokens[1:]), key=lambda p: self.ranks.get(p, MERGES))
            if pair not in self.ranks:
                break
            merged, i = [], 0
            while i < len(tokens):
                is_pair = tuple(tokens[i:i + 2]) == pair
                merged.append(''.join(pair) if is_pair else tokens[i])
                i += 2 if is_pair else 1
            tokens = merged
        return tokens


class CleaningTokenizer(SimpleTokenizer):
    """CLIP's tokenizer, after :func:`remove_punctuation` as in TBPS-CLIP."""

    cache_key = 'clip without marks'

    def encode(self, text):
        return super().encode(remove_punctuation(text))

    def encode_with_offsets(self, text):
        return super().encode_with_offsets(remove_punctuation(text))


@functools.lru_cache(maxsize=None)
def default_tokenizer(kind=SimpleTokenizer):
    """CLIP's tokenizer of the class ``kind``, loaded once."""
    return kind()

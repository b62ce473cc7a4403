"""BERT's WordPiece tokenizer, by the ``tokenizers`` library, which only it needs."""
import hashlib
import os
from functools import cached_property

from utils.errors import UserError

SPECIAL = PAD, UNKNOWN, START, END, MASK = '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'


def library():
    try:
        import tokenizers
    except ImportError:
        raise UserError("BERT's captions need the tokenizers library: pip install tokenizers") from None
    return tokenizers


class WordPiece:
    """A vocabulary of word pieces, lower case: a caption becomes the start, its pieces and padding, and no end, as in APTM.

    ``words`` are the pieces in the order of their ids. Raises UserError where the vocabulary lacks one of BERT's special pieces or
    doesn't begin with the padding.
    """

    def __init__(self, words, source='the vocabulary'):
        self.words = list(words)
        number = {word: index for index, word in enumerate(self.words)}
        lacking = [word for word in SPECIAL if word not in number]
        if lacking or number[PAD]:
            raise UserError(f"{source} is no vocabulary of BERT's: " +
                            (f'it lacks {", ".join(lacking)}' if lacking else f'its first line must be {PAD}'))
        self.vocab_size = len(self.words)
        self.pad, self.start, self.end, self.mask = (number[word] for word in (PAD, START, END, MASK))
        self.continues = frozenset(index for word, index in number.items() if word.startswith('##'))
        self.number = number

    @cached_property
    def _tokenizer(self):
        return library().implementations.BertWordPieceTokenizer(self.number, lowercase=True)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != '_tokenizer'}

    def encode(self, caption):
        """The ids of a caption's pieces, without the start."""
        return self._tokenizer.encode(caption, add_special_tokens=False).ids

    def encode_all(self, captions):
        """:meth:`encode` for a list of captions, by several threads."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions), add_special_tokens=False)]

    def add_special_tokens(self, ids, length):
        """A caption's ids with the start, cut to ``length`` (None: not cut); there is no end."""
        return [self.start, *ids][:length]

    def lengths(self, tokens):
        """How many tokens each caption has: [S, L] -> [S]. Padding is no word here."""
        return (tokens != self.pad).sum(dim=1)

    @property
    def key(self):
        """What differs between vocabularies, for what is kept of their ids."""
        return hashlib.sha256('\n'.join(self.words).encode()).hexdigest()[:16]

    def decode(self, ids):
        """The text of token ids, special pieces left out."""
        return self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)

    def save(self, path):
        """Write the vocabulary, a piece a line, as BERT's ``vocab.txt``."""
        from utils.iotools import atomic_write
        with atomic_write(path) as file:
            file.write('\n'.join(self.words) + '\n')


def read_vocabulary(path):
    """The :class:`WordPiece` of a ``vocab.txt`` or of the folder that holds one. Raises UserError where there is none."""
    path = os.path.join(path, 'vocab.txt') if os.path.isdir(path) else path
    try:
        with open(path, encoding='utf-8') as file:
            words = file.read().split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read BERT's vocabulary {path} ({error}): it is a text of one word piece a line") from None
    return WordPiece(words[:-1] if words and not words[-1] else words, path)


def make_vocabulary(captions, size):
    """A :class:`WordPiece` of at most ``size`` pieces, trained on captions; the same for the same captions."""
    tokenizer, captions = library().implementations.BertWordPieceTokenizer(lowercase=True), sorted(set(captions))
    letters = sorted({letter for caption in captions for letter in tokenizer.normalize(caption) if not letter.isspace()})
    # The library numbers letters in an order that changes from call to call, and ties between pieces go by number: so number them first.
    first = [*SPECIAL, *letters, *('##' + letter for letter in letters)]
    tokenizer.train_from_iterator(captions, vocab_size=size, min_frequency=1, special_tokens=first, show_progress=False)
    number = tokenizer.get_vocab()
    return WordPiece(sorted(number, key=number.get))

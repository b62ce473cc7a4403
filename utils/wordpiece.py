"""BERT's WordPiece tokenizer. Only this module needs the library ``tokenizers``."""
import hashlib
import os
from functools import cached_property

from utils.errors import UserError
from utils.paths import VOCABULARY

SPECIAL = PAD, UNKNOWN, START, END, MASK = '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'


def import_tokenizers():
    """Import the library, or raise :class:`UserError`."""
    try:
        import tokenizers
    except ImportError:
        raise UserError("BERT's captions need the tokenizers library: pip install tokenizers") from None
    return tokenizers


class WordPiece:
    """A lower-case WordPiece tokenizer.

    As in APTM, a caption becomes the start token, its pieces and padding. It has no end token.

    Args:
        pieces: the vocabulary, in the order of the ids.
        source: the file, for messages.

    Attributes:
        pad_id, start_id, end_id, mask_id: ids of the special tokens.
        continuation_ids: ids of pieces that continue a word.

    Raises:
        UserError: the vocabulary lacks a special token of BERT or does not begin with padding.
    """

    def __init__(self, pieces, source='the vocabulary'):
        self.pieces = list(pieces)
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        missing = [token for token in SPECIAL if token not in self.ids]
        if missing or self.ids[PAD]:
            problem = f'it lacks {", ".join(missing)}' if missing else f'its first line must be {PAD}'
            raise UserError(f"{source} is no vocabulary of BERT's: {problem}")
        self.vocab_size = len(self.pieces)
        self.pad_id, self.start_id, self.end_id, self.mask_id = (self.ids[token] for token in (PAD, START, END, MASK))
        self.continuation_ids = frozenset(index for piece, index in self.ids.items() if piece.startswith('##'))

    @cached_property
    def _tokenizer(self):
        return import_tokenizers().implementations.BertWordPieceTokenizer(self.ids, lowercase=True)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != '_tokenizer'}

    def encode(self, caption):
        """Return the ids of a caption's pieces, without the start token."""
        return self._tokenizer.encode(caption, add_special_tokens=False).ids

    def encode_all(self, captions):
        """Call :meth:`encode` on a list of captions, in several threads."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions), add_special_tokens=False)]

    def encode_with_offsets(self, caption):
        """Encode a caption, and find the characters of each piece.

        Returns:
            ``(ids, spans, caption)``. A span is the ``(start, end)`` of a piece's characters in the caption.

        Example:
            >>> WordPiece([*SPECIAL, 'red', 'back', '##pack']).encode_with_offsets('Red backpack')
            ([5, 6, 7], [(0, 3), (4, 8), (8, 12)], 'Red backpack')
        """
        encoding = self._tokenizer.encode(caption, add_special_tokens=False)
        return encoding.ids, encoding.offsets, caption

    def add_special_tokens(self, ids, length):
        """Add the start token to a caption's ids, and cut them to ``length`` (None: no cut). There is no end token."""
        return [self.start_id, *ids][:length]

    def lengths(self, tokens):
        """Count the tokens of each caption: [S, L] -> [S]."""
        return (tokens != self.pad_id).sum(dim=1)

    @property
    def cache_key(self):
        """A key of the vocabulary, for caches of ids."""
        return hashlib.sha256('\n'.join(self.pieces).encode()).hexdigest()[:16]

    def decode(self, ids):
        """Return the text of token ids, without special tokens."""
        return self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)

    def save(self, path):
        """Write the vocabulary as BERT's ``vocab.txt``: one piece per line."""
        from utils.iotools import atomic_write
        with atomic_write(path) as file:
            file.write('\n'.join(self.pieces) + '\n')


def read_vocabulary(path):
    """Read the :class:`WordPiece` of a ``vocab.txt``, or of the folder that holds one.

    Raises:
        UserError: there is no such file, or it is no vocabulary.
    """
    path = os.path.join(path, VOCABULARY) if os.path.isdir(path) else path
    try:
        with open(path, encoding='utf-8') as file:
            pieces = file.read().split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read BERT's vocabulary {path} ({error}): it must be a text file with one word piece "
                        'per line') from None
    return WordPiece(pieces[:-1] if pieces and not pieces[-1] else pieces, path)


def make_vocabulary(captions, size):
    """Train a :class:`WordPiece` of at most ``size`` pieces on captions. The same captions give the same vocabulary."""
    tokenizer = import_tokenizers().implementations.BertWordPieceTokenizer(lowercase=True)
    captions = sorted(set(captions))
    letters = sorted({letter for caption in captions for letter in tokenizer.normalize(caption)
                      if not letter.isspace()})
    # The library numbers letters in an order that differs between calls, and breaks ties between pieces by number.
    # Therefore the letters get their numbers first.
    first_pieces = [*SPECIAL, *letters, *('##' + letter for letter in letters)]
    tokenizer.train_from_iterator(captions, vocab_size=size, min_frequency=1, special_tokens=first_pieces,
                                  show_progress=False)
    ids = tokenizer.get_vocab()
    return WordPiece(sorted(ids, key=ids.get))

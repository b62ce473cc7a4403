"""BERT's tokenizer."""
import pickle
import sys

import pytest

from utils.errors import UserError
from utils.wordpiece import WordPiece, make_vocabulary, read_vocabulary

CAPTIONS = ['A man wears a white shirt.', 'The woman has a red backpack and white shoes',
            'He wears dark-blue jeans, white shirt']


def test_a_vocabulary_made_of_captions_is_written_and_read(tmp_path):
    made = make_vocabulary(CAPTIONS, 200)
    made.save(tmp_path / 'vocab.txt')
    for again in (read_vocabulary(tmp_path / 'vocab.txt'), read_vocabulary(tmp_path), pickle.loads(pickle.dumps(made)),
                  *(make_vocabulary(CAPTIONS[::-1], 200) for _ in range(5))):
        assert again.pieces == made.pieces
        assert again.encode('a WHITE shirt.') == made.encode('a white shirt.')
    assert made.pieces[:5] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] and made.vocab_size <= 200
    assert made.decode(made.encode(CAPTIONS[0])) == 'a man wears a white shirt.'
    assert made.encode_all(CAPTIONS) == [made.encode(caption) for caption in CAPTIONS]


def test_pieces_that_continue_words():
    words = WordPiece(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'back', '##pack', 'man'])
    assert words.encode('Backpack man child') == [5, 6, 7, 1] and words.continuation_ids == {6}
    assert (words.pad_id, words.start_id, words.end_id, words.mask_id) == (0, 2, 3, 4)


def test_what_is_no_vocabulary(tmp_path):
    with pytest.raises(UserError, match='cannot read BERT.s vocabulary .*vocab.txt'):
        read_vocabulary(tmp_path / 'vocab.txt')
    (tmp_path / 'words.txt').write_text('red\ngreen\n')
    with pytest.raises(UserError, match=r'words.txt is no vocabulary of BERT.s: it lacks \[PAD\]'):
        read_vocabulary(tmp_path / 'words.txt')
    with pytest.raises(UserError, match=r'its first line must be \[PAD\]'):
        WordPiece(['[UNK]', '[PAD]', '[CLS]', '[SEP]', '[MASK]'])


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match='pip install tokenizers'):
        make_vocabulary(CAPTIONS, 100)

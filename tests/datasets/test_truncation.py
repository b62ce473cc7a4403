"""Captions that are longer than the text length are counted and reported, once, with each tokenizer."""
import logging

import pytest
import torch

from datasets import array_cache
from datasets.bases import TextDataset, tokenize
from datasets.build import build_dataloader
from datasets.truncation import describe_truncation, find_truncated
from tests.support import options
from utils.simple_tokenizer import CleaningTokenizer, SimpleTokenizer
from utils.wordpiece import make_vocabulary

CAPTIONS = ['a man', 'a man in red', 'a man in a red coat and blue jeans']
SENTENCE = "1 of 3 queries have more than 6 tokens (--text_length) and lose their ends: " \
    "'a man in a red coat and blue jeans' ({} tokens) loses '{}'; write shorter ones, or train with --text_length {}"


def vocabulary():
    pytest.importorskip('tokenizers', reason='the tokenizers library is not installed')
    return make_vocabulary(CAPTIONS, 300)


@pytest.mark.parametrize('tokenizer, count, lost', [(SimpleTokenizer, 11, 'red coat and blue jeans'),
                                                    (CleaningTokenizer, 11, 'red coat and blue jeans'),
                                                    (vocabulary, 10, 'coat and blue jeans')])
def test_they_are_counted_with_an_example_and_the_remedy(caplog, tokenizer, count, lost):
    """'a man in red' has six tokens with CLIP's start and end: it fits."""
    dataset = TextDataset([0, 1, 2], CAPTIONS, 6, tokenizer=tokenizer())
    assert SENTENCE.format(count, lost, count) in caplog.text and caplog.text.count('lose their ends') == 1
    assert find_truncated(CAPTIONS, dataset.tokens, dataset.tokenizer) == [(2, count)]
    caplog.clear()
    assert len(TextDataset([0, 1, 2], CAPTIONS, count, tokenizer=tokenizer())) == 3 and not caplog.text


def test_an_exclamation_mark_is_no_padding():
    """Its id is that of CLIP's padding."""
    tokenizer, captions = SimpleTokenizer(), ['a red coat !', 'a red coat ! !', 'a red coat ! ! !']
    tokens = torch.stack([tokenize(caption, tokenizer, 7) for caption in captions])
    assert find_truncated(captions, tokens, tokenizer) == [(2, 8)]
    assert "loses '!'" in describe_truncation(captions, tokens, tokenizer)


def test_tokens_out_of_the_cache_are_counted_too(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 2)
    for _ in range(2):
        caplog.clear()
        TextDataset([0, 1, 2], CAPTIONS, 6, token_folder=str(tmp_path))
        assert 'lose their ends' in caplog.text


def test_a_run_says_it_once_of_its_training_captions(make_dataset, tmp_path, caplog):
    make_dataset()
    args = options(dataset_name='CUHK-PEDES', root_dir=str(tmp_path), img_size=(32, 16), batch_size=4, num_workers=0,
                   text_length=12)
    with caplog.at_level(logging.WARNING):
        train, *_ = build_dataloader(args)
        list(train), list(train)
    assert caplog.text.count('16 of 16 training captions have more than 12 tokens') == 1
    assert caplog.text.count('8 of 8 queries have more than 12 tokens') == 1

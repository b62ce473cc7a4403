import pytest
import torch

from datasets.text import tokenize, tokenize_all
from tests.support import golden_json, golden_names
from utils.errors import UserError
from utils.simple_tokenizer import SimpleTokenizer

CASES = golden_json('tokenizer')


@pytest.fixture(scope='module')
def tokenizer():
    return SimpleTokenizer()


@pytest.mark.parametrize('case', [pytest.param(case, id=f'golden-{name}-{number}')
                                  for name in golden_names('tokenizer*')
                                  for number, case in enumerate(golden_json(name))])
def test_ids_are_the_reference_ones(tokenizer, case):
    assert tokenizer.encode(case['caption']) == case['encoded']
    assert tokenizer.encode(case['caption']) == case['encoded']  # from the cache
    ids = tokenize(case['caption'], tokenizer)
    assert ids.dtype == torch.int64 and ids.tolist() == case['ids']


def test_vocabulary(tokenizer):
    assert sorted(tokenizer.encoder.values()) == list(range(49408))
    special = ('<|mask|>', '<|startoftext|>', '<|endoftext|>')
    assert [tokenizer.encoder[token] for token in special] == [49405, 49406, 49407]
    assert tokenizer.encoder['!'] == 0 and tokenizer.encoder['!</w>'] == 256


def test_the_word_whose_token_became_the_mask_still_has_ids(tokenizer):
    ids = tokenizer.encode('jekyll')
    assert len(ids) > 1 and tokenizer.decode(ids) == 'jekyll '


def test_decode_gives_words_back(tokenizer):
    assert tokenizer.decode(tokenizer.encode('A Red coat, 穿!')) == 'a red coat , 穿 ! '
    assert tokenizer.decode(torch.tensor([49406, 736, 49405, 49407])) == '<|startoftext|>red <|mask|><|endoftext|>'


def test_all_bytes_have_tokens(tokenizer):
    text = '\U0001f9e5 ßæ 女'
    assert tokenizer.decode(tokenizer.encode(text)).replace(' ', '') == text.replace(' ', '')


def test_long_caption_is_cut_and_ends_with_the_end(tokenizer):
    ids = tokenize('word ' * 20, tokenizer, text_length=8)
    assert ids.tolist() == [49406] + [2653] * 6 + [49407]
    assert tokenize('word ' * 6, tokenizer, text_length=8).tolist() == ids.tolist()
    assert tokenize('word ' * 5, tokenizer, text_length=8).tolist() == [49406] + [2653] * 5 + [49407, 0]


def test_long_caption_is_an_error_where_it_may_not_be_cut(tokenizer):
    assert tokenize('word ' * 6, tokenizer, 8, truncate=False)[-1] == 49407
    with pytest.raises(UserError, match='caption of 9 tokens is longer than the text length 8: .word word'):
        tokenize('word ' * 7, tokenizer, 8, truncate=False)


def test_all_captions_at_once_are_those_one_by_one(tokenizer):
    captions = [case['caption'] for case in CASES]
    expected = torch.stack([tokenize(caption, tokenizer) for caption in captions])
    assert torch.equal(tokenize_all(captions, 77).long(), expected)
    assert tokenize_all([], 77).shape == (0, 77)


def test_a_caption_that_is_not_cut():
    tokenizer = SimpleTokenizer()
    assert tokenizer.add_special_tokens(range(100), None) == [tokenizer.start_id, *range(100), tokenizer.end_id]

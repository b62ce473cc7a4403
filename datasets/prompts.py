"""Prompts of attributes (APTM, ACM MM 2023): two sentences for each label, one for the value 0 and one for the value 1.

The sentences, with their mistakes, are those of the reference implementation, because the released weights were trained
with them.
"""
import random

import torch

from datasets.captions import is_empty_caption
from datasets.pairs import collate
from datasets.text import tokenize
from datasets.whole_word_masking import mask_whole_words
from utils.errors import UserError
from utils.iotools import read_json


def make_pairs(pattern, *choices):
    """Fill a pattern with pairs of words.

    >>> make_pairs('a {} hat', ('red', 'blue'))
    [('a red hat', 'a blue hat')]
    """
    return [(pattern.format(zero), pattern.format(one)) for zero, one in choices]


def make_clothes_pairs(*clothes):
    return [pair for item in clothes for pair in make_pairs('the person {} ' + item, ('does not wear', 'wears'))]


MALS = [
    *make_pairs('the person is {}', ('a woman', 'a man'), ('younger than 18 years old', 'older than 18 years old')),
    *make_pairs('the person with {} hair', ('short', 'long')),
    *(('the person with a ' + item, 'the person without a ' + item) for item in ('hat', 'backpack', 'handbag', 'bag')),
    *make_pairs('the person wears {}', ('long sleeved upper clothes', 'short sleeved upper clothes'),
                ('long dress or long pants', 'short dress or short pants'), ('dress or skirt', 'pants or shorts')),
    *((f'the person wears {color} upper clothes', f'the person does not wear {color} upper clothes')
      for color in 'black white red purple yellow blue green gray'.split()),
    *((f'the person wears {color} lower clothes', f'the person does not wear {color} lower clothes')
      for color in 'black white purple yellow blue green pink gray brown'.split()),
]

PA100K = [
    *make_pairs('the person is {}', ('a man', 'a woman'), ('no more than 60 years old', 'older than 60 years old'),
                ('a young or old one', 'of mid age, between 18 and 60 years old'),
                ('older than 18', 'a baby or a teenager, younger than 18')),
    *((f'the picture is not the {side} of the person', f'the picture shows the {side} of the person')
      for side in ('front', 'side', 'back')),
    *((f'a person without a {item}', f'a person with a {item}')
      for item in ('hat', 'glasses', 'handbag', 'shoulder bag', 'backpack')),
    *make_pairs('the person {} an object in front', ('does not hold', 'hold')),
    *make_clothes_pairs('short sleeved upper clothes', 'long sleeved upper clothes'),
    *make_pairs('there is {} on the upper clothes of the person',
                *((f'no {pattern}', pattern) for pattern in ('stride', 'logo', 'plaid', 'splice', 'stripe'))),
    *make_pairs('there is {} on the lower part of the person', ('no pattern', 'pattern')),
    *make_clothes_pairs('long coat', 'trousers', 'shorts', 'a skirt or a dress', 'boots'),
]

PA100K_NAMES = (
    'Female AgeOver60 Age18-60 AgeLess18 Front Side Back Hat Glasses HandBag ShoulderBag Backpack HoldObjectsInFront '
    'ShortSleeve LongSleeve UpperStride UpperLogo UpperPlaid UpperSplice LowerStripe LowerPattern LongCoat Trousers '
    'Shorts Skirt&Dress boots').split()


def read_prompts(path, count):
    """Read prompts from a JSON list of ``count`` pairs of sentences.

    Returns:
        ``[(sentence for label 0, sentence for label 1), ...]``.

    Raises:
        UserError: the file does not hold a list of pairs of sentences, or not one pair for each label of the images.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(map(is_sentence, pair)) for pair in entries):
        raise UserError(f'{path} must hold a list of pairs of sentences: '
                        '[["sentence for label 0", "sentence for label 1"], ...]')
    if len(entries) != count:
        raise UserError(f'{path} holds {len(entries)} pairs of prompts, and the images have {count} labels: '
                        'write one pair for each label')
    return [tuple(pair) for pair in entries]


def is_sentence(text):
    return isinstance(text, str) and not is_empty_caption(text)


def flatten_prompts(prompts):
    """Flatten pairs of prompts to one list: both sentences of the first attribute, of the second, and so on."""
    return [text for pair in prompts for text in pair]


def tokenize_prompts(prompts, tokenizer):
    """Tokenize pairs of prompts, padded to the longest: int64 [2A, L]."""
    texts = flatten_prompts(prompts)
    length = max(len(tokenizer.add_special_tokens(ids, None)) for ids in tokenizer.encode_all(texts))
    return torch.stack([tokenize(text, tokenizer, length) for text in texts])


class PromptCollator:
    """Collate samples to a batch, and add the attributes' prompts.

    The batch gets ``prompt_ids`` [2A, L], and the masked prompts ``prompt_mlm_ids`` [2A, L], ``prompt_mlm_positions``
    and ``prompt_mlm_labels`` [2A, M]. Each batch masks other words; the first sample's ``prompt_seed`` decides which.

    Args:
        prompts: pairs of sentences, one pair for each attribute.
        tokenizer: a tokenizer with whole words, such as BERT's.
    """

    def __init__(self, prompts, tokenizer):
        self.tokenizer, self.ids = tokenizer, tokenize_prompts(prompts, tokenizer)

    def __call__(self, samples):
        batch = collate(samples)
        if 'prompt_seed' not in batch:      # every image was broken
            return batch
        rng, tokenizer = random.Random(int(batch.pop('prompt_seed')[0])), self.tokenizer
        masked = [mask_whole_words(row, rng, tokenizer.mask_id, tokenizer.continuation_ids, tokenizer.vocab_size)
                  for row in self.ids.tolist()]
        ids, positions, labels = (torch.tensor(rows) for rows in zip(*masked))
        return {**batch, 'prompt_ids': self.ids.clone(), 'prompt_mlm_ids': ids, 'prompt_mlm_positions': positions,
                'prompt_mlm_labels': labels}

"""Attributes as pairs of sentences (APTM, ACM MM 2023): for label a, one that holds where it is 0 and one where it is 1.

The sentences are the released ones, word for word with their slips, for released weights know them.
"""
import random

import torch

from datasets.bases import collate, tokenize
from datasets.captions import is_empty_caption
from datasets.whole_word_masking import mask_whole_words
from utils.errors import UserError
from utils.iotools import read_json


def make_pairs(pattern, *choices):
    """``make_pairs('a {} hat', ('red', 'blue'))`` -> ``[('a red hat', 'a blue hat')]``."""
    return [(pattern.format(zero), pattern.format(one)) for zero, one in choices]


def wears_pairs(*clothes):
    return [pair for item in clothes for pair in make_pairs('the person {} ' + item, ('does not wear', 'wears'))]


MALS = [
    *make_pairs('the person is {}', ('a woman', 'a man'), ('younger than 18 years old', 'older than 18 years old')),
    *make_pairs('the person with {} hair', ('short', 'long')),
    *(('the person with a ' + item, 'the person without a ' + item) for item in ('hat', 'backpack', 'handbag', 'bag')),
    *make_pairs('the person wears {}', ('long sleeved upper clothes', 'short sleeved upper clothes'),
           ('long dress or long pants', 'short dress or short pants'), ('dress or skirt', 'pants or shorts')),
    *((f'the person wears {colour} upper clothes', f'the person does not wear {colour} upper clothes')
      for colour in 'black white red purple yellow blue green gray'.split()),
    *((f'the person wears {colour} lower clothes', f'the person does not wear {colour} lower clothes')
      for colour in 'black white purple yellow blue green pink gray brown'.split()),
]

PA100K = [
    *make_pairs('the person is {}', ('a man', 'a woman'), ('no more than 60 years old', 'older than 60 years old'),
           ('a young or old one', 'of mid age, between 18 and 60 years old'),
           ('older than 18', 'a baby or a teenager, younger than 18')),
    *((f'the picture is not the {side} of the person', f'the picture shows the {side} of the person')
      for side in ('front', 'side', 'back')),
    *((f'a person without a {item}', f'a person with a {item}') for item in ('hat', 'glasses', 'handbag', 'shoulder bag', 'backpack')),
    *make_pairs('the person {} an object in front', ('does not hold', 'hold')),
    *wears_pairs('short sleeved upper clothes', 'long sleeved upper clothes'),
    *((f'there is no {pattern} on the upper clothes of the person', f'there is {pattern} on the upper clothes of the person')
      for pattern in ('stride', 'logo', 'plaid', 'splice', 'stripe')),
    *make_pairs('there is {} on the lower part of the person', ('no pattern', 'pattern')),
    *wears_pairs('long coat', 'trousers', 'shorts', 'a skirt or a dress', 'boots'),
]

PA100K_NAMES = (
    'Female AgeOver60 Age18-60 AgeLess18 Front Side Back Hat Glasses HandBag ShoulderBag Backpack HoldObjectsInFront ShortSleeve '
    'LongSleeve UpperStride UpperLogo UpperPlaid UpperSplice LowerStripe LowerPattern LongCoat Trousers Shorts Skirt&Dress boots').split()


def read_prompts(path, count):
    """A file's prompts, a JSON list of ``count`` pairs of sentences: ``[("where the label is 0", "where it is 1"), ...]``.

    Raises UserError where the file holds anything else or another number of pairs than the images have labels.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(map(is_sentence, pair)) for pair in entries):
        raise UserError(f'{path} must hold a list of pairs of sentences: [["where the label is 0", "where it is 1"], ...]')
    if len(entries) != count:
        raise UserError(f'{path} holds {len(entries)} pairs of prompts, and the images have {count} labels: write one pair for each')
    return [tuple(pair) for pair in entries]


def is_sentence(text):
    return isinstance(text, str) and not is_empty_caption(text)


def flatten_prompts(prompts):
    """Pairs -> one list, ``[..., where label a is 0, where it is 1, ...]``."""
    return [text for pair in prompts for text in pair]


def tokenize_prompts(prompts, tokenizer):
    """Token ids of pairs of prompts, as long as the longest of them: int64 [2A, L]."""
    texts = flatten_prompts(prompts)
    length = max(len(tokenizer.framed(ids, None)) for ids in tokenizer.encode_all(texts))
    return torch.stack([tokenize(text, tokenizer, length) for text in texts])


class PromptCollator:
    """Collates samples, and adds the attributes' prompts to their batch: ``prompt_ids`` [2A, L], and with masked words ``prompt_mlm_ids``
    [2A, L], ``prompt_mlm_positions`` and ``prompt_mlm_labels`` [2A, M].

    Prompts are as long as the longest of them. Their words are masked anew for each batch, by the first sample's ``prompt_seed``.
    """

    def __init__(self, prompts, tokenizer):
        self.tokenizer, self.ids = tokenizer, tokenize_prompts(prompts, tokenizer)

    def __call__(self, samples):
        batch = collate(samples)
        if 'prompt_seed' not in batch:      # every image was broken
            return batch
        rng, tokenizer = random.Random(int(batch.pop('prompt_seed')[0])), self.tokenizer
        masked = [mask_whole_words(row, rng, tokenizer.mask, tokenizer.continues, tokenizer.vocab_size) for row in self.ids.tolist()]
        ids, places, labels = (torch.tensor(part) for part in zip(*masked))
        return {**batch, 'prompt_ids': self.ids.clone(), 'prompt_mlm_ids': ids, 'prompt_mlm_positions': places, 'prompt_mlm_labels': labels}

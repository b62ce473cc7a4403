"""Prompts of the reference implementation, and prompts of a file."""
import json

import pytest

from datasets.prompts import MALS, PA100K, PA100K_NAMES, read_prompts, flatten_prompts
from utils.errors import UserError


def test_counts():
    assert len(MALS) == 27 and len(PA100K) == len(PA100K_NAMES) == 26
    assert len(set(flatten_prompts(MALS))) == 54 and len(set(flatten_prompts(PA100K))) == 52


@pytest.mark.parametrize('prompts, index, pair', [
    (MALS, 0, ('the person is a woman', 'the person is a man')),
    (MALS, 1, ('the person is younger than 18 years old', 'the person is older than 18 years old')),
    (MALS, 2, ('the person with short hair', 'the person with long hair')),
    (MALS, 6, ('the person with a bag', 'the person without a bag')),
    (MALS, 7, ('the person wears long sleeved upper clothes', 'the person wears short sleeved upper clothes')),
    (MALS, 9, ('the person wears dress or skirt', 'the person wears pants or shorts')),
    (MALS, 10, ('the person wears black upper clothes', 'the person does not wear black upper clothes')),
    (MALS, 26, ('the person wears brown lower clothes', 'the person does not wear brown lower clothes')),
    (PA100K, 0, ('the person is a man', 'the person is a woman')),
    (PA100K, 3, ('the person is older than 18', 'the person is a baby or a teenager, younger than 18')),
    (PA100K, 5, ('the picture is not the side of the person', 'the picture shows the side of the person')),
    (PA100K, 8, ('a person without a glasses', 'a person with a glasses')),
    (PA100K, 12, ('the person does not hold an object in front', 'the person hold an object in front')),
    (PA100K, 19, ('there is no stripe on the upper clothes of the person',
                  'there is stripe on the upper clothes of the person')),
    (PA100K, 24, ('the person does not wear a skirt or a dress', 'the person wears a skirt or a dress')),
])
def test_sentences_are_the_released_ones(prompts, index, pair):
    assert prompts[index] == pair


def test_a_file_of_prompts(tmp_path):
    path = tmp_path / 'prompts.json'
    path.write_text(json.dumps([['a man', 'a woman'], ['no hat', 'a hat']]))
    assert read_prompts(path, 2) == [('a man', 'a woman'), ('no hat', 'a hat')]
    with pytest.raises(UserError, match='2 pairs of prompts, and the images have 27 labels'):
        read_prompts(path, 27)
    path.write_text('["a man", "a woman"]')
    with pytest.raises(UserError, match='list of pairs of sentences'):
        read_prompts(path, 2)

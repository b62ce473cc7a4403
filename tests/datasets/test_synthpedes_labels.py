"""synthpedes' labels as attributes."""
import pytest

from datasets.synthpedes.attributes import ATTRIBUTES, PROMPTS, labels_by_pid
from utils.errors import UserError

PERSON = {'id': 7, 'gender': 'man', 'hair': {'length': 'short'}, 'upper': {'colour': 'dark red', 'sleeves': 'long'},
          'jacket': {'colour': 'light blue'}, 'lower': {'colour': 'black'}, 'bag': {'kind': 'backpack'}, 'hat': None,
          'glasses': None, 'held': 'cup'}


def test_labels_of_a_person():
    labels = dict(zip(ATTRIBUTES, labels_by_pid([PERSON], 'attributes.json')[7]))
    assert {name for name, label in labels.items() if label == 1} == {
        'man', 'jacket', 'backpack', 'bag', 'holds', 'blue upper', 'black lower'}
    assert [name for name, label in labels.items() if label == -1] == ['short sleeves']
    assert len(PROMPTS) == len(ATTRIBUTES) and len({text for pair in PROMPTS for text in pair}) == 2 * len(PROMPTS)


def test_other_content():
    for content in ([{'id': 1}], {'a': 1}, [1]):
        with pytest.raises(UserError, match='x.json does not hold the labels'):
            labels_by_pid(content, 'x.json')

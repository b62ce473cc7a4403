"""APTM's second captions."""
import builtins
import logging
import random

from datasets import eda

CAPTION = "A tall man's shirt is white; he carries a red-brown bag, a hat and a very big book in his hand."


def twin(word):
    return [f'{word}x'] if word in ('tall', 'bag', 'book', 'white') else []


def test_captions_lose_all_but_letters():
    assert eda.keep_letters("A man's T-shirt, no. 7") == 'a mans t shirt no'


def test_each_operation_is_drawn_and_changes_what_it_says():
    words = eda.keep_letters(CAPTION).split()
    replaced = eda.replace_words(words, 2, random.Random(0), twin)
    assert len(replaced) == len(words) and sum(a != b for a, b in zip(words, replaced)) == 2
    assert len(eda.insert_words(words, 2, random.Random(0), twin)) in (len(words) + 1, len(words) + 2)
    swapped = eda.swap_words(words, 1, random.Random(0))
    assert sorted(swapped) == sorted(words) and sum(a != b for a, b in zip(words, swapped)) in (0, 2)
    deleted = [eda.delete_words(words, 1, random.Random(seed)) for seed in range(300)]
    assert abs(sum(map(len, deleted)) / 300 / len(words) - 0.9) < 0.02


def test_every_occurrence_of_a_word_is_replaced_and_no_stop_word():
    synonyms = {'red': ['scarlet'], 'a': ['one']}.get
    assert eda.replace_words('a red cap a red bag'.split(), 1, random.Random(0), lambda word: synonyms(word, [])) == \
        'a scarlet cap a scarlet bag'.split()


def test_one_word_stays_and_an_empty_caption_too():
    assert all(eda.delete_words(['man'], 1, random.Random(seed)) == ['man'] for seed in range(50))
    assert eda.augment_caption('!!', random.Random(0)) == '!!'
    assert eda.augment_caption('man', random.Random(1)) == 'man'


def test_the_same_draw_for_the_same_seed():
    drawn = [eda.augment_caption(CAPTION, random.Random(seed), twin) for seed in range(40)]
    assert drawn == [eda.augment_caption(CAPTION, random.Random(seed), twin) for seed in range(40)]
    assert len(set(drawn)) > 20


def test_without_wordnet_it_says_so_once(monkeypatch, caplog):
    real = builtins.__import__

    def refuse(name, *others, **named):
        if name.startswith('nltk'):
            raise ImportError(name)
        return real(name, *others, **named)
    monkeypatch.setattr(builtins, '__import__', refuse)
    eda.load_synonyms.cache_clear()
    with caplog.at_level(logging.WARNING, 'Pedestal.dataset'):
        assert eda.load_synonyms() is None and eda.load_synonyms() is None
    eda.load_synonyms.cache_clear()
    assert len(caplog.records) == 1 and 'pip install nltk' in caplog.text


def test_stop_words_are_as_many_as_published():
    assert len(eda.STOP_WORDS) == 127

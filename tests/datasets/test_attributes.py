"""Parts of speech and attribute groups, on the true tokens."""
import json
import os
import sys
import types

import pytest
import torch

from datasets.attributes import (ADJECTIVE, NOUN, OTHER, PRONOUN, Word, annotate, annotate_all, attribute_groups,
                                 is_adjective, is_noun, is_pronoun, load_tagger, locate_words, spacy_tagger,
                                 textblob_tagger)
from datasets.bases import tokenize
from tests.datasets.pairs import build_pairs
from utils.errors import UserError
from utils.simple_tokenizer import default_tokenizer

AWKWARD = ["smile :) : ) she's “quoted” and (!) naïve 上衣 😀 <|mask|> word!?. \"x\". wait...ok",
           "He isn't U.S. T-shirt/coat, 3.5 &amp; 2-tone",
           "end ) ( ; /", "&slash; &lt;b&gt; a/b//c", "   ", ""]


def golden_captions():
    with open(os.path.join(os.path.dirname(__file__), '..', 'golden', 'tokenizer.json'), encoding='utf-8') as file:
        return [entry['caption'] for entry in json.load(file)]


@pytest.fixture(scope='module')
def tagger():
    return load_tagger('textblob')


def tagged(text):
    """'red/JJ coat/NN' -> Words."""
    words, start = [], 0
    for word, tag in (part.rsplit('/', 1) for part in text.split()):
        words.append(Word(word, tag, start, start + len(word)))
        start += len(word) + 1
    return words


def fixed_tagger(text):
    return lambda _: tagged(text)


def groups_of(caption, tagger):
    """[(group, the texts of its tokens)] of a caption."""
    ids, spans, text = default_tokenizer().encode_with_offsets(caption)
    attributes, _ = annotate(caption, default_tokenizer(), tagger)
    groups = {}
    for (start, end), group in zip(spans, attributes[1:]):
        if group:
            groups.setdefault(group, []).append(text[start:end])
    return groups


# -- offsets of tokens -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('caption', golden_captions() + AWKWARD)
def test_offsets_cover_the_cleaned_text(caption):
    tokenizer = default_tokenizer()
    ids, spans, text = tokenizer.encode_with_offsets(caption)
    assert ids == tokenizer.encode(caption)
    assert len(spans) == len(ids) and all(0 <= start < end <= len(text) for start, end in spans)
    assert spans == sorted(spans)
    covered = {offset for span in spans for offset in range(*span)}
    assert covered == {offset for offset, character in enumerate(text) if not character.isspace()}


def test_offsets_of_split_words():
    _, spans, text = default_tokenizer().encode_with_offsets("A  Naïve T-SHIRT &amp; 12 windbreakers")
    assert text == 'a naïve t-shirt & 12 windbreakers'
    assert [text[slice(*span)] for span in spans] == ['a', 'na', 'ï', 've', 't', '-', 'shirt', '&', '1', '2', 'wind',
                                                      'breakers']


def test_tokens_of_one_character_share_it():
    _, spans, text = default_tokenizer().encode_with_offsets('红 coat')
    assert text == '红 coat' and spans[-1] == (2, 6)
    assert len(spans) > 2 and set(spans[:-1]) == {(0, 1)}


# -- taggers -----------------------------------------------------------------------------------------------------------

def test_kinds_of_tags():
    assert all(map(is_noun, ('NN', 'NNS', 'NNP'))) and all(map(is_adjective, ('JJ', 'JJR', 'JJS')))
    assert all(map(is_pronoun, ('PRP', 'PRP$', 'WP', 'WP$')))
    for tag in ('VBG', 'DT', 'IN', 'RB', '.', '', 'POS'):
        assert not (is_noun(tag) or is_adjective(tag) or is_pronoun(tag))


@pytest.mark.parametrize('caption', golden_captions() + AWKWARD)
def test_words_are_where_they_say(tagger, caption):
    _, _, text = default_tokenizer().encode_with_offsets(caption)
    words = tagger(text)
    assert all(text[word.start:word.end] == word.text for word in words)
    assert ''.join(''.join(word.text.split()) for word in words) == ''.join(text.split())


def test_textblob_tags(tagger):
    caption = 'the woman wears a white t-shirt, knee-length blue shorts and she has a black bag'
    words = {word.text: word.tag for word in tagger(caption)}
    assert words['woman'] == words['t-shirt'] == words['bag'] == 'NN' and words['shorts'] == 'NNS'
    assert words['white'] == words['blue'] == words['knee-length'] == 'JJ' and words['she'] == 'PRP'
    assert words['the'] == 'DT'


def test_clitics_are_neither_nouns_nor_pronouns(tagger):
    for word in tagger("the man's coat isn't red; he's tall, they're not"):
        assert word.text not in ("'", 's', 'n', 't', 're') or word.tag == 'POS'


def test_words_that_cover_less_than_the_text():
    assert locate_words('a coat', [('a', 'DT'), ('coats', 'NNS')]) == [Word('a', 'DT', 0, 1)]


def test_unknown_tagger():
    with pytest.raises(UserError, match="unknown tagger 'textblop'; did you mean textblob"):
        load_tagger('textblop')


def test_textblob_not_installed(monkeypatch):
    textblob_tagger.cache_clear()
    monkeypatch.setitem(sys.modules, 'textblob.en', None)
    with pytest.raises(UserError, match='pip install textblob'):
        load_tagger('textblob')
    textblob_tagger.cache_clear()


@pytest.fixture
def fake_spacy(monkeypatch):
    """A fake spaCy: ``fake_spacy(models)`` has these models; its tags are the words' lengths."""
    spacy_tagger.cache_clear()

    def install(models):
        module = types.ModuleType('spacy')
        module.__spec__ = types.SimpleNamespace()
        module.util = types.SimpleNamespace(is_package=lambda name: name in models)
        module.loaded = []

        def load(name, exclude):
            module.loaded.append(name)

            def pipeline(text):
                starts = [offset for offset in range(len(text)) if offset == 0 or text[offset - 1] == ' ']
                words = [(start, text[start:].split(' ')[0]) for start in starts]
                return [types.SimpleNamespace(text=word, idx=start, tag_=f'T{len(word)}', is_space=not word)
                        for start, word in words]
            return pipeline
        module.load = load
        monkeypatch.setitem(sys.modules, 'spacy', module)
        return module
    yield install
    spacy_tagger.cache_clear()


def test_spacy(fake_spacy):
    spacy = fake_spacy({'en_core_web_md', 'en_core_web_lg'})
    assert load_tagger('spacy')('a red  coat') == [Word('a', 'T1', 0, 1), Word('red', 'T3', 2, 5),
                                                   Word('coat', 'T4', 7, 11)]
    load_tagger('spacy')
    assert spacy.loaded == ['en_core_web_md']


def test_spacy_without_a_model(fake_spacy):
    fake_spacy(set())
    with pytest.raises(UserError, match='needs an English model: python -m spacy download en_core_web_sm'):
        load_tagger('spacy')


def test_spacy_not_installed(monkeypatch):
    spacy_tagger.cache_clear()
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='needs the package spacy'):
        load_tagger('spacy')


# -- attributes --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, groups', [
    ('a/DT bright/JJ red/JJ leather/NN jacket/NN and/CC blue/JJ jeans/NNS', [0, 1, 1, 1, 1, 0, 2, 2]),
    ('a/DT coat/NN is/VBZ red/JJ ./.', [0] * 5),                                            # they are not one chunk
    ('jeans/NNS blue/JJ', [0, 0]),
    ('black/JJ and/CC red/JJ running/VBG shoes/NNS', [1, 0, 1, 0, 1]),
    ('tall/JJ and/CC has/VBZ hair/NN', [0, 0, 0, 0]),
    ('tall/JJ ,/, brown/JJ hair/NN', [0, 0, 1, 1]),
    ('man/NN with/IN his/PRP$ old/JJ bag/NN', [0, 0, 0, 1, 1]),
    ('black/JJ bag/NN grey/JJR shirts/NNS', [1, 1, 2, 2]),
    ('', []),
])
def test_groups_of_words(text, groups):
    assert attribute_groups(tagged(text)) == groups


def test_groups_sit_on_the_tokens_of_their_words(tagger):
    caption = 'The woman has a windbreaker, a bright red T-shirt; yellow windbreakers & a khaki fanny-pack.'
    assert groups_of(caption, tagger) == {
        1: ['bright', 'red', 't', '-', 'shirt'], 2: ['yellow', 'wind', 'breakers'], 3: ['khaki', 'fanny', '-', 'pack']}


def test_places_are_those_of_the_token_ids(tagger):
    caption = 'A man in dark-grey windbreaker pants; he carries a small bag'
    ids = tokenize(caption, default_tokenizer(), 30)
    attributes, parts = annotate(caption, default_tokenizer(), tagger, 30)
    assert len(attributes) == len(parts) == 30
    decoded = [default_tokenizer().decode([number]).strip() for number in ids.tolist() if number]
    assert [word for word, group in zip(decoded, attributes) if group == 2] == ['small', 'bag']
    assert [word for word, part in zip(decoded, parts) if part == PRONOUN] == ['he']
    assert dict(zip(decoded, parts))['a'] == OTHER
    assert attributes[0] == parts[0] == 0 and not any(parts[len(decoded) - 1:])


@pytest.mark.parametrize('length, groups, tokens', [
    (12, {1, 2}, 4), (8, {1, 2}, 4), (7, {1}, 2), (6, {1}, 2), (5, {1}, 2), (4, set(), 0), (3, set(), 0),
    (2, set(), 0)])
def test_cut_captions_lose_incomplete_attributes(length, groups, tokens):
    """Start a red coat and blue jeans end: the second group is complete from a length of 8 on."""
    tagger = fixed_tagger('a/DT red/JJ coat/NN and/CC blue/JJ jeans/NNS')
    attributes, parts = annotate('a red coat and blue jeans', default_tokenizer(), tagger, length)
    assert len(attributes) == len(parts) == length and attributes[-1] == parts[-1] == 0
    assert set(attributes) - {0} == groups and sum(map(bool, attributes)) == tokens


def test_a_noun_whose_first_token_is_left_counts():
    tagger = fixed_tagger('a/DT red/JJ windbreaker/NN')
    attributes, parts = annotate('a red windbreaker', default_tokenizer(), tagger, 5)
    assert attributes == [0, 0, 1, 1, 0] and parts == [0, OTHER, ADJECTIVE, NOUN, 0]


def test_annotate_all(tagger):
    captions = ['a red coat', '', 'he walks', 'a long ' + 'very ' * 80 + 'green bag']
    attributes, parts = annotate_all(captions, default_tokenizer(), tagger)
    assert attributes.shape == parts.shape == (4, 77) and attributes.dtype == parts.dtype == torch.uint8
    for row, caption in enumerate(captions):
        assert (attributes[row].tolist(), parts[row].tolist()) == annotate(caption, default_tokenizer(), tagger)
    assert annotate_all([], default_tokenizer(), tagger)[0].shape == (0, 77)


# -- in the training set -----------------------------------------------------------------------------------------------

@pytest.fixture
def samples(tmp_path):
    from PIL import Image
    Image.new('RGB', (8, 16)).save(tmp_path / 'a.png')
    return [(0, 0, str(tmp_path / 'a.png'), caption) for caption in ('a man in a dark red coat', 'she walks')]


@pytest.mark.parametrize('masking', ('clean', 'inplace'))
def test_samples_carry_their_attributes(samples, masking):
    pairs = build_pairs(samples, fields=('attributes_mask',), caption_masking=masking)
    mask = pairs[0]['attributes_mask']
    assert mask.dtype == torch.int64 and mask.tolist() == [0] * 5 + [1, 1, 1] + [0] * 69
    assert pairs[1]['attributes_mask'].sum() == 0


def test_tagged_once_and_only_when_asked_for(samples, monkeypatch):
    calls = []

    def counted(name):
        def tag(text):
            calls.append(text)
            return []
        return tag
    monkeypatch.setattr('datasets.text.load_tagger', counted)
    assert 'attributes_mask' not in build_pairs(samples, fields=('mlm_labels',))[0]
    assert not calls
    pairs = build_pairs(samples, fields=('attributes_mask',))
    for _ in range(3):
        pairs[0], pairs[1]
    assert len(calls) == 2


def test_the_tagger_is_a_choice(samples):
    with pytest.raises(UserError, match='unknown tagger'):
        build_pairs(samples, fields=('attributes_mask',), attribute_tagger='nltk')

"""The lexicon: which words of a caption it finds, and which files it refuses."""
import random

import pytest
import yaml

from datasets.lexicon import DEFAULT_LEXICON, Lexicon, read_lexicon
from datasets.synthpedes.drawing import sample_scene
from datasets.synthpedes.people import base_color, sample_person, write_caption
from utils.errors import UserError

ENGLISH = read_lexicon()


def find(caption, *categories):
    """The words of some categories in a caption, sorted."""
    return sorted(word for category, word in ENGLISH.find(caption) if category in categories)


@pytest.mark.parametrize('caption, category, words', [
    ('GREY and gray trousers', 'color', ['gray']),
    ('two jackets and dresses', 'upper garment', ['dress', 'jacket']),
    ("a man's T-shirt, a t shirt, a tshirt", 'upper garment', ['T-shirt']),
    ('a shoulder-bag', 'bag', ['shoulder bag']),
    ('a rucksack', 'bag', ['backpack']),
    ('dress shoes', 'upper garment', []),
    ('a redder coated shirting', 'color', []),
    ('a redder coated shirting', 'upper garment', []),
    ('women', 'gender', ['woman']),
])
def test_words_are_found_with_synonyms_plurals_and_hyphens(caption, category, words):
    assert find(caption, category) == words


@pytest.mark.parametrize('caption, upper, lower', [
    ('a red jacket and blue jeans', ['red'], ['blue']),
    ('a black and white striped shirt, dark blue jeans', ['black', 'white'], ['blue']),
    ('a black, white and red shirt', ['black', 'red', 'white'], []),
    ('a bright-red long-sleeved T-shirt', ['red'], []),
    ('Her shirt is white and her trousers are dark gray.', ['white'], ['gray']),
    ('a shirt that is pink and pants which are green', ['pink'], ['green']),
    ('a woman in black wearing jeans', [], []),
    ('a black belt, white shirt', ['white'], []),
    ('a yellow backpack over a shirt', [], []),
    ('blue shoes. jacket', [], []),
])
def test_colors_belong_to_the_garment_that_they_describe(caption, upper, lower):
    assert (find(caption, 'upper color'), find(caption, 'lower color')) == (upper, lower)


def test_a_caption_in_chinese():
    lexicon = Lexicon({'颜色': {'红色': [], '黑色': []}, '上衣': {'外套': ['夹克']}}, {'上衣颜色': ('颜色', '上衣')})
    assert lexicon.find('一个男人穿着红色的夹克和黑色裤子') == {
        ('颜色', '红色'), ('颜色', '黑色'), ('上衣', '外套'), ('上衣颜色', '红色')}


def test_hidden_categories_are_in_combinations_only():
    assert find('long hair', 'hair length') == ['long'] and not find('long hair', '_length')
    assert all(not category.startswith('_') for category, _ in ENGLISH.words)


def test_captions_are_grouped():
    groups = Lexicon({'color': {'red': [], 'gray': ['grey'], 'blue': []}}).group_captions(['red', 'a grey coat', 'x'])
    assert {word: group.tolist() for (_, word), group in groups.items()} == {
        'red': [True, False, False], 'gray': [False, True, False], 'blue': [False, False, False]}


def test_a_copy_of_the_default_lexicon_is_read(tmp_path):
    with open(DEFAULT_LEXICON, encoding='utf-8') as file:
        content = yaml.safe_load(file)
    copy = tmp_path / 'mine.yaml'
    copy.write_text(yaml.safe_dump(content))
    assert sorted(read_lexicon(copy).words) == sorted(ENGLISH.words)


@pytest.mark.parametrize('text, sentence', [
    ('', 'must hold categories of words'),
    ('- red', 'must hold categories of words'),
    ('color: [red]', 'color: must hold words with their synonyms'),
    ('color: {}', 'color: must hold words with their synonyms'),
    ('color: {red: 3}', 'color, red: the synonyms must be a list'),
    ('color: {red: [no]}', 'color: the word False must be text: put it in quotes'),
    ('1: {red: []}', 'the category 1 must be text'),
    ('color: {red: ["..."]}', r"color: the word '...' has no letter"),
    ('color: {gray: [grey], silver: [Grey]}', "color: 'Grey' is listed for both 'gray' and 'silver'; remove one"),
    ('color: {red: []}\ncoat color: color + cot', "category in .*coat color: 'cot'; known: color"),
    ('color: {red: []}\ncoat color: color', "'color' must name two categories"),
    ('color: {red: []}\ncolor: {blue: []}', "line 2: 'color' is there twice"),
    ('color: !!python/name:os.system {}', 'plain values only'),
    ('color: {red: [', 'is not YAML'),
])
def test_what_is_refused(tmp_path, text, sentence):
    path = tmp_path / 'lexicon.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        read_lexicon(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match='none.yaml'):
        read_lexicon(tmp_path / 'none.yaml')


def known_colors(person, *slots):
    """The base colors of some of a synthetic person's things, in the lexicon's spelling."""
    tones = [person[slot].get(key) for slot in slots if person[slot] for key in ('colour', 'second')]
    return {base_color(tone).replace('grey', 'gray') for tone in tones if tone}


def test_colors_of_synthetic_captions_are_those_of_the_people():
    slots = {'upper color': ('upper', 'jacket'), 'lower color': ('lower',), 'shoe color': ('shoes',),
             'hair color': ('hair',), 'bag color': ('bag',)}
    counts = dict.fromkeys(slots, 0)
    for seed in range(150):
        person = sample_person(random.Random(seed), 12)
        caption = write_caption(person, sample_scene(seed, 'front', 0.3, 0.1), random.Random(seed))
        for category, names in slots.items():
            colors = set(find(caption, category))
            assert colors <= known_colors(person, *names), caption
            counts[category] += len(colors)
    assert min(counts.values()) > 50

"""SEN's captions: filtered to nouns, adjectives and pronouns, and masked by part of speech."""
import argparse
import random
from collections import Counter

import pytest
import torch

from datasets import attributes, images, text
from datasets.attributes import ADJECTIVE, NOUN, OTHER, PRONOUN
from datasets.bases import tokenize
from datasets.build import build_dataloader
from datasets.masking import descriptive_positions, mask_tokens, noun_mask_probabilities
from tests.datasets.pairs import build_pairs
from tests.support import options
from utils.errors import UserError
from utils.options import complete
from utils.simple_tokenizer import default_tokenizer

MASK, START, END = 49405, 49406, 49407
CAPTION = 'She wears a bright turquoise windbreaker and is slowly walking with a black backpack.'
NAMING = {'she', 'bright', 'turquoise', 'windbreaker', 'black', 'backpack'}


def hand_tagger(text):
    """Tag words from a list, so that the tests do not depend on a tagger."""
    tags = {'she': 'PRP', 'bright': 'JJ', 'turquoise': 'JJ', 'windbreaker': 'NN', 'black': 'JJ', 'backpack': 'NN'}
    position, words = 0, []
    for word in text.replace('.', ' .').split():
        start = text.index(word, position)
        position = start + len(word)
        words.append(attributes.Word(word, tags.get(word, 'IN'), start, position))
    return words


@pytest.fixture
def tagged(monkeypatch):
    """How often the tagger was asked."""
    calls = Counter()

    def tagger(text):
        calls[text] += 1
        return hand_tagger(text)
    monkeypatch.setattr(text, 'load_tagger', lambda name: tagger)
    monkeypatch.setattr(images, 'read_image', lambda path: torch.zeros(1))
    return calls


def pairs(captions=(CAPTION,), **settings):
    return build_pairs([(i, i, f'{i}.png', caption) for i, caption in enumerate(captions)], **settings)


def words_of(ids):
    return default_tokenizer().decode([int(i) for i in ids if 0 < i < MASK]).split()


def test_without_a_filter_captions_are_whole_and_nobody_tags(tagged):
    assert torch.equal(pairs()[0]['caption_ids'], tokenize(CAPTION, default_tokenizer()))
    assert not tagged


def test_filter_keeps_the_naming_words(tagged):
    ids = pairs(caption_filter=1.0)[0]['caption_ids']
    assert ids.dtype == torch.long and ids.shape == (77,)
    assert torch.equal(ids, tokenize('she bright turquoise windbreaker black backpack', default_tokenizer()))


def test_a_word_in_pieces_stays_together(tagged):
    pieces = default_tokenizer().encode('windbreaker')
    assert len(pieces) > 1
    ids = pairs(caption_filter=1.0)[0]['caption_ids'].tolist()
    position = ids.index(pieces[0])
    assert ids[position:position + len(pieces)] == pieces


def test_filter_acts_on_its_share_of_the_samples_and_repeats(tagged):
    dataset = pairs(caption_filter=0.2)
    lengths = [int((dataset[0, seed]['caption_ids'] > 0).sum()) for seed in range(2000)]
    assert len(set(lengths)) == 2
    assert sum(length == min(lengths) for length in lengths) / 2000 == pytest.approx(0.2, abs=0.03)
    assert torch.equal(dataset[0, 3]['caption_ids'], dataset[0, 3]['caption_ids'])
    assert sum(tagged.values()) == 1     # tagged once a caption


def test_a_caption_that_names_nothing_stays(tagged):
    ids = pairs(['walking with and slowly'], caption_filter=1.0)[0]['caption_ids']
    assert words_of(ids) == ['walking', 'with', 'and', 'slowly']


def test_filter_of_a_cut_caption(tagged):
    ids = pairs(['with the ' * 40 + 'black backpack ' + 'with the ' * 40], caption_filter=1.0,
                text_length=85)[0]['caption_ids']
    assert words_of(ids) == ['black', 'backpack'] and ids[3] == END and not ids[4:].any()


def test_keep_naming_by_hand():
    ids, parts = [START, 11, 12, 13, 14, END, 0], [OTHER, NOUN, OTHER, PRONOUN, ADJECTIVE, OTHER, OTHER]
    assert descriptive_positions(ids, parts, MASK) == [0, 1, 3, 4, 5]
    assert descriptive_positions(ids, [OTHER] * 7, MASK) == [0, 1, 2, 3, 4, 5]


def test_the_first_byte_of_the_vocabulary_is_a_word_and_no_padding():
    """The '!' of '!/' has the id 0, like padding: only the end token shows the end of a caption."""
    ids = tokenize('wow !/', default_tokenizer(), 8).tolist()
    assert ids == [START, 2781, 0, 270, END, 0, 0, 0]
    assert descriptive_positions(ids, [OTHER] * 8, MASK) == [0, 1, 2, 3, 4]


def test_filtered_attributes_stay_on_their_words(tagged):
    sample = pairs(caption_filter=1.0, fields=('attributes_mask',))[0]
    grouped = [(default_tokenizer().decode([token]).strip(), group)
               for token, group in zip(sample['caption_ids'].tolist(), sample['attributes_mask'].tolist()) if group]
    complete = pairs(fields=('attributes_mask',))[0]
    expected = [(default_tokenizer().decode([token]).strip(), group)
                for token, group in zip(complete['caption_ids'].tolist(), complete['attributes_mask'].tolist())
                if group]
    assert grouped == expected and {group for _, group in grouped} == {1, 2}


# -- noun masking ------------------------------------------------------------------------------------------------------

def test_noun_chances():
    assert noun_mask_probabilities([NOUN, ADJECTIVE, PRONOUN, OTHER]) == [0.30, 0.30, 0.05, 0.05]


def test_noun_masking_rates(tagged):
    """Nouns and adjectives 30%, other words 5%, token by token; of the chosen 80% masks, 10% random, 10% unchanged."""
    dataset = pairs(mlm_masking='noun', caption_masking='inplace', fields=('mlm_labels',))
    complete = tokenize(CAPTION, default_tokenizer())
    naming = torch.zeros(77, dtype=torch.bool)
    for word in NAMING - {'she'}:
        for token in default_tokenizer().encode(word):
            naming |= complete == token
    content = (complete > 0) & (complete < MASK)
    samples = [dataset[0, seed] for seed in range(4000)]
    labels, ids = (torch.stack([sample[name] for sample in samples]) for name in ('mlm_labels', 'caption_ids'))
    chosen = labels > 0
    first = int(content.nonzero()[0])
    rest = content & ~naming
    rest[first] = False                                      # it is chosen if no other token is
    assert chosen[:, naming].float().mean().item() == pytest.approx(0.30, abs=0.01)
    assert chosen[:, rest].float().mean().item() == pytest.approx(0.05, abs=0.005)
    assert chosen.any(dim=1).all() and not chosen[:, ~content].any()
    assert torch.equal(labels[chosen], complete.expand(4000, -1)[chosen])
    assert torch.equal(ids[~chosen], complete.expand(4000, -1)[~chosen])
    became, was = ids[:, naming][chosen[:, naming]], labels[:, naming][chosen[:, naming]]
    assert (became == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (became == was).float().mean().item() == pytest.approx(0.1, abs=0.015)


def test_sens_recipe_filters_and_masks_though_no_head_asks(tagged):
    dataset = pairs(mlm_masking='noun', caption_masking='inplace', caption_filter=0.2)
    samples = [dataset[0, seed] for seed in range(300)]
    assert all(set(sample) == {'pids', 'image_ids', 'index', 'images', 'caption_ids'} for sample in samples)
    lengths = Counter(int((sample['caption_ids'] > 0).sum()) for sample in samples)
    masks = sum(bool((sample['caption_ids'] == MASK).any()) for sample in samples)
    assert len(lengths) == 2 and masks > 200


def test_filter_comes_before_the_mask(tagged):
    dataset = pairs(mlm_masking='noun', caption_masking='inplace', caption_filter=1.0, fields=('mlm_labels', 'mlm_ids'))
    short = tokenize('she bright turquoise windbreaker black backpack', default_tokenizer())
    labels = []
    for seed in range(500):
        sample = dataset[0, seed]
        assert torch.equal(sample['caption_ids'], sample['mlm_ids'])
        chosen = sample['mlm_labels'] > 0
        assert torch.equal(torch.where(chosen, sample['mlm_labels'], sample['caption_ids']), short)
        labels.append(chosen)
    share = torch.stack(labels).float().mean(0)
    assert share[2].item() == pytest.approx(0.30, abs=0.07)   # 'bright': moved up with its part of speech


def test_clean_noun_masking_keeps_captions_whole(tagged):
    sample = pairs(mlm_masking='noun', fields=('mlm_labels',))[0, 4]
    assert torch.equal(sample['caption_ids'], tokenize(CAPTION, default_tokenizer()))
    assert torch.equal(torch.where(sample['mlm_labels'] > 0, sample['mlm_labels'], sample['mlm_ids']),
                       sample['caption_ids'])


def test_noun_masking_that_masks_nothing_needs_no_tags(tagged):
    pairs(mlm_masking='noun')
    assert not tagged


def test_random_masking_is_what_it_was():
    ids = [START, *range(100, 130), END]
    assert mask_tokens(ids, random.Random(3), MASK) == mask_tokens(ids, random.Random(3), MASK,
                                                                   probabilities=[0.15] * len(ids))


@pytest.mark.parametrize('masking', ['inplace', 'clean'])
def test_attention_masking_leaves_captions_to_the_model(tagged, masking):
    sample = pairs(mlm_masking='attention', caption_masking=masking, fields=('mlm_labels',))[0]
    assert set(sample) == {'pids', 'image_ids', 'index', 'images', 'caption_ids'}
    assert torch.equal(sample['caption_ids'], tokenize(CAPTION, default_tokenizer())) and not tagged


def test_wrong_masking():
    with pytest.raises(UserError, match="unknown mlm masking 'nouns'; did you mean noun"):
        pairs(mlm_masking='nouns')


def test_options_reach_the_dataset(tagged, make_dataset, tmp_path):
    make_dataset()
    args = options(loss_names='sdm+mae', mask_ratio=0.7, mlm_masking='noun', caption_masking='inplace',
                   caption_filter=0.3, batch_size=2, num_workers=0, root_dir=str(tmp_path))
    masking = build_dataloader(args)[0].dataset.text_transform.masking
    assert (masking.mlm_masking, masking.caption_filter) == ('noun', 0.3)
    assert masking.masks_in_place and masking.masks_captions([])
    missing = ('mlm_masking', 'caption_filter', 'attribute_tagger')      # as in a caller's options without these
    args = complete(argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in missing}))
    args.caption_masking = 'clean'
    assert build_dataloader(args)[0].dataset.text_transform.masking.caption_filter == 0


def test_the_tagger_that_comes_along():
    """TextBlob's tags of a natural caption."""
    pytest.importorskip('textblob')
    dataset = build_pairs([(0, 0, '0.png', 'The man is wearing a red shirt and blue jeans.')], caption_filter=1.0)
    words = words_of(dataset.text_transform(0, 0)['caption_ids'])
    assert {'man', 'red', 'shirt', 'blue', 'jeans'} <= set(words) and not {'the', 'is', 'a', 'and', '.'} & set(words)

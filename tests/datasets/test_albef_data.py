"""What RaSa and MARS read: cleaned captions, captions of the same person, masked word pieces and their attributes."""
import random

import pytest
import torch

from datasets import array_cache, build_dataloader
from datasets.fields import FIELDS
from datasets.masking import IGNORE_INDEX, mask_bert_tokens
from datasets.preprocessing.albef import Albef, CleaningWordPiece, clean_caption
from datasets.same_person import SamePersonCaptions
from datasets.text import CaptionMasking, CaptionTransform, tokenize_samples
from model import build_model
from model.backbones.albef import Albef as AlbefBackbone
from processor.step import trim_and_broadcast
from tests.support import options
from utils.errors import UserError
from utils.option_types import split_dataset_path
from utils.wordpiece import SPECIAL, WordPiece

WORDS = 'a the man woman wears red blue black coat shoes back ##pack and with'.split()
OWN_FIELDS = 'own_caption_ids', 'own_mlm_ids', 'own_mlm_labels', 'own_mrtd_ids'
NOT_CLEANED = 'The MAN, with (a) "red/blue" coat: <person>'


@pytest.fixture
def pieces():
    return CleaningWordPiece([*SPECIAL, *WORDS])


# -- captions ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('caption, cleaned', [
    (NOT_CLEANED, 'the man with a red blue coat person'),
    ("It's a t-shirt;  #1 *new* ~ \n", 'its a t shirt 1 new'),
    (' '.join(map(str, range(80))), ' '.join(map(str, range(75)))),
    ('?!', '')])
def test_a_cleaned_caption(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_the_tokenizer_reads_cleaned_captions(pieces):
    plain, cleaned = WordPiece(pieces.pieces), clean_caption(NOT_CLEANED)
    assert pieces.encode(NOT_CLEANED) == plain.encode(cleaned) != plain.encode(NOT_CLEANED)
    assert pieces.encode_all([NOT_CLEANED]) == [plain.encode(cleaned)]
    ids, spans, text = pieces.encode_with_offsets(NOT_CLEANED)
    assert (ids, text) == (plain.encode(cleaned), cleaned)
    assert [text[slice(*span)] for span in spans][:3] == ['the', 'man', 'with']
    assert pieces.cache_key != plain.cache_key


def albef_options(root, **changes):
    settings = dict(backbone='albef', pretrain_choice='scratch:albef-tiny', loss_names='sdm', preparation='albef',
                    root_dir=str(root), output_dir=str(root), img_size=(48, 16), text_length=12, batch_size=8,
                    num_workers=0)
    return options(**{**settings, **changes})


def test_only_evaluation_cuts_captions_to_the_text_length(make_dataset, tmp_path):
    long = 'A man wears a RED coat, and carries a black back-pack with shoes; nothing else is seen here!'

    def lengthen(entries):
        for entry in entries:
            entry['captions'][0] = long
    make_dataset(change=lengthen)
    train, images, captions, _ = build_dataloader(albef_options(tmp_path), AlbefBackbone)
    pair = train.dataset[0]
    tokenizer = train.dataset.text_transform.tokenizer
    assert tokenizer.decode(pair['caption_ids']) == clean_caption(long)
    assert captions.dataset.tokens.shape[1] == 12
    assert captions.dataset[0][1].tolist() == [tokenizer.start_id, *tokenizer.encode(long)][:12]
    assert pair['images'].shape == (3, 48, 16) and images.dataset[0][1].shape == (3, 48, 16)


def test_the_longest_training_caption_sets_the_length(pieces):
    args = albef_options('.')
    captions = ['a man', 'a man with a red backpack and shoes and black shoes and blue shoes']
    assert Albef(args, AlbefBackbone).train_text_length(captions, pieces) == 16
    assert Albef(args, AlbefBackbone).train_text_length(captions[:1], pieces) == 12
    assert Albef(args, AlbefBackbone).train_text_length([' '.join(['.'.join('abcdefghij')] * 75)], pieces) <= 512


def test_other_tokens_are_refused(make_dataset, tmp_path):
    make_dataset()
    with pytest.raises(UserError, match="--preparation albef is for BERT's word pieces, and --backbone clip"):
        build_dataloader(options(preparation='albef', root_dir=str(tmp_path)))


def test_images_are_only_mirrored(make_dataset, tmp_path):
    make_dataset()

    def images_of(cache):
        train = build_dataloader(albef_options(tmp_path, image_cache=cache, img_aug=True), AlbefBackbone)[0]
        return [train.dataset[0, seed] for seed in range(12)]
    drawn = [sample['images'] for sample in images_of('')]
    assert all(torch.equal(image, drawn[0]) or torch.equal(image, drawn[0].flip(2)) for image in drawn)
    assert not all(torch.equal(image, drawn[0]) for image in drawn)
    for sample in images_of(str(tmp_path / 'cache')):       # the device mirrors these; a crop at 10, 10 moves nothing
        assert sample['augmentation_params'][1:].tolist() == [10, 10, 0, 0, 0, 0]


# -- another caption of the same person --------------------------------------------------------------------------------

SAMPLES = [(person, 10 * person + number, 'x.jpg', caption) for person, color in enumerate(('red', 'blue', 'black'))
           for number, caption in enumerate((f'a man wears {color} shoes', 'a woman with a red backpack', 'the coat'))]


def transform(tokenizer, fields, samples=SAMPLES, **masking):
    tokens = tokenize_samples(samples, tokenizer, text_length=10)
    return CaptionTransform(samples, tokens, tokenizer, fields, CaptionMasking(**masking))


def test_pairs_get_captions_of_the_same_person_with_the_given_probability():
    pids, rng = [5, 9, 5, 5, 9, 2], random.Random(0)
    captions, draws = SamePersonCaptions(pids, 0.3), 6000
    drawn = [captions(0, rng) for _ in range(draws)]
    assert {pids[index] for index in drawn} == {5}
    for other in (2, 3):        # the pair itself is one of the three
        assert abs(drawn.count(other) / draws - 0.1) < 4 * (0.09 / draws) ** 0.5
    assert captions(5, rng) == 5


def test_fields_of_a_pair_with_another_caption(pieces):
    fields = 'replaced', 'attributes_mask', *OWN_FIELDS
    captions, plain = (transform(pieces, fields, weak_positive_rate=rate) for rate in (1.0, 0.0))
    seen = set()
    for seed in range(20):
        sample, own = captions(1, seed), plain(1, seed)
        assert sample['own_caption_ids'].equal(own['caption_ids']) and own['replaced'] == 0
        assert sample['replaced'] == (not sample['caption_ids'].equal(own['caption_ids']))
        same_person = next(index for index in range(3) if plain(index, 0)['caption_ids'].equal(sample['caption_ids']))
        assert sample['attributes_mask'].equal(plain(same_person, 0)['attributes_mask'])
        changed = sample['own_mlm_labels'] != IGNORE_INDEX
        assert sample['own_mlm_labels'][changed].equal(sample['own_caption_ids'][changed])
        assert sample['own_mlm_ids'][~changed].equal(sample['own_caption_ids'][~changed])
        seen.add(int(sample['replaced']))
        assert all(value.equal(captions(1, seed)[name]) for name, value in sample.items())
    assert seen == {0, 1}


def test_equal_captions_are_not_replaced(pieces):
    samples = [(0, 0, 'x.jpg', 'A man.'), (0, 1, 'y.jpg', 'a man')]
    captions = transform(pieces, ('replaced',), samples, weak_positive_rate=1.0)
    assert not any(captions(0, seed)['replaced'] for seed in range(10))


@pytest.mark.parametrize('cached', [False, True])
def test_pairs_of_joined_datasets_get_captions_of_the_same_person(make_dataset, tmp_path, monkeypatch, cached):
    """Also if the annotations are large enough for the cache of arrays."""
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 1 if cached else 50_000)
    for name in ('CUHK-PEDES', 'ICFG-PEDES'):
        make_dataset(name, {'train': 3, 'val': 1, 'test': 1})
    args = albef_options(tmp_path, dataset_name='CUHK-PEDES+ICFG-PEDES', weak_positive_rate=1.0, text_length=30)
    pairs = build_dataloader(args, AlbefBackbone)[0].dataset
    tokenizer = pairs.text_transform.tokenizer
    persons = {}        # the captions of each person
    for pid, _, _, caption in pairs.samples:
        persons.setdefault(pid, []).append(clean_caption(caption))
    assert len(persons) == 6
    drawn = set()
    for index in range(len(pairs)):
        for seed in range(3):
            sample = pairs[index, seed]
            caption = tokenizer.decode(sample['caption_ids'])
            assert caption in persons[sample['pids']]
            drawn.add(caption != clean_caption(pairs.samples[index][3]))
    assert drawn == {False, True}


def test_pairs_of_a_table_get_captions_of_the_same_person(make_dataset, tmp_path):
    make_dataset()
    rows = ['image,caption,id,split']
    rows += [f'{split}/{pid:04d}_0.jpg,person {pid} says {number},{pid},{split}'
             for split, pids in (('train', (1, 2, 3)), ('val', (5,)), ('test', (6, 7))) for pid in pids
             for number in range(3)]
    (tmp_path / 'table.csv').write_text('\n'.join(rows))
    (tmp_path / 'imgs').symlink_to(tmp_path / 'CUHK-PEDES' / 'imgs')
    name, root = split_dataset_path(str(tmp_path / 'table.csv'), str(tmp_path / 'imgs'))
    args = albef_options(tmp_path, dataset_name=name, root_dir=root, weak_positive_rate=1.0)
    pairs = build_dataloader(args, AlbefBackbone)[0].dataset
    for index, (_, _, _, caption) in enumerate(pairs.samples):
        texts = {pairs.text_transform.tokenizer.decode(pairs[index, seed]['caption_ids']) for seed in range(8)}
        assert len(texts) > 1 and {text[:8] for text in texts} == {caption[:8]}


# -- masks and attributes ----------------------------------------------------------------------------------------------

def test_rates_of_masked_word_pieces(pieces):
    rng, count = random.Random(1), 20000
    ids = [pieces.start_id] + [7] * count + [pieces.pad_id] * 5
    masked, labels = mask_bert_tokens(ids, rng, pieces, 0.3)
    selected = [new for new, label in zip(masked, labels) if label != IGNORE_INDEX]
    assert labels[0] == IGNORE_INDEX and labels[-5:] == [IGNORE_INDEX] * 5 and masked[-5:] == [pieces.pad_id] * 5
    assert all(new == old for old, new, label in zip(ids, masked, labels) if label == IGNORE_INDEX)
    random_share = 0.1 * (pieces.vocab_size - 2) / pieces.vocab_size    # a random piece can be the mask or the piece
    for share, expected in ((len(selected) / count, 0.3),
                            (sum(new not in (7, pieces.mask_id) for new in selected) / len(selected), random_share),
                            (selected.count(7) / len(selected), 0.1 + 0.1 / pieces.vocab_size)):
        assert abs(share - expected) < 0.015


def test_fields_that_existed_before_keep_their_random_numbers(pieces):
    fields = ('mlm_labels', 'bert_mlm_ids', 'eda_ids', 'attributes_mask')
    for masking in ({}, {'caption_masking': 'inplace'}):
        before, after = (transform(pieces, (*fields, *more), **masking)(0, 3) for more in ((), OWN_FIELDS))
        assert all(before[name].equal(after[name]) for name in before)
    assert list(FIELDS)[-len(OWN_FIELDS) - 1:] == ['own_caption_ids', 'replaced', *OWN_FIELDS[1:]]


def test_attributes_of_word_pieces_are_those_of_words(pieces):
    """The tagger reads the whole caption, so both pieces of 'backpack' are parts of a noun."""
    samples = [(0, 0, 'x.jpg', 'A woman with a red backpack, and the black shoes.')]
    sample = transform(pieces, ('attributes_mask',), samples)(0, 0)
    assert [pieces.pieces[number] for number in sample['caption_ids'][1:-1].tolist()] == [
        'a', 'woman', 'with', 'a', 'red', 'back', '##pack', 'and']
    short = sample['attributes_mask'].tolist()
    assert short == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize('is_training', [True, False])
def test_captions_end_with_the_longest_one(pieces, is_training):
    """Losses read the padding up to there: that of both captions of a pair, each with its own length."""
    samples = [(0, 0, 'x.jpg', 'a man wears red shoes'), (0, 1, 'x.jpg', 'a man'), (1, 2, 'x.jpg', 'the red coat')]
    captions = transform(pieces, ('replaced', 'attributes_mask', *OWN_FIELDS), samples, weak_positive_rate=1.0)
    seed = next(seed for seed in range(99) if captions(0, seed)['replaced'])
    first, second = captions(0, seed), captions(2, seed)
    batch = {name: torch.stack([first[name], second[name]]) for name in first}
    model = build_model(albef_options('.'), 2).train(is_training)
    trimmed = trim_and_broadcast(batch, model)
    assert {name: value.shape[1] for name, value in trimmed.items() if value.dim() > 1} == {
        'caption_ids': 4, 'attributes_mask': 4, **dict.fromkeys(OWN_FIELDS, 6)}
    assert all(value.equal(batch[name][:, :value.shape[1]]) for name, value in trimmed.items() if value.dim() > 1)

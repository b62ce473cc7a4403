"""Side texts: they travel with their captions in every format, and second captions are drawn again in each epoch."""
import collections
import json
import os
import random
import re

import pytest
import torch
from PIL import Image

from datasets import array_cache
from datasets.annotation_checks import entry_problem
from datasets.build import build_dataset, build_training_loaders
from datasets.side_texts import SideTexts, draw_second_caption
from datasets.text import tokenize
from tests.support import options
from utils.errors import UserError

KEYS = 'captions_bt', 'diversity_captions'


def add_side_texts(entries):
    """Add a back-translation and a second caption to each caption."""
    for entry in entries:
        dataset = 'RSTPReid' if 'img_path' in entry else 'CUHK-PEDES'
        entry['captions'] = [f'{entry["id"]} {dataset} {caption}' for caption in entry['captions']]
        entry['captions_bt'] = [f'back {caption}' for caption in entry['captions']]
        entry['diversity_captions'] = [second_caption(caption) for caption in entry['captions']]


def second_caption(caption):
    return [[f'one {caption}', f'two {caption}'], [f'three {caption}'], f'four {caption}']


def assert_side_texts_follow(captions, back_translations, second_captions):
    assert list(back_translations) == [f'back {caption}' for caption in captions]
    assert list(second_captions) == [second_caption(caption) for caption in captions]


@pytest.fixture
def training(make_dataset, tmp_path):
    """A function that builds the training loader of a dataset with side texts."""
    make_dataset(change=add_side_texts)
    make_dataset('RSTPReid', change=add_side_texts)

    def build(**changes):
        settings = dict(root_dir=str(tmp_path), img_size=(24, 8), batch_size=4, num_workers=0, text_length=32,
                        loss_names='tal+aug', preparation='tbps', txt_aug=True)
        return build_training_loaders(options(**{**settings, **changes})).train
    return build


@pytest.mark.parametrize('changes', [
    {}, {'noisy_rate': 0.8}, {'limit_train': 5}, {'dataset_name': 'CUHK-PEDES+RSTPReid'},
    {'dataset_name': 'RSTPReid+CUHK-PEDES', 'limit_train': 7, 'noisy_rate': 0.9}], ids=str)
@pytest.mark.parametrize('min_cached_captions', [10 ** 6, 3])
def test_side_texts_follow_their_captions(training, monkeypatch, changes, min_cached_captions):
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', min_cached_captions)
    for _ in range(2):      # without and with the cache of a first start
        captions = training(**changes).dataset.text_transform
        texts = [caption for *_, caption in captions.samples]
        assert_side_texts_follow(texts, *(captions.side_texts[key] for key in KEYS))
        assert len(set(texts)) == len(texts) == changes.get('limit_train', len(texts))
    if 'noisy_rate' in changes:
        clean = [caption for *_, caption in training(**{**changes, 'noisy_rate': 0.0}).dataset.samples]
        assert texts != clean and set(texts) == set(clean)


def test_side_texts_of_present_images(training, make_dataset, tmp_path):
    os.remove(tmp_path / 'CUHK-PEDES/imgs/train/0001_1.jpg')
    captions = training(skip_broken=True).dataset.text_transform
    assert len(captions.samples) == 14
    assert_side_texts_follow([caption for *_, caption in captions.samples], *(captions.side_texts[k] for k in KEYS))


def test_a_caption_without_side_texts_has_an_empty_text(make_dataset, tmp_path):
    def change(entries):
        entries[1]['captions_bt'] = ['', 'back']
        entries[3]['diversity_captions'] = ['second', '']
    make_dataset(change=change)
    dataset = build_dataset('CUHK-PEDES', str(tmp_path))
    assert list(dataset.side_texts('captions_bt')) == ['', '', '', 'back'] + [''] * 12
    assert list(dataset.side_texts('diversity_captions')) == [''] * 6 + ['second'] + [''] * 9
    assert dataset.side_texts('captions_bt').missing_count == 15


def test_captions_without_second_captions_are_an_error(training, make_dataset, tmp_path):
    annotation = tmp_path / 'CUHK-PEDES' / 'reid_raw.json'
    entries = json.loads(annotation.read_text())
    entries[0]['diversity_captions'][1] = ''
    del entries[2]['diversity_captions']
    annotation.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"reid_raw.json: 3 of 16 training captions have no 'diversity_captions', which "
                                        'a loss of --loss_names reads: add them to the annotation'):
        training()
    assert training(loss_names='tal').dataset.text_transform.side_texts.keys() == {'captions_bt'}


@pytest.mark.parametrize('value, problem', [
    (['x'], "has 'diversity_captions' that are no list of 2 second captions, one for each caption"),
    ('text', "has 'diversity_captions' that are no list of 2"), (['a', []], 'element 2 is an empty list'),
    ([['a', []], 'b'], 'element 1 has a sub-sentence without rewritings'), (['a', 3], 'element 2 holds an int instead'),
    ([[['a', None]], 'b'], 'element 1 holds a NoneType instead of a text'), ([[' '], 'b'], 'holds an empty caption'),
    (['a', '["b", "c"]'], 'element 2 holds a list that is written as text'),
    (['a', "[['b']]"], 'element 2 holds a list that is written as text')])
def test_wrong_second_captions_are_named(value, problem):
    entry = {'id': 1, 'split': 'train', 'captions': ['one', 'two'], 'file_path': 'a.png'}
    assert entry_problem({**entry, 'diversity_captions': ['x', [['y', 'z'], 'w']]}, 'file_path') is None
    assert problem in entry_problem({**entry, 'diversity_captions': value}, 'file_path')


def test_one_rewriting_of_each_sub_sentence_in_random_order():
    rng, second = random.Random(0), [['a', 'b', 'c'], ['d'], 'e f']
    drawn = collections.Counter(draw_second_caption(second, rng) for _ in range(3000))
    assert len(drawn) == 3 * 6 and second == [['a', 'b', 'c'], ['d'], 'e f']
    assert {tuple(sorted(text.split())) for text in drawn} == {tuple(sorted(f'{x}def')) for x in 'abc'}
    assert all(120 < count < 215 for count in drawn.values())     # 167 expected
    assert draw_second_caption('as it is', rng) == 'as it is'


def epoch(loader, number):
    loader.batch_sampler.set_epoch(number, 0)
    batches = list(loader)
    order = torch.cat([batch['index'] for batch in batches]).argsort()
    return torch.cat([batch['second_caption_ids'] for batch in batches])[order]


def test_second_captions_are_drawn_anew_in_each_epoch(training):
    settings = dict(preparation='irra', txt_aug=False, text_length=64)
    loader = training(**settings)
    captions = loader.dataset.text_transform
    first, second = epoch(loader, 1), epoch(loader, 2)
    assert torch.equal(first, epoch(training(**settings), 1)) and not torch.equal(first, second)
    assert torch.equal(first, epoch(training(**settings, num_workers=2), 1))
    assert not torch.equal(first, epoch(training(**settings, seed=2), 1))
    for ids, (*_, caption) in zip(first, captions.samples):
        candidates = {draw_second_caption(second_caption(caption), random.Random(seed)) for seed in range(200)}
        assert any(torch.equal(ids, tokenize(text, captions.tokenizer, 64)) for text in candidates)


def test_second_captions_are_augmented_like_captions(training):
    clean = epoch(training(preparation='irra', txt_aug=False, text_length=200), 1)
    perturbed = epoch(training(preparation='irra', txt_aug=True, text_length=200), 1)
    assert (perturbed == 49405).any() and not (clean == 49405).any()      # RDE masks words
    deleted = epoch(training(preparation='tbps', txt_aug=True, text_length=200), 1)
    # TBPS-CLIP deletes words; a second caption has no back-translation.
    assert ((deleted != 0).sum() < (clean != 0).sum()) and not (deleted == 49405).any()


def test_other_fields_do_not_depend_on_second_captions(training):
    loaders = [training(preparation='irra', loss_names=names) for names in ('tal+mlm', 'tal+mlm+aug')]
    for plain, with_second in zip(*map(list, loaders)):
        assert with_second.pop('second_caption_ids').shape == (4, 32)
        assert plain.keys() == with_second.keys()
        assert all(torch.equal(plain[name], with_second[name]) for name in plain)


# -- tables and lists --------------------------------------------------------------------------------------------------

ROWS = [{'image': 'a.png', 'caption': 'one', 'captions_bt': 'eins', 'second_caption': [['uno', 'un'], ['I']]},
        {'image': 'a.png', 'caption': ['two', 'three'], 'captions_bt': ['zwei', ''],
         'second_caption': ['dos', ['tres']]},
        {'image': 'b.png', 'caption': 'four', 'captions_bt': '', 'second_caption': 'cuatro'}]
EXPECTED = [['eins', 'zwei', '', ''], [[['uno', 'un'], ['I']], 'dos', ['tres'], 'cuatro']]


def write_table(folder, name, rows):
    for row in rows:
        Image.new('RGB', (8, 16)).save(folder / row['image'])
    rows = [{**row, 'id': row['image'], 'split': 'train'} for row in rows]
    if name.endswith('.csv'):
        import csv
        with open(folder / name, 'w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({key: json.dumps(value) if isinstance(value, list) else value
                              for key, value in row.items()} for row in rows)
    else:
        (folder / name).write_text('\n'.join(map(json.dumps, rows)))


@pytest.mark.parametrize('name', ['people.jsonl', 'people.csv'])
def test_columns_of_a_table(tmp_path, name):
    write_table(tmp_path, name, ROWS)
    dataset = build_dataset(name, str(tmp_path))
    assert [caption for *_, caption in dataset.train] == ['one', 'two', 'three', 'four']
    assert [list(dataset.side_texts(key)) for key in KEYS] == EXPECTED


def test_a_column_by_its_name(tmp_path):
    rows = [{'image': 'a.png', 'caption': 'one', 'machine': 'uno'}, {'image': 'a.png', 'caption': 'two', 'machine': ''}]
    write_table(tmp_path, 'people.csv', rows)
    dataset = build_dataset('people.csv', str(tmp_path), columns=['second_caption=machine'])
    assert list(dataset.side_texts('diversity_captions')) == ['uno', '']
    with pytest.raises(UserError, match="has no column 'machines', which --columns gives as its back_translation"):
        build_dataset('people.csv', str(tmp_path), columns=['back_translation=machines'])
    for dataset in ('CUHK-PEDES', 'CUHK-PEDES+RSTPReid'):
        sentence = f'--columns second_caption=x: it names the columns of a table, and {re.escape(dataset)} has'
        with pytest.raises(UserError, match=sentence):
            build_dataset(dataset, str(tmp_path), columns=['second_caption=x'])


@pytest.mark.parametrize('row, message', [
    ({'captions_bt': ['eins']}, "row 0 .* has 'captions_bt' that are no list of 1 texts"),
    ({'second_caption': [['uno', 2]]}, "has 'diversity_captions' whose element 1 holds an int instead of a text"),
    ({'caption': ['one', 'two']}, "has 'captions_bt' that are no list of 2 texts")])
def test_wrong_cells_are_named(tmp_path, row, message):
    write_table(tmp_path, 'people.jsonl', [{**ROWS[0], **row}])
    with pytest.raises(UserError, match=message):
        build_dataset('people.jsonl', str(tmp_path))


def test_aptms_lists(tmp_path):
    rows = [{'image': 'a.png', 'caption': 'one', 'image_id': 1, 'captions_bt': 'eins'},
            {'image': 'a.png', 'caption': 'two', 'image_id': 1, 'diversity_captions': [['dos', 'deux']]}]
    (tmp_path / 'finetune').mkdir()
    (tmp_path / 'finetune/cuhk_train.json').write_text(json.dumps(rows))
    (tmp_path / 'images/CUHK-PEDES').mkdir(parents=True)
    Image.new('RGB', (8, 16)).save(tmp_path / 'images/CUHK-PEDES/a.png')
    dataset = build_dataset('CUHK-PEDES', str(tmp_path), splits=('train',))
    assert [list(dataset.side_texts(key)) for key in KEYS] == [['eins', ''], ['', [['dos', 'deux']]]]
    rows[1]['diversity_captions'] = [[]]
    (tmp_path / 'finetune/cuhk_train.json').write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 1 .* has 'diversity_captions' whose element 1 has a sub-sentence without"):
        build_dataset('CUHK-PEDES', str(tmp_path), splits=('train',))


def test_select_and_join():
    one, other = SideTexts.from_values(['a', '', [['b']]]), SideTexts.from_values(['c'])
    joined = SideTexts.join([one.select([2, 0]), other])
    assert list(joined) == [[['b']], 'a', 'c'] and joined[-1] == 'c' and len(joined) == 3
    assert one.missing_count == 1 and one.select([1, 1]).missing_count == 2

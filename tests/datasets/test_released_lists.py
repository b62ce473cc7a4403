"""The annotation formats of APTM and TBPS-CLIP."""
import json
import logging

import pytest
from PIL import Image

from datasets import build_dataloader
from datasets.build import build_dataset
from datasets.released_lists import aptm_list_files, mals_list_files, read_aptm_list
from tests.support import options
from utils.errors import UserError


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return str(path)


def test_rows_of_one_image_are_one_entry(tmp_path):
    path = written(tmp_path / 'finetune' / 'cuhk_train.json', [
        {'image': 'CUHK01/1.png', 'caption': 'a man', 'image_id': 1},
        {'image': 'CUHK01/1.png', 'caption': 'a tall man', 'image_id': 1},
        {'image': 'CUHK01/2.png', 'caption': 'a woman', 'image_id': 2}])
    assert [(entry['id'], entry['captions'], entry['file_path']) for entry in read_aptm_list(path, 'train')] == [
        (1, ['a man', 'a tall man'], 'CUHK01/1.png'), (2, ['a woman'], 'CUHK01/2.png')]
    assert aptm_list_files(str(tmp_path), 'cuhk') == {'train': path}


def test_a_list_of_captions_and_names_instead_of_numbers(tmp_path):
    path = written(tmp_path / 'gene_attrs' / 'g_4x_attrs.json', [
        {'image': 'a.jpg', 'caption': ['one', 'two'], 'image_id': 'c_0_0', 'label': [1, 0, -1]},
        {'image': 'b.jpg', 'caption': 'three', 'image_id': 'c_0_1', 'label': [0, 0, 1]}])
    entries = read_aptm_list(path, 'train', label_count=3)
    assert [(entry['id'], entry['captions'], entry['label']) for entry in entries] == [
        (0, ['one', 'two'], [1, 0, -1]), (1, ['three'], [0, 0, 1])]
    assert mals_list_files(str(tmp_path)) == [path]


@pytest.mark.parametrize('one, other, people', [(7, '7', 1), (0, 'c_0', 2), ('Ann', 'ann', 2), ('7', '7.0', 2)])
def test_identities_that_are_written_in_two_ways(tmp_path, caplog, one, other, people):
    """Numbers and names never share a number. Identities that differ only in spelling are reported."""
    path = written(tmp_path / 'finetune' / 'cuhk_train.json', [
        {'image': f'{number}.png', 'caption': 'a man', 'image_id': pid} for number, pid in enumerate((one, other))])
    wrong = []
    for entries in (read_aptm_list(path, 'train'), read_aptm_list(path, 'train', problems=wrong)):
        assert len({entry['id'] for entry in entries}) == people
    differs = other != 'c_0'
    assert ('differ in spelling only' in caplog.text) == differs and len(wrong) == differs


def test_images_without_captions(tmp_path):
    path = written(tmp_path / 'PA100K_test.json', [{'image': '1.jpg', 'label': [1, 0]},
                                                   {'image': '2.jpg', 'label': [0, 0]}])
    assert [(entry['id'], entry['captions'], entry['label'])
            for entry in read_aptm_list(path, 'test', 2, has_captions=False)] == [
        (0, [''], [1, 0]), (1, [''], [0, 0])]


@pytest.mark.parametrize('row, message', [
    ({'caption': 'x', 'image_id': 1}, "row 1 .* has no 'image'"), ({'image': 'a', 'image_id': 1}, "has no 'caption'"),
    ({'image': 'a', 'caption': ' '}, "has no 'caption'"),
    ({'image': 'a', 'caption': 'x', 'image_id': [1]}, 'neither a number nor a name'),
    ({'image': 'a', 'caption': 'x', 'label': [1, 2]}, 'has the label 2: labels are 1, 0, or -1'),
    ({'image': 'a', 'caption': 'x', 'label': [1]}, 'no list of 2 numbers'),
    ({'image': 'a', 'caption': 'x'}, 'no list of 2 numbers')])
def test_wrong_rows_are_named(tmp_path, row, message):
    path = written(tmp_path / 'list.json', [{'image': 'ok', 'caption': 'ok', 'image_id': 0, 'label': [0, 1]}, row])
    with pytest.raises(UserError, match=message):
        read_aptm_list(path, 'train', label_count=2)


# -- TBPS-CLIP's -------------------------------------------------------------------------------------------------------

@pytest.fixture
def reid(tmp_path):
    """A function that writes the lists of a dataset, and its images, and returns the root."""
    def write(name='CUHK-PEDES', **rows):
        lists = {'train': [{'file_path': f'a/{i}.png', 'id': i // 2, 'captions': [f'man {i}', f'coat {i}'],
                            'captions_bt': [f'guy {i}', '']}
                           for i in range(4)],
                 'test': [{'file_path': f'b/{i}.png', 'id': 7 + i, 'captions': [f'woman {i}']} for i in range(3)],
                 **rows}
        for split, entries in lists.items():
            written(tmp_path / name / f'{split}_reid.json', entries)
            for entry in entries:
                image = tmp_path / name / 'imgs' / str(entry.get('file_path', 'x.png'))
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (16, 48)).save(image)
        return str(tmp_path)
    return write


@pytest.mark.parametrize('name', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
def test_tbps_clips_lists(reid, name):
    dataset = build_dataset(name, reid(name))
    assert [(pid, image, caption) for pid, image, _, caption in dataset.train] == [
        (i // 2, i, f'{what} {i}') for i in range(4) for what in ('man', 'coat')]
    assert dataset.test['image_pids'] == dataset.test['caption_pids'] == [7, 8, 9] and not dataset.val['captions']
    assert list(dataset.side_texts('captions_bt')) == [f'guy {i}' if what == 'man' else '' for i in range(4)
                                                       for what in ('man', 'coat')]


def test_tbps_clips_val_list_and_an_annotation_before_lists(reid, tmp_path, caplog):
    root = reid(val=[{'file_path': 'c/1.png', 'id': 5, 'captions': ['a boy']}])
    assert build_dataset('CUHK-PEDES', root).val['captions'] == ['a boy']
    entry = {'id': 1, 'captions': ['a man'], 'file_path': 'a/0.png'}
    written(tmp_path / 'CUHK-PEDES' / 'reid_raw.json',
            [{**entry, 'split': 'train'}, {**entry, 'id': 2, 'split': 'test'}])
    assert len(build_dataset('CUHK-PEDES', root).train) == 1
    with caplog.at_level(logging.INFO):
        build_dataloader(options(dataset_name='CUHK-PEDES', root_dir=root, preparation='tbps', txt_aug=True,
                                 batch_size=1, num_workers=0))
    assert "no caption has a back-translation ('captions_bt', which TBPS-CLIP's train_reid.json has)" in caplog.text


@pytest.mark.parametrize('row, message', [
    ({'id': 1, 'captions': ['x']}, "train_reid.json: entry 0 .* has no field 'file_path'"),
    ({'file_path': 'a.png', 'id': 1, 'captions': ['x', 'y'], 'captions_bt': ['z']},
     "has 'captions_bt' that are no list of 2 texts"),
    ({'file_path': 'a.png', 'id': 1, 'captions': ['x'], 'captions_bt': [1]},
     "has 'captions_bt' that are no list of 1 texts")])
def test_wrong_entries_of_tbps_clips_lists(reid, row, message):
    with pytest.raises(UserError, match=message):
        build_dataset('CUHK-PEDES', reid(train=[row]))


def test_a_wrong_list_is_named(reid, tmp_path):
    root = reid()
    written(tmp_path / 'CUHK-PEDES' / 'test_reid.json', {})
    with pytest.raises(UserError, match='test_reid.json must hold a list of rows like'):
        build_dataset('CUHK-PEDES', root)

"""APTM's annotation format."""
import json

import pytest

from datasets.released_lists import list_files, pretraining_lists, read_list
from utils.errors import UserError


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return str(path)


def test_rows_of_one_image_are_one_entry(tmp_path):
    path = written(tmp_path / 'finetune' / 'cuhk_train.json', [
        {'image': 'CUHK01/1.png', 'caption': 'a man', 'image_id': 1}, {'image': 'CUHK01/1.png', 'caption': 'a tall man', 'image_id': 1},
        {'image': 'CUHK01/2.png', 'caption': 'a woman', 'image_id': 2}])
    assert [(entry['id'], entry['captions'], entry['file_path']) for entry in read_list(path, 'train')] == [
        (1, ['a man', 'a tall man'], 'CUHK01/1.png'), (2, ['a woman'], 'CUHK01/2.png')]
    assert list_files(str(tmp_path), 'cuhk') == {'train': path}


def test_a_list_of_captions_and_names_instead_of_numbers(tmp_path):
    path = written(tmp_path / 'gene_attrs' / 'g_4x_attrs.json', [
        {'image': 'a.jpg', 'caption': ['one', 'two'], 'image_id': 'c_0_0', 'label': [1, 0, -1]},
        {'image': 'b.jpg', 'caption': 'three', 'image_id': 'c_0_1', 'label': [0, 0, 1]}])
    entries = read_list(path, 'train', count=3)
    assert [(entry['id'], entry['captions'], entry['label']) for entry in entries] == [
        (0, ['one', 'two'], [1, 0, -1]), (1, ['three'], [0, 0, 1])]
    assert pretraining_lists(str(tmp_path)) == [path]


def test_images_without_captions(tmp_path):
    path = written(tmp_path / 'PA100K_test.json', [{'image': '1.jpg', 'label': [1, 0]}, {'image': '2.jpg', 'label': [0, 0]}])
    assert [(entry['id'], entry['captions'], entry['label']) for entry in read_list(path, 'test', 2, captioned=False)] == [
        (0, [''], [1, 0]), (1, [''], [0, 0])]


@pytest.mark.parametrize('row, message', [
    ({'caption': 'x', 'image_id': 1}, "row 1 .* has no 'image'"), ({'image': 'a', 'image_id': 1}, "has no 'caption'"),
    ({'image': 'a', 'caption': ' '}, "has no 'caption'"), ({'image': 'a', 'caption': 'x', 'image_id': [1]}, 'neither a number nor a name'),
    ({'image': 'a', 'caption': 'x', 'label': [1, 2]}, 'has the label 2: labels are 1, 0, or -1'),
    ({'image': 'a', 'caption': 'x', 'label': [1]}, 'no list of 2 numbers'), ({'image': 'a', 'caption': 'x'}, 'no list of 2 numbers')])
def test_wrong_rows_are_named(tmp_path, row, message):
    path = written(tmp_path / 'list.json', [{'image': 'ok', 'caption': 'ok', 'image_id': 0, 'label': [0, 1]}, row])
    with pytest.raises(UserError, match=message):
        read_list(path, 'train', count=2)

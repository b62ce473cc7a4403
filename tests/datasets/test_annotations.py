import json
import logging
import os
import re

import pytest

from datasets.annotation_checks import missing_files
from datasets.build import build_dataset
from datasets.cuhkpedes import CUHKPEDES
from datasets.icfgpedes import ICFGPEDES
from datasets.registry import datasets as known_datasets
from datasets.samples import limit_training_samples, renumber_samples
from utils.errors import UserError

NAMES = ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid', 'synthpedes']
KEYS = {'CUHK-PEDES': 'file_path', 'ICFG-PEDES': 'file_path', 'RSTPReid': 'img_path', 'synthpedes': 'file_path'}


@pytest.mark.parametrize('name', NAMES)
def test_formats(make_dataset, tmp_path, name):
    entries = make_dataset(name)
    dataset = known_datasets()[name](root=str(tmp_path))
    train = [entry for entry in entries if entry['split'] == 'train']
    first = train[0]['id']
    assert first == (1 if name in ('CUHK-PEDES', 'synthpedes') else 0)
    assert dataset.train == [(entry['id'] - first, image_id, f'{tmp_path}/{name}/imgs/{entry[KEYS[name]]}', caption)
                             for image_id, entry in enumerate(train) for caption in entry['captions']]
    assert dataset.train_id_container == {0, 1, 2, 3}
    for split in ('val', 'test'):
        split_entries = [entry for entry in entries if entry['split'] == split]
        assert getattr(dataset, split) == {
            'image_pids': [entry['id'] for entry in split_entries],
            'img_paths': [f'{tmp_path}/{name}/imgs/{entry[KEYS[name]]}' for entry in split_entries],
            'caption_pids': [entry['id'] for entry in split_entries for _ in entry['captions']],
            'captions': [caption for entry in split_entries for caption in entry['captions']]}
        assert getattr(dataset, f'{split}_id_container') == {entry['id'] for entry in split_entries}


def test_icfg_has_no_val_split_and_two_names(make_dataset, tmp_path):
    make_dataset('ICFG-PEDES', {'train': 2, 'test': 1}, captions=1)
    os.rename(tmp_path / 'ICFG-PEDES/ICFG-PEDES.json', tmp_path / 'ICFG-PEDES/ICFG_PEDES.json')
    dataset = ICFGPEDES(str(tmp_path))
    assert dataset.val == {'image_pids': [], 'img_paths': [], 'caption_pids': [], 'captions': []}
    assert dataset.val_id_container == set() and len(dataset.train) == 4 and len(dataset.test['captions']) == 2


def test_statistics_are_logged_when_asked_for(make_dataset, tmp_path, caplog):
    make_dataset(captions=3)
    with caplog.at_level(logging.INFO, 'Pedestal.dataset'):
        CUHKPEDES(str(tmp_path), verbose=False)
        assert not caplog.text
        CUHKPEDES(str(tmp_path))
    lines = [line for line in caplog.text.splitlines() if line.startswith('|')]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert rows == [['split', 'identities', 'images', 'captions'],
                    ['train', '4', '8', '24'], ['val', '1', '2', '6'], ['test', '2', '4', '12']]


@pytest.mark.parametrize('spelling', ['{}', './{}', 'train//../{}'])
def test_an_image_that_is_listed_twice_is_said(make_dataset, tmp_path, caplog, spelling):
    def twice(entries):
        entries.append({**entries[0], 'file_path': spelling.format(entries[0]['file_path'])})
    make_dataset(change=twice)
    CUHKPEDES(str(tmp_path), verbose=False)
    sentence = '1 images are listed more than once, the first of them train/0001_0.jpg; each entry counts'
    assert sentence in caplog.text


def test_paths_of_windows_end_with_a_remedy(make_dataset, tmp_path):
    def windows(entries):
        for entry in entries:
            entry['file_path'] = entry['file_path'].replace('/', '\\')
    make_dataset(change=windows)
    with pytest.raises(UserError, match=r'they exist with / instead of \\: write the paths in .*reid_raw.json with /'):
        CUHKPEDES(str(tmp_path))


def test_a_list_of_captions_that_is_written_as_text(make_dataset, tmp_path):
    def text(entries):
        entries[0]['captions'] = [str(entries[0]['captions'])]
    make_dataset(change=text)
    with pytest.raises(UserError, match='entry 0 .* has a caption 1 that is a list written as one text'):
        CUHKPEDES(str(tmp_path))


# -- training identities -----------------------------------------------------------------------------------------------

def test_holes_are_closed_and_logged(make_dataset, tmp_path, caplog):
    def holes(entries):
        for entry in entries:
            entry['id'] = {1: 3, 2: 11, 3: 7, 4: 1}.get(entry['id'], 1000 + entry['id'])
    make_dataset(change=holes)
    with caplog.at_level(logging.INFO, 'Pedestal.dataset'):
        dataset = CUHKPEDES(str(tmp_path), verbose=False)
    assert [sample[0] for sample in dataset.train[::4]] == [1, 3, 2, 0]  # in the order of 3, 11, 7, 1
    assert dataset.train_id_container == {0, 1, 2, 3}
    assert set(dataset.test['image_pids']) == {1006, 1007}  # as annotated
    assert "labels its 4 identities 0 to 3, in the order of their numbers, which have gaps" in caplog.text


def test_whole_numbering_is_left_alone(caplog):
    samples = [(1, 0, 'a', 'x'), (0, 1, 'b', 'y')]
    with caplog.at_level(logging.INFO):
        assert renumber_samples(samples, 'here') == (samples, {0, 1})
    assert not caplog.text


def test_identity_in_two_splits_is_said(make_dataset, tmp_path, caplog):
    def share(entries):
        entries[-1]['id'] = 2
    make_dataset(change=share)
    dataset = CUHKPEDES(str(tmp_path), verbose=False)
    assert '1 identities are in more than one split, the first of them, 2, in train and test' in caplog.text
    assert dataset.test['image_pids'][-1] == 2


def test_first_captions(caplog):
    samples = [(pid, n, f'{n}.jpg', f'caption {n}') for n, pid in enumerate([5, 5, 0, 2, 1])]
    with caplog.at_level(logging.INFO):
        selected, pids = limit_training_samples(samples, 3, 'here')
    assert selected == [(1, 0, '0.jpg', 'caption 0'), (1, 1, '1.jpg', 'caption 1'), (0, 2, '2.jpg', 'caption 2')]
    assert pids == {0, 1}
    assert '--limit_train: the first 3 of 5 training captions' in caplog.text
    assert len(limit_training_samples(samples, 100, 'here')[0]) == 5


# -- what is missing ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', NAMES)
def test_no_folder(tmp_path, name):
    with pytest.raises(UserError) as caught:
        build_dataset(name, str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f'no dataset folder {tmp_path}/{name}: it should hold ')
    assert f'python -m datasets.synthpedes --out {tmp_path} --format {name}' in message


def test_no_annotation(make_dataset, tmp_path):
    make_dataset('ICFG-PEDES')
    os.remove(tmp_path / 'ICFG-PEDES/ICFG-PEDES.json')
    message = f'^no annotation {tmp_path}/ICFG-PEDES/ICFG-PEDES.json or .*/ICFG_PEDES.json: put it next to imgs/'
    with pytest.raises(UserError, match=message):
        ICFGPEDES(str(tmp_path))


def test_missing_images_are_counted_and_the_first_named(make_dataset, tmp_path):
    entries = make_dataset()
    paths = [f"{tmp_path}/CUHK-PEDES/imgs/{entry['file_path']}" for entry in entries]
    for path in paths[1:6]:
        os.remove(path)
    with pytest.raises(UserError) as caught:
        CUHKPEDES(str(tmp_path))
    assert str(caught.value) == (
        f"5 of 8 train images are missing, the first of them: {', '.join(paths[1:4])} "
        f'(python -m datasets.check --dataset_name CUHK-PEDES --root_dir {tmp_path} lists all); --skip_broken leaves '
        'them out')
    for path in paths:
        if os.path.exists(path):
            os.remove(path)
    folder = f'{tmp_path}/CUHK-PEDES'
    with pytest.raises(UserError, match=f'put the images below {folder}/imgs, or correct the paths in {folder}/reid_r'):
        CUHKPEDES(str(tmp_path))


def test_missing_training_images_may_be_left_out(make_dataset, tmp_path, caplog):
    entries = make_dataset()
    for entry in entries[:3]:  # both images of the first identity, one of the second
        os.remove(tmp_path / 'CUHK-PEDES/imgs' / entry['file_path'])
    dataset = CUHKPEDES(str(tmp_path), verbose=False, skip_broken=True)
    assert '3 of 8 train images are missing' in caplog.text and 'left out' in caplog.text
    assert [image_id for _, image_id, _, _ in dataset.train] == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert dataset.train_id_container == {0, 1, 2} and dataset.train[0][0] == 0
    assert len(dataset.train_annos) == 5


def test_only_the_splits_in_use_must_be_whole(make_dataset, tmp_path):
    entries = make_dataset()
    for entry in entries:
        if entry['split'] != 'test':
            os.remove(tmp_path / 'CUHK-PEDES/imgs' / entry['file_path'])
    assert CUHKPEDES(str(tmp_path), splits=('test',)).train_id_container == {0, 1, 2, 3}
    os.remove(tmp_path / 'CUHK-PEDES/imgs' / entries[-1]['file_path'])
    with pytest.raises(UserError, match='^1 of 4 test images are missing.*lists all\\)$'):
        CUHKPEDES(str(tmp_path), splits=('test',), skip_broken=True)  # an evaluation is never of a part


def test_missing_files(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x').write_text('')
    paths = [f'{tmp_path}/a/x', f'{tmp_path}/a/y', f'{tmp_path}/b/x', f'{tmp_path}/a/../a/x']
    assert missing_files(paths) == paths[1:3]


# -- what is wrong with the annotation ---------------------------------------------------------------------------------

@pytest.mark.parametrize('content, message', [
    ('{"id": 1', 'is not JSON'),
    ('{"id": 1}', 'must hold a list of entries, and holds a dict'),
    ('[]', 'holds no entries'),
])
def test_annotation_as_a_whole(make_dataset, tmp_path, content, message):
    make_dataset()
    path = tmp_path / 'CUHK-PEDES/reid_raw.json'
    path.write_text(content)
    with pytest.raises(UserError, match=f'^{path} {message}'):
        CUHKPEDES(str(tmp_path))


WRONG = [
    ('id', None, "has no field 'id'"),
    ('captions', None, "has no field 'captions'"),
    ('file_path', None, "has no field 'file_path'"),
    ('split', None, "has no field 'split'"),
    ('id', '7', "has a 'id' that is a str instead of an int"),
    ('id', True, "has a 'id' that is a bool instead of an int"),
    ('id', 1.0, "has a 'id' that is a float instead of an int"),
    ('id', -1, 'has the impossible id -1'),
    ('id', 10 ** 30, 'has the impossible id 1000'),
    ('split', 'tset', "has the unknown split 'tset'; did you mean test?"),
    ('split', 3, "has a 'split' that is an int instead of a str"),
    ('captions', 'one caption', "has a 'captions' that is a str instead of a list"),
    ('captions', [], 'has no captions'),
    ('captions', ['good', ' \n'], 'has an empty caption (number 2)'),
    ('captions', ['\u200b\u2060\ufeff'], 'has an empty caption (number 1)'),
    ('captions', ['\0\0'], 'has an empty caption (number 1)'),
    ('captions', ['\ufe0f \u034f'], 'has an empty caption (number 1)'),
    ('captions', ['&amp;nbsp; &#8203;'], 'has an empty caption (number 1)'),
    ('captions', ['a man\ud800'], 'has a caption with half of a character (a lone surrogate) (number 1)'),
    ('captions', ['x' * 2_000_000], 'has a caption of 2,000,000 characters, and at most 10,000 are read (number 1)'),
    ('file_path', 'a\udcff.jpg', "has an empty or impossible 'file_path'"),
    ('captions', ['good', 3], 'has a caption 2 that is an int instead of text'),
    ('file_path', '', "has an empty or impossible 'file_path'"),
    ('file_path', 'a\0b', "has an empty or impossible 'file_path'"),
    ('file_path', '/etc/passwd', "has a 'file_path' outside of imgs/: /etc/passwd"),
    ('file_path', 'a/../../b.jpg', "has a 'file_path' outside of imgs/: a/../../b.jpg"),
    ('file_path', ['a.jpg'], "has a 'file_path' that is a list instead of a str"),
]


@pytest.mark.parametrize('field, value, message', WRONG)
def test_wrong_entry_is_named(make_dataset, tmp_path, field, value, message):
    def damage(entries):
        entries[9][field] = value
        if value is None:
            del entries[9][field]
    make_dataset(change=damage)
    with pytest.raises(UserError) as caught:
        CUHKPEDES(str(tmp_path))
    assert str(caught.value).startswith(f'{tmp_path}/CUHK-PEDES/reid_raw.json: entry 9 (counted from 0) {message}')
    assert '\n' not in str(caught.value)


def test_captions_of_any_script_are_no_empty_ones(make_dataset, tmp_path):
    texts = ['男', 'é', '\u200dx', '!', '7', '🚶', '&lt;']
    make_dataset(change=lambda entries: [{**entry, 'captions': texts} for entry in entries])
    assert CUHKPEDES(str(tmp_path)).test['captions'] == texts * 4


@pytest.mark.parametrize('text', ['a man <|endoftext|> in red', 'A MAN IN <|MASK|>', '&lt;|startoftext|&gt; a man'])
def test_captions_that_hold_tokens_of_the_tokenizer_are_told(make_dataset, tmp_path, caplog, text):
    def change(entries):
        entries[3]['captions'] = ['a man', text]
    make_dataset(change=change)
    with caplog.at_level(logging.WARNING, 'Pedestal.dataset'):
        CUHKPEDES(str(tmp_path))
    message, = [record.getMessage() for record in caplog.records]
    path = f'{tmp_path}/CUHK-PEDES/reid_raw.json'
    assert re.fullmatch(rf'{path}: 1 captions hold <\|\w+\|> or the like as text, .* entry 3 .*', message)


def test_captions_with_brackets_are_not_told(make_dataset, tmp_path, caplog):
    make_dataset(change=lambda entries: [{**entry, 'captions': ['a <b> | man & <mask>']} for entry in entries])
    with caplog.at_level(logging.WARNING, 'Pedestal.dataset'):
        CUHKPEDES(str(tmp_path))
    assert not caplog.records


def test_equal_keys_are_an_error(make_dataset, tmp_path):
    make_dataset()
    path = tmp_path / 'CUHK-PEDES/reid_raw.json'
    path.write_text(path.read_text().replace('"split": "train"', '"split": "train", "split": "train"', 1))
    with pytest.raises(UserError, match=f"^{path} is not JSON: a mapping has the key 'split' more than once$"):
        CUHKPEDES(str(tmp_path))


def test_several_wrong_entries(make_dataset, tmp_path):
    entries = make_dataset(change=lambda entries: [None, 3] + entries[2:])
    assert entries[0] is None
    message = 'entry 0 .counted from 0. is a NoneType instead of a mapping .and 1 other entries are invalid.$'
    with pytest.raises(UserError, match=message):
        CUHKPEDES(str(tmp_path))


def test_names_with_two_dots_are_no_way_out(make_dataset, tmp_path):
    entries = make_dataset()
    folder = tmp_path / 'CUHK-PEDES'
    os.rename(folder / 'imgs' / entries[0]['file_path'], folder / 'imgs' / '..a.jpg')
    entries[0]['file_path'] = '..a.jpg'
    (folder / 'reid_raw.json').write_text(json.dumps(entries))
    assert CUHKPEDES(str(tmp_path)).train[0][2] == f'{folder}/imgs/..a.jpg'


def test_unknown_dataset():
    with pytest.raises(UserError, match='^unknown dataset .CUHKPEDES.; did you mean CUHK-PEDES.$'):
        build_dataset('CUHKPEDES', 'data')
    with pytest.raises(UserError, match='; own photos need a table .image, caption, id., such as --dataset_name'):
        build_dataset('photos', 'data')

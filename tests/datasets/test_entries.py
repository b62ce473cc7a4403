"""The cache of a large annotation: a second start reads the same as the first."""
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import annotation, array_cache, build_dataloader, entries
from datasets.annotation import BaseDataset
from datasets.annotation_checks import SPLITS
from datasets.build import get_attributes, build_dataset
from datasets.entries import Entries
from tests.support import options
from utils.errors import UserError


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 3)


def image(root, *path):
    os.makedirs(os.path.dirname(os.path.join(root, *path)), exist_ok=True)
    Image.new('RGB', (8, 16)).save(os.path.join(root, *path))


def write(root, path, rows):
    os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
    with open(os.path.join(root, path), 'w', encoding='utf-8') as file:
        json.dump(rows, file)


def make_mals(root):
    for stem, count in (('g_4x', 3), ('c_g_a', 2)):
        rows = [{'image': f'{stem}/{i}.jpg', 'caption': f'Grüße {stem} {i}', 'image_id': f'{stem}_{i}',
                 'label': [i % 2, -1] + [0] * 25}
                for i in range(count)]
        write(root, f'gene_attrs/{stem}_attrs.json', rows)
        for row in rows:
            image(root, 'images', 'MALS', row['image'])
    return 'gene_attrs'


def make_lists(root):
    rows = {'train': [{'image': f'{i // 2}.png', 'caption': f'text {i}', 'image_id': i // 2 + 1} for i in range(4)],
            'val': [{'image': '9.png', 'caption': ['one', 'two'], 'image_id': 9}],
            'test': [{'image': '8.png', 'caption': ['three'], 'image_id': 8}]}
    for split, of_split in rows.items():
        write(root, f'finetune/cuhk_{split}.json', of_split)
        for row in of_split:
            image(root, 'images', 'CUHK-PEDES', row['image'])
    return 'finetune'


def make_pa100k(root):
    for split in ('train', 'val', 'test'):
        write(root, f'finetune/PA100K_{split}.json',
              [{'image': f'{split}{i}.png', 'label': [i] * 26} for i in range(2)])
        for i in range(2):
            image(root, 'images', 'pa100k', f'{split}{i}.png')
    return 'finetune'


def make_table(root):
    rows = [{'image': f'{i}.png', 'caption': f'text {i}', 'id': f'Ann {i // 2}', 'camera': {'number': i}}
            for i in range(8)]
    write(root, 'people.json', rows)
    for row in rows:
        image(root, 'imgs', row['image'])
    return '.'


MADE = {'MALS': make_mals, 'CUHK-PEDES': make_lists, 'PA-100K': make_pa100k, 'people.json': make_table}


def content(dataset):
    labels = [dataset.attributes(split)[0].tolist() for split in SPLITS] if dataset.attributes('train') else None
    return (
        [list(dataset.train), dataset.val, dataset.test, dataset.format_counts(), labels,
         list(dataset.side_texts('captions_bt'))],
        [[*getattr(dataset, f'{split}_annos')] for split in SPLITS],
        [getattr(dataset, f'{split}_id_container') for split in SPLITS],
    )


@pytest.mark.parametrize('name', MADE)
def test_a_second_start_has_the_same_without_reading(tmp_path, monkeypatch, name):
    root = str(tmp_path)
    folder = os.path.join(root, MADE[name](root), 'listing_cache')
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 10 ** 6)
    plain = build_dataset(name, root)
    assert isinstance(plain.train, list) and isinstance(plain.train_annos, list) and not os.path.exists(folder)
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 3)
    first = build_dataset(name, root)
    assert [file.startswith(f'{name}_') for file in os.listdir(folder)] == [True]
    monkeypatch.setattr(BaseDataset, 'load_entries', None)    # reads
    second = build_dataset(name, root)
    assert isinstance(second.train_annos, Entries) and not isinstance(second.train, list)
    assert content(plain) == content(first) == content(second)
    assert second.train[1:] == plain.train[1:] and second.train[-1] == plain.train[-1]
    assert second.train_annos[-1] == plain.train_annos[-1]


@pytest.fixture
def annotated(make_dataset, tmp_path):
    """(annotation's path, cache folder) of a small CUHK-PEDES whose last entry has a training identity."""
    def share(entries):
        entries[-1]['id'] = 2
    make_dataset(change=share)
    return tmp_path / 'CUHK-PEDES/reid_raw.json', tmp_path / 'CUHK-PEDES/listing_cache'


def captions(path):
    dataset = build_dataset('CUHK-PEDES', str(path.parents[1]), verbose=False)
    return [caption for *_, caption in dataset.train]


def test_another_annotation_of_the_same_size_and_time_is_read(annotated, caplog):
    path, folder = annotated
    before, times = captions(path), os.stat(path)
    path.write_text(path.read_text().replace('red', 'tan'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert captions(path) == [caption.replace('red', 'tan') for caption in before] != before
    assert len(os.listdir(folder)) == 2 and 'can be deleted' in caplog.text


def test_what_was_said_is_said_again_of_where_the_annotation_is(annotated, caplog, tmp_path):
    path, _ = annotated
    captions(path)
    moved = tmp_path / 'elsewhere'
    moved.mkdir()
    os.rename(path.parent, moved / 'CUHK-PEDES')
    caplog.clear()
    captions(moved / 'CUHK-PEDES/reid_raw.json')
    sentence = '1 identities are in more than one split, the first of them, 2'
    assert f'{moved}/CUHK-PEDES/reid_raw.json: {sentence}' in caplog.text
    assert caplog.text.count('more than one split') == 1 and 'can be deleted' not in caplog.text


def test_a_damaged_one_is_made_anew(annotated, caplog):
    path, folder = annotated
    before = captions(path)
    os.truncate(folder / os.listdir(folder)[0] / 'train.captions_blob.npy', 30)
    assert captions(path) == before and 'is damaged' in caplog.text
    caplog.clear()
    assert captions(path) == before and 'is damaged' not in caplog.text


@pytest.mark.parametrize('array', ['train.ids', 'train.ends', 'test.paths_blob', 'train.captions_ends',
                                   'train.captions_digest'])
def test_a_flipped_bit_is_seen_in_each_array(annotated, caplog, array):
    path, folder = annotated
    before = captions(path)
    file = folder / os.listdir(folder)[0] / f'{array}.npy'
    content = bytearray(file.read_bytes())
    content[128] ^= 2
    file.write_bytes(content)
    assert captions(path) == before and caplog.text.count('is damaged') == 1


def test_other_checks_read_the_annotation_again(annotated, monkeypatch):
    """The cached annotation passed the checks of older code only."""
    path, folder = annotated
    captions(path)
    monkeypatch.setattr('datasets.entries.hash_file', lambda file: 'x' if file.endswith('annotation.py') else file)
    first = entries.annotation_key(annotation.BaseDataset, str(path))
    monkeypatch.setattr('datasets.entries.hash_file', lambda file: 'y' if file.endswith('annotation.py') else file)
    assert entries.annotation_key(annotation.BaseDataset, str(path)) != first


def test_a_folder_that_cannot_be_written_is_said_once_a_start(annotated, caplog):
    path, folder = annotated
    folder.touch()
    assert len(captions(path)) == 16
    assert caplog.text.count('computed at every start') == 1


def test_images_are_looked_for_at_every_start(annotated):
    path, _ = annotated
    captions(path)
    os.remove(path.parent / 'imgs/train/0001_0.jpg')
    with pytest.raises(UserError, match='1 of 8 train images are missing'):
        captions(path)
    dataset = build_dataset('CUHK-PEDES', str(path.parents[1]), skip_broken=True)
    assert [image_id for _, image_id, *_ in dataset.train] == [number for number in range(1, 8) for _ in range(2)]
    assert dataset.train[0][2:] == (f"{path.parent}/imgs/train/0001_1.jpg", dataset.train_annos[0]['captions'][0])
    assert len(dataset.train_annos) == 7 and dataset.train_annos[0]['file_path'] == 'train/0001_1.jpg'


def test_labels_of_the_images_that_are_there(tmp_path):
    root = str(tmp_path)
    make_mals(root)
    os.remove(tmp_path / 'images/MALS/g_4x/0.jpg')
    dataset = build_dataset('MALS', root, splits=('train',), skip_broken=True)
    labels, _ = get_attributes(options(), dataset, 'train', [dataset.train[-2]])
    assert dataset.train_annos[-2]['label'][0] == 1 and labels[:, 0].tolist() == [1]
    assert len(dataset.attributes('train')[0]) == 4


class Several(BaseDataset):
    """A dataset that does not declare its files."""
    name, annotations = 'Several', ('several.json',)

    @classmethod
    def read(cls, path):
        return [{'id': 0, 'split': 'train', 'captions': ['a'] * 5, 'file_path': '1.png', 'other': cls.other}]
    other = 1


def test_a_class_that_does_not_say_its_files_is_read_anew(tmp_path):
    image(str(tmp_path), 'Several/imgs/1.png')
    (tmp_path / 'Several/several.json').write_text('[]')
    assert len(Several(str(tmp_path)).train) == 5 and not (tmp_path / 'Several/listing_cache').exists()
    Several.files = classmethod(lambda cls, path: [path])
    try:
        assert Several(str(tmp_path)).train_annos[0]['other'] == 1 and (tmp_path / 'Several/listing_cache').exists()
        Several.other = 2       # another setting, another listing
        assert Several(str(tmp_path)).train_annos[0]['other'] == 2
    finally:
        del Several.files
        Several.other = 1


def test_an_entry_that_cannot_be_kept(tmp_path, caplog):
    image(str(tmp_path), 'Several/imgs/1.png')
    (tmp_path / 'Several/several.json').write_text('[]')

    class Odd(Several):
        files = classmethod(lambda cls, path: [path])

        @classmethod
        def read(cls, path):
            return [{**entry, 'other': {1, 2}} for entry in super().read(path)]
    Odd.name = 'Several'
    assert Odd(str(tmp_path)).train_annos[0]['other'] == {1, 2} and 'is read at every start' in caplog.text


def batch_of(args):
    loader = build_dataloader(args)[0]
    loader.batch_sampler.set_epoch(1, 0)
    return next(iter(loader))


@pytest.mark.parametrize('changes', [{}, {'noisy_rate': 0.5}, {'limit_train': 9},
                                     {'sampler': 'identity', 'num_instance': 2}])
def test_batches_are_those_of_a_start_without_it(annotated, tmp_path, monkeypatch, changes):
    args = options(dataset_name='CUHK-PEDES', root_dir=str(tmp_path), img_size=(32, 16), batch_size=4, num_workers=0,
                   training=True, **changes)
    cached = [batch_of(args) for _ in range(2)]
    monkeypatch.setattr(array_cache, 'MIN_CACHED_CAPTIONS', 10 ** 6)
    plain = batch_of(args)
    assert cached[0].keys() == plain.keys()
    assert all(torch.equal(batch[name], plain[name]) for batch in cached for name in plain)


def test_entries_by_place():
    from datasets.entries import entries_to_arrays
    dicts = [{'id': 4, 'split': 'val', 'captions': ['a', 'b'], 'f': 'x'},
             {'id': 2, 'split': 'val', 'captions': ['c'], 'f': 'y'}]
    entries = Entries(entries_to_arrays(dicts, 'f'), 'val', 'f')
    assert list(entries) == dicts and entries[-1] == dicts[1] and entries[:1] == dicts[:1] and len(entries) == 2
    part = entries.filter([False, True])
    assert list(part) == dicts[1:] and list(part.captions()) == ['c']
    assert list(part.paths('d')) == [os.path.join('d', 'y')]
    assert part.rows.tolist() == [1] and np.array_equal(part.counts, [1])
    with pytest.raises(IndexError):
        entries[2]

"""One's own dataset from a table: what is read, how it is divided, and what is refused."""
import csv
import json
import logging
import os

import pytest
from PIL import Image

from datasets.build import build_dataset
from datasets.check import main as check_main
from datasets.registry import dataset_class
from utils.errors import UserError
from utils.options import build_parser

ROWS = [{'image': f'{person}_{shot}.png', 'caption': f'person {person}, shot {shot}', 'id': person, 'split': split}
        for person, split in ((1, 'train'), (2, 'train'), (3, 'val'), (4, 'test')) for shot in range(2)]


def write(folder, name, rows, photos='imgs'):
    """A table of ``rows``, and a photo for each."""
    os.makedirs(folder / photos, exist_ok=True)
    for row in rows:
        Image.new('RGB', (8, 16)).save(folder / photos / next(iter(row.values())))
    path = folder / name
    if name.endswith('.json'):
        path.write_text(json.dumps(rows))
    elif name.endswith('.jsonl'):
        path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    else:
        with open(path, 'w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, rows[0], delimiter='\t' if name.endswith('.tsv') else ',')
            writer.writeheader()
            writer.writerows(rows)
    return str(folder)


def content(dataset):
    return dataset.train, dataset.val, dataset.test


@pytest.mark.parametrize('name', ['people.jsonl', 'people.csv', 'people.tsv', 'people.json'])
def test_the_forms_hold_the_same(tmp_path, name):
    root = write(tmp_path, name, ROWS)
    dataset = build_dataset(name, root)
    assert dataset.train == [(person - 1, 2 * (person - 1) + shot, os.path.join(root, 'imgs', f'{person}_{shot}.png'),
                              f'person {person}, shot {shot}') for person in (1, 2) for shot in range(2)]
    assert dataset.test['caption_pids'] == [4, 4] and dataset.val['captions'] == ['person 3, shot 0', 'person 3, shot 1']


def test_columns_by_their_names_and_rows_of_a_photo_together(tmp_path):
    rows = [{'picture': 'a.png', 'says': text, 'who': 'Ann', 'part': 'Training'} for text in ('one', 'two')]
    rows += [{'picture': 'b.png', 'says': 'three', 'who': 'Bob', 'part': 'dev'},
             {'picture': 'c.png', 'says': 'four', 'who': 'Cid', 'part': 'test'}]
    root = write(tmp_path, 'p.csv', rows, photos='')
    dataset = build_dataset('p.csv', root, columns=['image=picture', 'caption=says', 'id=who'])
    photo = os.path.join(root, 'a.png')
    assert dataset.train == [(0, 0, photo, 'one'), (0, 0, photo, 'two')]
    assert dataset.val_annos == [{'id': 1, 'captions': ['three'], 'file_path': 'b.png', 'split': 'val'}]


def test_identities_are_divided_by_the_seed_where_no_split_is_given(tmp_path, caplog):
    rows = [{'image': f'{person}_{shot}.png', 'text': 'somebody', 'pid': person} for person in range(20) for shot in range(2)]
    root = write(tmp_path, 'p.jsonl', rows)
    with caplog.at_level(logging.INFO):
        dataset = build_dataset('p.jsonl', root)
    assert 'its 20 identities are divided by --split_seed 1' in caplog.text and 'published splits' not in caplog.text
    ids = [{entry['id'] for entry in getattr(dataset, f'{split}_annos')} for split in ('train', 'val', 'test')]
    assert [len(of) for of in ids] == [14, 2, 4] and len(set.union(*ids)) == 20
    assert content(build_dataset('p.jsonl', root)) == content(dataset)
    assert content(build_dataset('p.jsonl', root, split_seed=2)) != content(dataset)


def test_ufine6926_is_recognised_by_its_name(tmp_path, caplog):
    for name in ('UFine6926', 'ufine', 'RSTPReid+UFine6926'):
        with pytest.raises(UserError, match='UFine6926 is read as a table: --root_dir .* --columns image=<column>'):
            dataset_class(name)
    rows = [{'photo': f'{person}.png', 'says': 'somebody', 'who': person} for person in range(4)]
    columns = ['image=photo', 'caption=says', 'id=who']
    root = write(tmp_path / 'UFine6926', 'all.json', rows)
    with pytest.raises(UserError, match="has no column 'image': say which it is with --columns image=<column>; its columns"):
        build_dataset('all.json', root)
    assert 'UFine6926 without its published splits' not in caplog.text
    assert len(build_dataset('all.json', root, columns=columns).test_annos) == 1
    assert 'is UFine6926 without its published splits' in caplog.text and '--columns split=<column>' in caplog.text
    caplog.clear()
    write(tmp_path / 'UFine6926', 'all.json', [{**row, 'part': part} for row, part in zip(rows, ('train', 'train', 'test', 'test'))])
    assert len(build_dataset('all.json', root, columns=columns).test_annos) == 2 and 'published' not in caplog.text


def test_cuhks_annotation_without_splits_is_told_apart(tmp_path, caplog):
    rows = [{'file_path': f'{person}.png', 'captions': ['a', 'b'], 'id': person} for person in range(4)]
    root = write(tmp_path, 'caption_all.json', rows)
    for row in rows:
        row['file_path'] = f'CUHK01/{row["file_path"]}'
    os.rename(tmp_path / 'imgs', tmp_path / 'CUHK01')
    (tmp_path / 'caption_all.json').write_text(json.dumps(rows))
    assert len(build_dataset('caption_all.json', root).train) == 4
    assert "CUHK-PEDES's annotation without its published splits" in caplog.text
    os.makedirs(tmp_path / 'CUHK-PEDES' / 'imgs')
    (tmp_path / 'CUHK-PEDES' / 'caption_all.json').write_text(json.dumps(rows))
    with pytest.raises(UserError, match='without splits: put reid_raw.json beside it'):
        build_dataset('CUHK-PEDES', root)


def test_the_check_counts_a_table(tmp_path, capsys):
    root = write(tmp_path, 'people.csv', ROWS)
    Image.new('RGB', (9, 16), 'red').save(tmp_path / 'imgs' / 'unlisted.png')
    for number, row in enumerate(ROWS):
        Image.new('RGB', (8, 16), (number, 0, 0)).save(tmp_path / 'imgs' / row['image'])
    assert check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1']) == 1
    told = capsys.readouterr().out
    assert 'not whole: 1 images that the annotation does not list' in told and '|   1 ' not in told.split('train')[0]
    os.remove(tmp_path / 'imgs' / 'unlisted.png')
    (tmp_path / 'synthpedes.json').write_text('{"counts": "of the annotation beside the table"}')
    assert check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1']) == 0


def changed(**changes):
    return [{**row, **changes} if number == 1 else row for number, row in enumerate(ROWS)]


def without(column):
    return [{name: value for name, value in row.items() if name != column} for row in ROWS]


@pytest.mark.parametrize('rows, columns, sentence', [
    (without('caption'), None, "no column 'caption': say which it is with --columns caption=<column>; its columns are image, id, split"),
    (ROWS, ['caption=txt'], "no column 'txt', which --columns gives as its caption.* its columns are image, caption, id, split"),
    (changed(caption=''), None, "row 1 .* has no 'caption'"),
    (changed(split='trian'), None, "row 1 .* unknown split 'trian'.*train"),
    (changed(image='1_0.png', id=7), None, 'row 1 .* gives 1_0.png another id than a row before it'),
    (changed(image='1_0.png', split='val'), None, 'row 1 .* gives 1_0.png another split than a row before it'),
    (changed(image='../x.png'), None, "entry 1 .*outside of imgs/"),
    (without('split')[:4], None, 'no splits and 2 identities; three are needed')])
@pytest.mark.parametrize('name', ['p.csv', 'p.jsonl'])
def test_what_is_refused(tmp_path, name, rows, columns, sentence):
    root = write(tmp_path, name, rows)
    with pytest.raises(UserError, match=sentence):
        build_dataset(name, root, columns=columns)


@pytest.mark.parametrize('name, text, sentence', [
    ('p.csv', '', 'p.csv has no rows'), ('p.csv', 'image,caption\na,b,c\n', 'row 0 .* not as many cells'),
    ('p.csv', 'image,caption\na\n', 'row 0 .* not as many cells'), ('p.csv', 'id,id\n1,2\n', "column 'id' more than once"),
    ('p.jsonl', '{"id": 1}\nno\n', 'line 2 is not JSON'), ('p.jsonl', '[1]\n', 'row 0 .*list instead of a mapping'),
    ('p.jsonl', '{"id": 1, "id": 2}\n', 'line 1 is not JSON.*more than once'), ('p.json', '{}', 'must hold a list'),
    ('p.csv', b'\xff\xfe', 'no table in UTF-8')])
def test_a_table_that_is_none(tmp_path, name, text, sentence):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=sentence):
        build_dataset(name, str(tmp_path))


def test_a_table_is_named_by_its_file(tmp_path):
    with pytest.raises(UserError, match='--root_dir /data --dataset_name p.csv'):
        build_dataset('/data/p.csv', str(tmp_path))
    with pytest.raises(UserError, match='no table .*none.json'):
        build_dataset('none.json', str(tmp_path))


def test_the_option_refuses_what_is_no_column():
    assert build_parser().parse(['--columns', 'image=a', 'id=b c']).columns == ['image=a', 'id=b c']
    for word in ('picture=a', 'image', 'image='):
        with pytest.raises(UserError, match='must be one of image=<column>'):
            build_parser().parse(['--columns', word])

"""A user's dataset from a table: reading, splitting, and errors."""
import csv
import io
import json
import logging
import os
import re
import shlex

import pytest
from PIL import Image

from datasets.build import build_dataset, build_evaluation_loaders
from datasets.check import main as check_main
from datasets.registry import dataset_class
from utils.errors import UserError
from utils.options import build_parser, get_args

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
    assert dataset.test['caption_pids'] == [4, 4]
    assert dataset.val['captions'] == ['person 3, shot 0', 'person 3, shot 1']


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
    rows = [{'image': f'{person}_{shot}.png', 'text': 'somebody', 'pid': person} for person in range(20)
            for shot in range(2)]
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
    with pytest.raises(UserError, match="has no column 'image': name it with --columns image=<column>; its columns"):
        build_dataset('all.json', root)
    assert 'UFine6926 without its published splits' not in caplog.text
    assert len(build_dataset('all.json', root, columns=columns).test_annos) == 1
    assert 'is UFine6926 without its published splits' in caplog.text and '--columns split=<column>' in caplog.text
    caplog.clear()
    parts = 'train', 'train', 'test', 'test'
    write(tmp_path / 'UFine6926', 'all.json', [{**row, 'part': part} for row, part in zip(rows, parts)])
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
    with pytest.raises(UserError, match='without splits: put reid_raw.json next to it'):
        build_dataset('CUHK-PEDES', root)


def test_the_check_counts_a_table(tmp_path, capsys):
    root = write(tmp_path, 'people.csv', ROWS)
    Image.new('RGB', (9, 16), 'red').save(tmp_path / 'imgs' / 'unlisted.png')
    for number, row in enumerate(ROWS):
        Image.new('RGB', (8, 16), (number, 0, 0)).save(tmp_path / 'imgs' / row['image'])
    assert check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1']) == 1
    output = capsys.readouterr().out
    assert 'incomplete: 1 images that the annotation does not list' in output
    assert '|   1 ' not in output.split('train')[0]
    os.remove(tmp_path / 'imgs' / 'unlisted.png')
    (tmp_path / 'synthpedes.json').write_text('{"counts": "of the annotation beside the table"}')
    assert check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1']) == 0


def test_the_check_does_not_list_the_table_among_skipped_files(tmp_path, capsys):
    root = write(tmp_path, 'people.csv', ROWS, photos='')
    (tmp_path / 'notes.txt').write_text('no image')
    check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1'])
    output = capsys.readouterr().out
    assert '1 file that Pillow does not read' in output and 'notes.txt' in output and f'{root}/people.csv' not in output


def changed(**changes):
    return [{**row, **changes} if number == 1 else row for number, row in enumerate(ROWS)]


def without(column):
    return [{name: value for name, value in row.items() if name != column} for row in ROWS]


@pytest.mark.parametrize('rows, columns, sentence', [
    (without('caption'), None,
     "no column 'caption': name it with --columns caption=<column>; its columns are image, id, split"),
    (ROWS, ['caption=txt'],
     "no column 'txt', which --columns gives as its caption.* its columns are image, caption, id, split"),
    (changed(caption=''), None, "row 1 .* has no 'caption'"),
    (changed(caption='[]', id=''), None, 'row 1 .* its caption: only photos of the splits val and test can lack one'),
    ([{**row, 'caption': ' '} for row in without('split')], None,
     'row 0 .* its caption: photos without captions need a column of splits that gives them val or test; or .*'
     '--distractors'),
    ([*ROWS[:-1], {**ROWS[-1], 'id': ''}], None, "row 7 .* has no 'id', its id"),
    (changed(split='trian'), None, "row 1 .* unknown split 'trian'.*train"),
    (changed(image='1_0.png', id=7), None, 'row 1 .* gives 1_0.png another id than a row before it'),
    (changed(image='1_0.png', split='val'), None, 'row 1 .* gives 1_0.png another split than a row before it'),
    (changed(image='../x.png'), None, "row 1 .* has a 'image' outside of .*/imgs: ../x.png"),
    (without('split')[:4], None, 'no splits and 2 identities; three are needed')])
@pytest.mark.parametrize('name', ['p.csv', 'p.jsonl'])
def test_what_is_refused(tmp_path, name, rows, columns, sentence):
    root = write(tmp_path, name, rows)
    with pytest.raises(UserError, match=sentence):
        build_dataset(name, root, columns=columns)


@pytest.mark.parametrize('name, text, sentence', [
    ('p.csv', '', 'p.csv has no rows'), ('p.csv', 'image,caption\na,b,c\n', 'row 0 .* not as many cells'),
    ('p.csv', 'image,caption\na\n', 'row 0 .* not as many cells'),
    ('p.csv', 'id,id\n1,2\n', "column 'id' more than once"),
    ('p.jsonl', '{"id": 1}\nno\n', 'line 2 is not JSON'), ('p.jsonl', '[1]\n', 'row 0 .*list instead of a mapping'),
    ('p.jsonl', '{"id": 1, "id": 2}\n', 'line 1 is not JSON.*more than once'), ('p.json', '{}', 'must hold a list'),
    ('p.csv', b'\xff\xfe', 'no table in UTF-8')])
def test_a_table_that_is_none(tmp_path, name, text, sentence):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=sentence):
        build_dataset(name, str(tmp_path))


STREET = [{'image': f'street_{shot}.png', 'caption': '', 'id': '', 'split': 'test'} for shot in range(3)]


@pytest.mark.parametrize('name, changes', [
    ('p.csv', {'caption': '', 'id': ''}), ('p.csv', {'caption': '[]', 'id': ' '}),
    ('p.csv', {'caption': ' ', 'id': '900'}), ('p.json', {'caption': None, 'id': None}),
    ('p.jsonl', {'caption': float('nan'), 'id': float('nan')}), ('p.jsonl', {'caption': [], 'id': 900})])
def test_photos_without_captions_are_in_the_gallery_only(tmp_path, caplog, capsys, name, changes):
    rows = [*ROWS[:6], *({**row, **changes} for row in STREET), *ROWS[6:], {**STREET[0], **changes, 'split': 'val',
                                                                           'image': 'val.png'}]
    root = write(tmp_path, name, rows)
    plain = build_dataset('plain.json', write(tmp_path, 'plain.json', ROWS))
    dataset, log = load_with_log(caplog, name, root)
    assert 'test: 3 images without captions in the gallery' in log
    assert dataset.train == plain.train and dataset.test_id_container == plain.test_id_container
    assert dataset.test['image_pids'] == [-1, -1, -1, 4, 4] and dataset.val['image_pids'] == [3, 3, -1]
    assert [os.path.basename(path) for path in dataset.test['img_paths'][:3]] == [row['image'] for row in STREET]
    for key in ('captions', 'caption_pids'):
        assert (dataset.test[key], dataset.val[key]) == (plain.test[key], plain.val[key])
    assert dataset.counts('test') == (1, 5, 2) and dataset.counts('train') == plain.counts('train')


def test_a_photo_without_a_caption_matches_captions_of_its_identity(tmp_path):
    rows = [*ROWS[:6], {**ROWS[6], 'caption': ''}, ROWS[7]]
    dataset = build_dataset('p.csv', write(tmp_path, 'p.csv', rows))
    assert (dataset.test['image_pids'], dataset.test['caption_pids']) == ([4, 4], [4])


def test_a_split_of_photos_without_captions_has_nothing_to_rank(tmp_path):
    dataset = build_dataset('p.csv', write(tmp_path, 'p.csv', [*ROWS[:6], *STREET]))
    with pytest.raises(UserError, match="p.csv has no captions in the split 'test'"):
        build_evaluation_loaders(None, None, dataset, 'test', 2, None)


def test_the_check_counts_photos_without_captions(tmp_path, capsys):
    rows = [*ROWS, *STREET, {**STREET[0], 'image': 'val.png', 'split': 'val'}]
    root = write(tmp_path, 'people.csv', rows)
    for number, row in enumerate(rows):
        Image.new('RGB', (8, 16), (number, 0, 0)).save(tmp_path / 'imgs' / row['image'])
    assert check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1']) == 0
    output = capsys.readouterr().out
    assert 'val: 1 images without captions in the gallery\ntest: 3 images without captions in the gallery' in output
    os.remove(tmp_path / 'imgs' / 'street_1.png')
    assert check_main(['--dataset_name', 'people.csv', '--root_dir', root, '--workers', '1']) == 1
    assert 'incomplete: 1 missing images' in capsys.readouterr().out


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='no table /data/p.csv'):
        build_dataset('/data/p.csv', str(tmp_path))
    with pytest.raises(UserError, match='no table .*none.json'):
        build_dataset('none.json', str(tmp_path))


def test_the_option_refuses_what_is_no_column():
    assert build_parser().parse(['--columns', 'image=a', 'id=b c']).columns == ['image=a', 'id=b c']
    for word in ('picture=a', 'image', 'image='):
        with pytest.raises(UserError, match='must be one of image=<column>'):
            build_parser().parse(['--columns', word])


# -- identities, captions and paths that are written in several ways -------------------------------------------------

def load_with_log(caplog, name, root, **settings):
    """A table's dataset, and its log."""
    caplog.clear()
    with caplog.at_level(logging.INFO, 'Pedestal.dataset'):
        dataset = build_dataset(name, root, **settings)
    return dataset, caplog.text


@pytest.mark.parametrize('one, other', [
    ('7', '7.0'), ('7', '007'), ('7', ' 7'), ('7', '\uff17'), ('Ann', 'ann'), ('Ann', 'Ann '), ('\u00e9', 'e\u0301'),
    ('7', '\u200b7')])
def test_identities_that_differ_in_writing_only_are_said(tmp_path, caplog, capsys, one, other):
    rows = [{**row, 'id': {1: one, 2: other}.get(row['id'], f'person {row["id"]}')} for row in ROWS]
    root = write(tmp_path, 'p.csv', rows)
    dataset, log = load_with_log(caplog, 'p.csv', root)
    sentence = f'the identities "{one}" and "{other}" differ in spelling only and count as 2 people'
    assert sentence in log and len(dataset.train_id_container) == 2        # neither joined nor split in silence
    assert check_main(['--dataset_name', 'p.csv', '--root_dir', root, '--workers', '1']) == 1
    assert sentence in capsys.readouterr().out


def test_numbers_that_are_equal_stay_two_people(tmp_path, caplog):
    """Even if all identities are digits: 7 and 007 are the same number."""
    rows = [{**row, 'id': {1: '7', 2: '007'}.get(row['id'], row['id'])} for row in ROWS]
    dataset, log = load_with_log(caplog, 'p.csv', write(tmp_path, 'p.csv', rows))
    assert len(dataset.train_id_container) == 2 and 'count as 2 people' in log


def test_a_number_and_its_text_are_one_person_and_said(tmp_path, caplog):
    rows = [{**row, 'id': str(row['id']) if number == 1 else row['id']} for number, row in enumerate(ROWS)]
    dataset, log = load_with_log(caplog, 'p.jsonl', write(tmp_path, 'p.jsonl', rows))
    assert len(dataset.train_id_container) == 2
    assert 'the identities 1 and "1" differ in spelling only and count as one person' in log


def test_identities_of_one_writing_say_nothing(tmp_path, caplog):
    for rows in (ROWS, [{**row, 'id': f'00{row["id"]}'} for row in ROWS]):
        assert 'differ in spelling' not in load_with_log(caplog, 'p.csv', write(tmp_path, 'p.csv', rows))[1]


@pytest.mark.parametrize('junk', ['-1', '-1.0', ' -1'])
def test_junk_is_nobody(tmp_path, caplog, capsys, junk):
    rows = [*ROWS, {**ROWS[0], 'image': 'junk.png', 'id': junk}]
    dataset, log = load_with_log(caplog, 'p.csv', write(tmp_path, 'p.csv', rows))
    sentence = "1 rows have -1 in the column 'id', which means that an image shows nobody: they are skipped"
    assert sentence in log and len(dataset.train) == 4
    check_main(['--dataset_name', 'p.csv', '--root_dir', str(tmp_path), '--workers', '1'])
    assert sentence in capsys.readouterr().out
    with pytest.raises(UserError, match="every row has -1 in the column 'id'"):
        build_dataset('q.csv', write(tmp_path, 'q.csv', [{**row, 'id': junk} for row in ROWS]))


@pytest.mark.parametrize('text', ["['one', 'two']", '["one", "two"]', '''["one", 'two']''', " ['one', 'two',] "])
@pytest.mark.parametrize('name', ['p.csv', 'p.json'])
def test_a_list_that_is_written_as_text_is_a_list(tmp_path, caplog, name, text):
    dataset, log = load_with_log(caplog, name, write(tmp_path, name, changed(caption=text)))
    assert dataset.train_annos[1]['captions'] == ['one', 'two']
    assert 'the captions of 1 rows are lists written as text' in log


@pytest.mark.parametrize('text', ["['one' 'two']", '["one", 2]', "['one', two]"])
def test_a_list_that_nobody_can_read_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="row 1 .* a list as text that is neither JSON nor Python in its column"):
        build_dataset('p.csv', write(tmp_path, 'p.csv', changed(caption=text)))


def test_brackets_are_no_list(tmp_path):
    dataset = build_dataset('p.csv', write(tmp_path, 'p.csv', changed(caption='[a man] in [red]')))
    assert dataset.train_annos[1]['captions'] == ['[a man] in [red]']


@pytest.mark.parametrize('spelling', ['./1_0.png', './/1_0.png', 'x/../1_0.png', '.\\1_0.png'])
def test_a_photo_under_two_spellings_is_one_photo(tmp_path, spelling):
    write(tmp_path, 'p.csv', ROWS)
    root = str(tmp_path)
    with open(tmp_path / 'p.csv', 'a', newline='') as file:
        csv.writer(file).writerow([spelling, 'once more', 1, 'train'])
    dataset = build_dataset('p.csv', root)
    assert [len(entry['captions']) for entry in dataset.train_annos] == [2, 1, 1, 1]


def test_paths_of_windows_and_absolute_paths(tmp_path):
    root, people = tmp_path / 'data', [{**row, 'image': f'camera1/{row["image"]}'} for row in ROWS]
    write(root, 'plain.csv', ROWS, photos='imgs/camera1')
    paths = {'windows.csv': lambda path: path.replace('/', '\\'),
             'absolute.csv': lambda path: os.path.join(str(root), 'imgs', path)}
    for name, spell in paths.items():
        with open(root / name, 'w', newline='') as file:
            writer = csv.DictWriter(file, people[0])
            writer.writeheader()
            writer.writerows({**row, 'image': spell(row['image'])} for row in people)
        assert build_dataset(name, str(root)).train[0][2] == os.path.join(str(root), 'imgs', 'camera1', '1_0.png')


@pytest.mark.parametrize('path', ['/elsewhere/1.png', 'C:\\photos\\1.png'])
def test_absolute_paths_elsewhere_name_the_column_and_the_folder(tmp_path, path):
    root = write(tmp_path, 'p.csv', ROWS)
    (tmp_path / 'p.csv').write_text(f'pic,caption,id\n{path},a man,1\n')
    sentence = f"row 0 .*has an absolute path in its column 'pic': .*1.png; images are below {root}/imgs"
    with pytest.raises(UserError, match=sentence):
        build_dataset('p.csv', root, columns=['image=pic'])


def test_the_command_in_a_message_lists_all(tmp_path, capsys):
    """It has the folder, the columns and the seed that the user gave."""
    rows = [{'pic': row['image'], 'text': row['caption'], 'who': row['id']} for row in ROWS]
    root = write(tmp_path / 'my data', 'p.csv', rows, photos='')
    for row in rows:
        os.remove(os.path.join(root, row['pic']))
    with pytest.raises(UserError) as error:
        build_dataset('p.csv', root, columns=['image=pic', 'id=who'], split_seed=3)
    command, = re.findall(r'\(python -m datasets\.check (.*) lists all\)', str(error.value))
    words = shlex.split(command)
    assert words == ['--dataset_name', 'p.csv', '--root_dir', root, '--columns', 'image=pic', 'id=who',
                     '--split_seed', '3']
    assert check_main(words) == 1 and f'missing images ({len(rows)})' in capsys.readouterr().out


def test_a_file_with_a_backslash_in_its_name_is_found(tmp_path):
    rows = [{**row, 'image': row['image'].replace('_', '\\')} for row in ROWS]
    assert len(build_dataset('p.csv', write(tmp_path, 'p.csv', rows)).train) == 4


# -- how a table's file is written -----------------------------------------------------------------------------------

def as_text(delimiter, quoting=csv.QUOTE_MINIMAL):
    lines = io.StringIO()
    writer = csv.DictWriter(lines, ROWS[0], delimiter=delimiter, quoting=quoting)
    writer.writeheader()
    writer.writerows(ROWS)
    return lines.getvalue()


@pytest.mark.parametrize('name, text', [
    ('p.csv', as_text(';')), ('p.csv', as_text('\t')), ('p.csv', as_text('|')), ('p.tsv', as_text(',')),
    ('p.tsv', as_text(';')), ('p.csv', f'sep=;\r\n{as_text(";")}'), ('p.csv', as_text(';', csv.QUOTE_ALL)),
    ('p.csv', '\ufeff' + as_text(';'))])
def test_other_delimiters_are_seen_in_the_header(tmp_path, name, text):
    root = write(tmp_path, 'plain.csv', ROWS)
    (tmp_path / name).write_text(text, encoding='utf-8', newline='')
    assert content(build_dataset(name, root)) == content(build_dataset('plain.csv', root))


HEADER = 'image,caption,id,split\n'


@pytest.mark.parametrize('lines, sentence', [
    (['1_0.png,"person 1,1,train', '1_1.png,person 1,1,train', '2_0.png,person 2",2,train'],
     'lines 2 to 4.* a quote mark is not closed'),
    (['1_0.png,"a, b,1,train', '2_0.png,person 2",2,train'], 'lines 2 to 3.* a quote mark is not closed'),
    (['1_0.png,"person 1,1,train', '1_1.png,"person 1",1,train'], 'line 3 .*a quote mark is not closed'),
    (['1_0.png,"person 1,1,train', '1_1.png,person 1,1,train'], 'line 3 .*a quote mark is not closed'),
    (['1_0.png,"person 1,1,train', '1_1.png,person 1",red,1,train'],
     'lines 2 to 3.*5 and 4.; a quote mark may not be closed'),
    (['1_0.png,"a 5" bag",1,train'], 'line 2 .*not doubled')])
def test_a_quote_mark_that_is_not_closed(tmp_path, lines, sentence):
    root = write(tmp_path, 'plain.csv', ROWS)
    (tmp_path / 'p.csv').write_text(HEADER + '\n'.join(lines) + '\n')
    with pytest.raises(UserError, match=sentence):
        build_dataset('p.csv', root)


def test_a_caption_over_two_lines(tmp_path):
    text = 'A man, tall,\nwith a "5"" bag'
    assert build_dataset('p.csv', write(tmp_path, 'p.csv', changed(caption=text))).train_annos[1]['captions'] == [text]


@pytest.mark.parametrize('encoding, name', [('gb18030', 'GB18030'), ('utf-16', 'UTF-16'), ('cp1252', 'CP1252')])
@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'json'])
def test_other_encodings_end_with_a_remedy(tmp_path, encoding, name, ending):
    word = '\u4e00\u4e2a\u7a7f\u7ea2\u8272\u5916\u5957\u7684\u7537\u4eba' if name == 'GB18030' else 'caf\u00e9 man'
    rows = {'csv': f'image,caption,id\na.png,{word},1\n', 'jsonl': f'{{"caption": "{word}"}}',
            'json': f'[{{"caption": "{word}"}}]'}
    (tmp_path / f'p.{ending}').write_bytes(rows[ending].encode(encoding))
    sentence = f'p.{ending} is no table in UTF-8 .*save it as "CSV UTF-8".*iconv -f {name} -t UTF-8 '
    with pytest.raises(UserError, match=sentence):
        build_dataset(f'p.{ending}', str(tmp_path))


# -- where the table is ----------------------------------------------------------------------------------------------

def test_a_path_says_where_the_table_is(tmp_path, monkeypatch, capsys):
    root = write(tmp_path / 'elsewhere', 'p.csv', ROWS)
    assert content(build_dataset(os.path.join(root, 'p.csv'), 'data')) == content(build_dataset('p.csv', root))
    args = get_args(['--dataset_name', os.path.join(root, 'p.csv'), '--root_dir', 'data'])
    assert (args.dataset_name, args.root_dir) == ('p.csv', root)
    monkeypatch.chdir(tmp_path)
    args = get_args(['--dataset_name', 'elsewhere/p.csv'])
    assert (args.dataset_name, args.root_dir) == ('p.csv', 'elsewhere')
    assert get_args(['--dataset_name', 'elsewhere/p.csv', '--root_dir', str(tmp_path)]).root_dir == 'elsewhere'
    monkeypatch.chdir(root)
    args = get_args(['--dataset_name', 'elsewhere/p.csv', '--root_dir', str(tmp_path)])
    assert args.root_dir == str(tmp_path / 'elsewhere')
    check_main(['--dataset_name', os.path.join(root, 'p.csv'), '--workers', '1'])
    assert f'{root}: ' in capsys.readouterr().out


def test_tables_that_are_joined_lie_in_one_folder(tmp_path):
    with pytest.raises(UserError, match='tables that are joined with \\+ must be in one folder; give --root_dir /data'):
        build_dataset('CUHK-PEDES+/data/p.csv', str(tmp_path))

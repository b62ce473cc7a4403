import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from datasets.build import build_dataset
from datasets.check import check, compare_counts, main
from datasets.registry import datasets
from tests.several import run_forked
from utils.errors import UserError
from utils.images import find_images

WRONG = 'counts that differ'  # of a tiny dataset under a published name


@pytest.fixture
def folder(make_dataset, tmp_path):
    """A complete synthetic folder, and its entries."""
    entries = make_dataset('synthpedes')
    counts = {'train': (4, 8, 16), 'val': (1, 2, 4), 'test': (2, 4, 8)}
    mark = {'counts': {split: dict(zip(('ids', 'images', 'captions'), count)) for split, count in counts.items()}}
    (tmp_path / 'synthpedes' / 'synthpedes.json').write_text(json.dumps(mark))
    return tmp_path / 'synthpedes', entries


def annotate(folder, entries):
    (folder / 'reid_raw.json').write_text(json.dumps(entries))


def problems(folder, name='synthpedes'):
    return check(name, str(folder.parent), workers=2)[1]


def run_main(folder, capsys, name='synthpedes'):
    status = main(['--dataset_name', name, '--root_dir', str(folder.parent), '--workers', '2'])
    return status, capsys.readouterr().out


def test_published_numbers_are_those_of_the_papers():
    """Totals and identities as the datasets' papers give them."""
    totals = {name: [sum(numbers) for numbers in zip(*cls.published.values())]
              for name, cls in datasets().items() if 'train' in cls.published}
    assert totals == {'CUHK-PEDES': [13003, 40206, 80440], 'ICFG-PEDES': [4102, 54522, 54522],
                      'RSTPReid': [4101, 20505, 41010], 'MALS': [1510330] * 3, 'PA-100K': [100000] * 3}


def test_whole(folder, capsys):
    status, out = run_main(folder[0], capsys)
    assert status == 0 and out.endswith(f'{folder[0]}: complete\n')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in out.splitlines() if line.startswith('|')]
    assert rows[1:] == [
        ['train', '4 ok', '8 ok', '16 ok'], ['val', '1 ok', '2 ok', '4 ok'], ['test', '2 ok', '4 ok', '8 ok']]


def test_counts_are_compared_with_the_published_ones(make_dataset, tmp_path, capsys):
    make_dataset('RSTPReid')
    status, out = run_main(tmp_path / 'RSTPReid', capsys, 'RSTPReid')
    assert status == 1 and '4 differs: 3701' in out and '  train: 4 identities, published 3701' in out
    assert out.endswith(f'{tmp_path}/RSTPReid: incomplete: 9 counts that differ\n')


def test_counts_of_a_synthetic_folder_in_a_published_format(make_dataset, tmp_path, folder):
    make_dataset('CUHK-PEDES')
    shutil.copy(folder[0] / 'synthpedes.json', tmp_path / 'CUHK-PEDES')
    assert problems(tmp_path / 'CUHK-PEDES', 'CUHK-PEDES') == {}


def test_synthetic_counts_that_differ(folder):
    annotate(folder[0], folder[1][:-1])
    assert problems(folder[0])[WRONG] == ['test: 3 images, synthpedes.json 4', 'test: 6 captions, synthpedes.json 8']


def test_folder_without_known_counts(folder):
    os.remove(folder[0] / 'synthpedes.json')
    table, result = check('synthpedes', str(folder[0].parent), 1)
    assert result == {} and 'ok' not in table


def test_captions_that_hold_tokens_of_the_tokenizer(folder):
    entries = folder[1]
    entries[2]['captions'][0] = 'a man <|endoftext|> in red'
    (folder[0] / 'reid_raw.json').write_text(json.dumps(entries))
    assert problems(folder[0]) == {
        "captions that hold the tokenizer's own tokens as text": [f"{entries[2]['file_path']}: <|endoftext|>"]}


def test_a_pipe_in_the_place_of_an_image(folder):
    path = folder[0] / 'imgs' / folder[1][0]['file_path']
    path.unlink()
    os.mkfifo(path)
    assert problems(folder[0]) == {
        'broken images': [f'{path} is not a regular file (but a pipe, a socket or a device)']}


def test_names_that_are_no_text_are_printed(folder, tmp_path):
    name = os.fsencode(folder[0]) + b'/imgs/a\xff.jpg'
    open(name, 'w').close()
    status, output, errors = run_forked(main, ['--dataset_name', 'synthpedes', '--root_dir', str(folder[0].parent)],
                                        tmp_path, 'check.py')
    assert status == 1 and 'a\\udcff.jpg' in output and not errors.count('Traceback')


@pytest.mark.parametrize('content', ['{}', '[]', '3', '{"counts": []}', '{"counts": {"train": 3, "val": 3, "test": 3}}',
                                     json.dumps({'counts': dict.fromkeys(('train', 'val', 'test'),
                                                                         dict(ids='a', images=[], captions=1))})])
def test_synthpedes_json_that_is_not_ours(folder, content):
    (folder[0] / 'synthpedes.json').write_text(content)
    with pytest.raises(UserError, match='synthpedes.json does not hold the counts'):
        problems(folder[0])


def test_compare():
    counts = {'train': (1, 2, 3), 'val': (0, 0, 0), 'test': (4, 5, 6)}
    table, differences = compare_counts(counts, {'train': (1, 2, 4), 'test': (4, 5, 6)}, 'published')
    assert differences == ['train: 3 captions, published 4']
    assert '3 differs: 4' in table and '5 ok' in table and '0 ok' not in table


def test_all_missing_and_broken_images_are_listed(folder):
    path, entries = folder
    paths = [str(path / 'imgs' / entry['file_path']) for entry in entries]
    for gone in paths[:5]:
        os.remove(gone)
    with open(paths[6], 'r+b') as file:
        file.truncate(150)
    with open(paths[13], 'w') as file:
        file.write('no image')
    for folder_instead in (paths[8], paths[9]):  # unreadable files do not count as identical
        os.remove(folder_instead)
        os.mkdir(folder_instead)
    result = problems(path)
    assert sorted(result) == ['broken images', 'missing images']
    assert result['missing images'] == paths[:5]
    assert len(result['broken images']) == 4
    for line, broken in zip(result['broken images'], (paths[6], paths[8], paths[9], paths[13])):
        assert broken in line


def test_duplicates(folder):
    path, entries = folder
    paths = [str(path / 'imgs' / entry['file_path']) for entry in entries]
    shutil.copy(paths[0], paths[13])
    shutil.copy(paths[0], paths[5])
    entries[3]['file_path'] = './/' + entries[2]['file_path']  # the same file by another name
    annotate(path, entries)
    result = problems(path)
    assert result == {'images listed more than once': [f'{paths[2]}: 2 times'],
                     'images with the same bytes': [f'{paths[0]} = {paths[5]} = {paths[13]}'],
                     'images that the annotation does not list': [paths[3]]}


def test_unlisted(folder):
    path, entries = folder
    source = path / 'imgs' / entries[0]['file_path']
    (path / 'imgs' / 'more').mkdir()
    for name in ('more/x.jpg', 'more/y.PNG', 'top.jpeg', '.hidden.jpg', 'more/named otherwise.txt'):
        shutil.copy(source, path / 'imgs' / name)
    for name in ('Thumbs.db', 'more/notes.txt'):
        (path / 'imgs' / name).write_text('no image')
    result = problems(path)
    assert sorted(result['images that the annotation does not list']) == \
        [f'{path}/imgs/{name}' for name in ('more/named otherwise.txt', 'more/x.jpg', 'more/y.PNG', 'top.jpeg')]
    assert result['files below the images that are skipped'] == [
        f'1 hidden image file ({path}/imgs/.hidden.jpg)',
        '2 files that Pillow does not read as an image '
        f'(1 .db, 1 .txt; {path}/imgs/Thumbs.db, {path}/imgs/more/notes.txt)']


def test_images_whose_pixels_are_converted_are_named_and_those_that_cannot_be_are_broken(folder, capsys):
    path, entries = folder
    turned, deep, several = [path / 'imgs' / entry['file_path'] for entry in entries[:3]]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(turned).save(turned, exif=exif)
    status, out = run_main(path, capsys)
    assert status == 0
    assert f'images that are converted when they are read (1):\n  {turned}: EXIF orientation 6 is applied\n' in out
    Image.new('F', (4, 8)).save(deep, format='tiff')
    Image.new('RGB', (4, 8)).save(several, format='gif', save_all=True, append_images=[Image.new('RGB', (4, 8), 'red')])
    result = problems(path)['broken images']
    assert len(result) == 2 and f'{deep} cannot be read: it holds floating-point' in result[0]
    assert f'{several} cannot be' in result[1]


def test_folders_that_cannot_be_listed_are_named(folder, monkeypatch):
    path, scandir = folder[0], os.scandir
    (path / 'imgs' / 'closed').mkdir()

    def refuse(path='.'):
        if os.fspath(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)
    monkeypatch.setattr(os, 'scandir', refuse)
    assert problems(path) == {
        'folders that cannot be listed': [f'{path}/imgs/closed cannot be read: Permission denied']}


def test_links_are_followed_and_never_in_circles(folder, tmp_path):
    path = folder[0]
    os.rename(path / 'imgs' / 'train', tmp_path / 'elsewhere')
    os.symlink(tmp_path / 'elsewhere', path / 'imgs' / 'train')
    os.symlink(path / 'imgs', tmp_path / 'elsewhere' / 'circle')
    assert problems(path) == {}
    assert len(find_images(str(path / 'imgs'))[0]) == 14


def test_identities_in_several_splits(folder):
    path, entries = folder
    entries[-1]['id'] = entries[0]['id']
    annotate(path, entries)
    assert problems(path)['identities in several splits'] == ['1: train, test']


def test_all_wrong_entries_are_listed_and_the_others_still_checked(folder):
    path, entries = folder
    del entries[0]['captions']
    entries[1]['split'] = 'trian'
    entries[2] = 'text'
    entries[3]['file_path'] = '../../etc/passwd'
    os.remove(path / 'imgs' / entries[5]['file_path'])
    annotate(path, entries)
    result = problems(path)
    assert [line.split(' (')[0] for line in result['annotation']] == [f'entry {n}' for n in range(4)]
    assert result['missing images'] == [str(path / 'imgs' / entries[5]['file_path'])]
    assert 'train: 4 images, synthpedes.json 8' in result[WRONG]
    assert len(result['images that the annotation does not list']) == 4


def test_everything_is_in_the_output(folder, capsys):
    path, entries = folder
    for entry in entries[:6]:
        os.remove(path / 'imgs' / entry['file_path'])
    status, out = run_main(path, capsys)
    assert status == 1 and out.endswith(f'{path}: incomplete: 6 missing images\n')
    assert all(f"  {path}/imgs/{entry['file_path']}\n" in out for entry in entries[:6])


@pytest.mark.parametrize('argv, message', [
    (['--root_dir', 'nowhere'], 'no dataset folder nowhere/CUHK-PEDES'),
    (['--dataset_name', 'CUHK'], "unknown dataset 'CUHK'; did you mean CUHK-PEDES?"),
    (['--workers', '0'], '--workers must be from 1 to 1024, not 0'),
    (['--workers', '99999999999'], '--workers must be from 1 to 1024, not 99999999999'),
])
def test_what_cannot_be_checked(argv, message):
    with pytest.raises(UserError) as caught:
        main(argv)
    assert str(caught.value).startswith(message)


def test_annotation_that_cannot_be_read(folder):
    (folder[0] / 'reid_raw.json').write_text('[')
    with pytest.raises(UserError, match='is not JSON'):
        problems(folder[0])


def test_as_a_program(folder, tmp_path):
    words = ['--root_dir', str(folder[0].parent), '--dataset_name']
    done = subprocess.run([sys.executable, '-m', 'datasets.check', *words, 'synthpedes'], capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stdout.endswith(': complete\n') and not done.stderr
    status, _, errors = run_forked(main, [*words, 'RSTPReid'], tmp_path, 'check.py')
    assert status == 2 and 'error: no dataset folder' in errors and 'Traceback' not in errors


# -- APTM's lists ------------------------------------------------------------------------------------------------------

def lists(tmp_path, rows, name='MALS'):
    """A list of one of APTM's datasets, and an image for each row that names one."""
    path, images = {'MALS': ('gene_attrs/g_4x_attrs.json', 'images/MALS'),
                    'PA-100K': ('finetune/PA100K_test.json', 'images/pa100k/release_data')}[name]
    for number, row in enumerate(rows):
        if isinstance(row, dict) and '.' in row.get('image', ''):
            os.makedirs(tmp_path / images, exist_ok=True)
            Image.new('RGB', (8, 16), (number, 0, 0)).save(tmp_path / images / row['image'])
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(json.dumps(rows))
    return tmp_path / path


def found_in(tmp_path, name):
    _, problems = check(name, str(tmp_path), workers=1)
    return {kind: lines for kind, lines in problems.items() if kind != 'counts that differ'}


def test_images_of_pa100k_need_no_captions(tmp_path):
    lists(tmp_path, [{'image': f'{i}.png', 'label': [i] * 26} for i in range(2)], 'PA-100K')
    assert found_in(tmp_path, 'PA-100K') == {}


@pytest.mark.parametrize('label, message', [([1] * 25 + [2], 'has the label 2: labels are 1, 0, or -1 for unknown'),
                                         ([1] * 25 + ['1'], "has the label '1'"),
                                         ([1] * 25 + [[1]], r'has the label \[1\]'),
                                         ([1] * 25 + [True], 'has the label True'),
                                         (None, "has a 'label' that is no list of 26 numbers"),
                                         ([1] * 25, 'no list of 26 numbers')])
def test_labels_of_pa100k(tmp_path, label, message):
    path = lists(tmp_path, [{'image': '0.png', 'label': [0] * 26}, {'image': '1.png', 'label': label}], 'PA-100K')
    line, = found_in(tmp_path, 'PA-100K')['annotation']
    assert re.match(f'{re.escape(str(path))}: row 1 .counted from 0. .*{message}', line)
    with pytest.raises(UserError, match=message):
        build_dataset('PA-100K', str(tmp_path))


def test_all_that_is_wrong_with_lists_is_listed(tmp_path):
    good = {'image': '0.png', 'caption': 'a man', 'label': [0] * 27}
    path = lists(tmp_path, [good, {**good, 'caption': ' '}, 'row', {**good, 'image': '3.png', 'label': [3] * 27},
                            {**good, 'caption': 'a <|mask|>'}])
    (tmp_path / 'gene_attrs/z_attrs.json').write_text(json.dumps([{**good, 'caption': '\u200b'},
                                                                  {**good, 'image': '../0.png'}]))
    result = found_in(tmp_path, 'MALS')
    assert result['annotation'] == [
        f"{path}: row 1 (counted from 0) has no 'caption', a sentence or a list of sentences",
        f"{path}: row 2 (counted from 0) has no 'image', the path of an image",
        f'{path}: row 3 (counted from 0) has the label 3: labels are 1, 0, or -1 for unknown',
        f"{tmp_path}/gene_attrs/z_attrs.json: row 0 (counted from 0) has no 'caption', a sentence or a list of "
        'sentences',
        "entry 2 (counted from 0), ../0.png, has a 'file_path' outside of imgs/: ../0.png"]
    assert result["captions that hold the tokenizer's own tokens as text"] == ['0.png: <|mask|>']
    assert result['images that the annotation does not list'] == [str(tmp_path / 'images/MALS/3.png')]


def test_a_dataset_in_another_layout_is_named_by_where_it_is(tmp_path, capsys):
    lists(tmp_path, [{'image': '0.png', 'caption': 'a man', 'label': [0] * 27}])
    assert main(['--dataset_name', 'MALS', '--root_dir', str(tmp_path), '--workers', '1']) == 1
    assert capsys.readouterr().out.endswith(f'{tmp_path}: incomplete: 3 counts that differ\n')


def test_a_wrong_entry_of_several_lists_is_no_entry_of_the_first(tmp_path):
    good = {'image': '0.png', 'caption': 'a man', 'label': [0] * 27}
    lists(tmp_path, [good])
    (tmp_path / 'gene_attrs/z_attrs.json').write_text(json.dumps([{**good, 'image': '../0.png'}]))
    with pytest.raises(UserError, match=f'^{re.escape(str(tmp_path))}/gene_attrs: entry 1'):
        build_dataset('MALS', str(tmp_path))

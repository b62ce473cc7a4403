"""pedestal.py and run_scripts/search.py: what is found, what is kept between searches, and what is refused."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pedestal
from processor import image_index as image_index
from processor.image_index import ImageIndex
from processor.search_results import report_skipped
from run_scripts import search
from utils.errors import UserError
from utils.top_k import top_k

TEXT = 'a woman in a red coat'


@pytest.fixture(scope='module')
def people(trained):
    return pedestal.load(os.path.dirname(trained), device='cpu')


@pytest.fixture
def folder(data, tmp_path):
    """Ten photos, two of them in a folder below."""
    position = tmp_path / 'photos'
    (position / 'more').mkdir(parents=True)
    for number, path in enumerate(sorted(glob.glob(os.path.join(data, 'CUHK-PEDES', 'imgs', '**', '*.jpg'),
                                                   recursive=True))[:10]):
        shutil.copy(path, position / ('more' if number < 2 else '') / f'{number}.jpg')
    return str(position)


def embedded(people, monkeypatch):
    """Fills up with how many photos are embedded at a time."""
    counts, embed = [], people.embed_images
    monkeypatch.setattr(people, 'embed_images', lambda images: counts.append(len(images)) or embed(images))
    return counts


def test_embeddings_are_the_models_own_at_length_one(people, folder):
    paths = sorted(glob.glob(f'{folder}/*.jpg'))
    images = people.encode_images(paths)
    with torch.no_grad():
        expected = people.model.encode_image(torch.stack([people.load_image(path) for path in paths]))
    assert images.dtype == torch.float32 and torch.allclose(images, F.normalize(expected, dim=1), atol=1e-6)
    assert torch.equal(people.encode_images([Image.open(paths[0])]), people.encode_images(paths[:1]))
    captions = people.encode_captions([TEXT, 'a man'])
    assert torch.allclose(captions.norm(dim=1), torch.ones(2))
    assert torch.equal(captions[1:], people.encode_captions(['a man']))


def test_search_is_by_cosine_and_the_same_from_paths_and_from_a_folder(people, folder):
    paths = sorted(glob.glob(f'{folder}/**/*.jpg', recursive=True))
    scores = (people.encode_images(paths) @ people.encode_captions([TEXT])[0]).tolist()
    expected = sorted(zip(paths, scores), key=lambda pair: -pair[1])[:4]
    for images in (paths, folder, people.index_images(folder)):
        results = people.search(TEXT, images=images, top=4)
        assert [path for path, _ in results] == [path for path, _ in expected]
        assert [score for _, score in results] == pytest.approx([score for _, score in expected], abs=1e-6)
    assert len(people.search(TEXT, folder, top=99)) == 10


def test_only_what_is_new_or_changed_is_embedded_again(people, folder, monkeypatch):
    counts = embedded(people, monkeypatch)
    people.search(TEXT, folder)
    assert people.search(TEXT, folder) and counts == [10]
    os.remove(f'{folder}/5.jpg')
    shutil.copy(f'{folder}/6.jpg', f'{folder}/new.jpg')
    Image.new('RGB', (20, 40), 'red').save(f'{folder}/7.jpg')
    results = dict(people.search(TEXT, folder, top=99))
    assert counts == [10, 2] and f'{folder}/5.jpg' not in results and len(results) == 10
    assert results[f'{folder}/new.jpg'] == pytest.approx(results[f'{folder}/6.jpg'], abs=1e-6)
    expected = people.encode_images([f'{folder}/7.jpg']) @ people.encode_captions([TEXT]).T
    assert results[f'{folder}/7.jpg'] == pytest.approx(expected.item(), abs=1e-6)


def test_an_index_of_photos_that_are_mostly_gone_is_written_anew(people, folder):
    before = people.index_images(folder)
    for number in range(2, 9):
        os.remove(f'{folder}/{number}.jpg')
    shutil.copy(f'{folder}/9.jpg', f'{folder}/new.jpg')
    after = people.index_images(folder)
    assert len(after.paths) == after.embedding_count == 4 and after.generation == before.generation + 1
    assert not os.path.exists(before.embeddings_path)
    paths = [os.path.join(folder, path) for path in after.paths]
    assert dict(people.search(TEXT, after)) == pytest.approx(dict(people.search(TEXT, paths)))


def test_an_interrupted_index_goes_on(people, folder, monkeypatch):
    """Whatever was cut short is put right: rows without their line, half a line, lines without their row."""
    expected = pytest.approx(dict(people.search(TEXT, folder, top=99)), abs=1e-6)
    shutil.rmtree(f'{folder}/.pedestal')
    monkeypatch.setattr(image_index, 'CHUNK_SIZE', 4)
    counts, embed = [], people.embed_images

    def interrupted(images):
        if len(counts) == 2:
            raise KeyboardInterrupt
        counts.append(len(images))
        return embed(images)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(people, 'embed_images', interrupted)
        people.index_images(folder)
    index = ImageIndex(folder, *people.fingerprint, people.embedding_dim)
    assert len(index.paths) == 8 and len(index.new_paths) == 2
    with open(index.embeddings_path, 'ab') as file:
        file.write(b'\1' * 100)
    with open(index.entries_path, 'ab') as file:
        file.write(b'["half a li')
    assert dict(people.search(TEXT, folder, top=99)) == expected
    os.truncate(index.embeddings_path, 5 * people.embedding_dim * 4 + 3)
    assert dict(people.search(TEXT, folder, top=99)) == expected


def test_broken_photos_are_named_and_left_out(people, folder, trained, capsys, tmp_path):
    with open(f'{folder}/broken.jpg', 'w') as file:
        file.write('no image')
    out = str(tmp_path / 'found.json')
    search.main(['--config_file', trained, '--images', folder, '--caption', TEXT, '--caption', 'a man', '--top', '3',
                 '--out', out])
    output = capsys.readouterr().out
    assert f'skipped: {folder}/broken.jpg is not an image' in output and '10 photos, ' in output
    with open(out) as file:
        first, second = json.load(file)
    assert first['caption'] == TEXT and {one['path']: one['score'] for one in first['photos']} == pytest.approx(
        dict(people.search(TEXT, folder, top=3)), abs=1e-6)
    assert second['photos'][0]['path'] in output


@pytest.mark.skipif(bool(find_spec('pillow_heif')), reason='HEIC is read here')
def test_files_that_are_not_searched_are_counted_and_named(people, folder, capsys):
    count = len(people.index_images(folder).paths)
    for name in ('a.heic', 'b.mp4'):
        with open(f'{folder}/{name}', 'w') as file:
            file.write('no photo')
    os.rename(f'{folder}/2.jpg', f'{folder}/2.jfif')
    photos = people.index_images(folder)
    report_skipped(photos)
    output = capsys.readouterr().out
    assert len(photos.paths) == count and '2.jfif' in photos.paths
    assert output == ('skipped: 2 files that Pillow does not read as an image '
                    f'(1 .heic, 1 .mp4; {folder}/a.heic, {folder}/b.mp4; '
                    'pip install pillow-heif reads HEIC)\n')


def test_a_picture(folder, trained, tmp_path):
    out = str(tmp_path / 'found.png')
    search.main(['--config_file', trained, '--images', folder, '--caption', TEXT, '--top', '3', '--out', out])
    assert open(out, 'rb').read(8) == b'\x89PNG\r\n\x1a\n'


def test_another_model_has_an_index_of_its_own_and_never_reads_this_one(people, folder):
    index = people.index_images(folder)
    model, key = people.fingerprint
    other = {**model, 'sha256': 'f' * 64}
    assert len(ImageIndex(folder, other, 'another', people.embedding_dim).new_paths) == 10
    assert ImageIndex(folder, other, 'another', people.embedding_dim).other_keys == [key]
    with pytest.raises(UserError,
                       match=f'an index of another model .checkpoint {model["sha256"][:8]}, and this is ffffffff'):
        ImageIndex(folder, other, key, people.embedding_dim)
    assert os.path.exists(index.entries_path)


def test_an_index_elsewhere(people, folder, tmp_path):
    people.index_images(folder, index=str(tmp_path / 'index'))
    assert not os.path.exists(f'{folder}/.pedestal') and len(os.listdir(tmp_path / 'index')) == 3


@pytest.mark.parametrize('words, sentence', [
    (['--images', '{tmp}/none', '--caption', 'x'], 'there is no folder .*none'),
    (['--images', '{tmp}', '--caption', 'x'], 'there are no photos below'),
    (['--images', '{photos}', '--caption', ' '], 'a caption is empty'),
    (['--images', '{photos}', '--caption', '\u200b\u2060'], 'a caption is empty'),
    (['--images', '{photos}', '--caption', '&nbsp;\u3164'], 'a caption is empty'),
    (['--images', '{photos}', '--caption', 'a man', '--caption', 'x' * 10001],
     'description 2 is a caption of 10,001 characters'),
    (['--images', '{photos}', '--caption', 'x', '--top', '0'], '--top.*must be above 0'),
    (['--images', '{photos}', '--caption', 'x', '--out', 'x.doc'], "'doc' is none"),
    (['--images', '{photos}', '--caption', 'x', '--index', '{photos}/2.jpg'], 'cannot write the index into .*--index')])
def test_what_is_refused(trained, folder, tmp_path_factory, words, sentence):
    with pytest.raises(UserError, match=sentence):
        search.main(['--config_file', trained,
                     *(word.format(tmp=tmp_path_factory.mktemp('empty'), photos=folder) for word in words)])
    assert not os.path.exists(f'{folder}/.pedestal')


@pytest.mark.parametrize('content', ['{"model": ', '[]\n', '{}\n7\n', 'nothing\n'])
def test_a_damaged_index_is_told(people, folder, content):
    index = people.index_images(folder)
    with open(index.entries_path, 'w') as file:
        file.write(content)
    if content.endswith('\n'):
        with pytest.raises(UserError, match='remove it, and the photos are embedded again'):
            people.index_images(folder)
    else:                                        # nothing of it is complete: it is re-created
        assert len(people.index_images(folder).paths) == 10


def flip(path, place, bit):
    with open(path, 'r+b') as file:
        file.seek(place)
        byte = file.read(1)[0] ^ bit
        file.seek(place)
        file.write(bytes([byte]))


@pytest.mark.parametrize('place, bit', [(0, 1), (4 * 64 * 3 + 3, 64), (4 * 64 * 10 - 1, 128)])
def test_a_flipped_bit_in_an_embedding_is_seen_and_embedded_again(people, folder, monkeypatch, caplog, place, bit):
    """The highest bit of an exponent makes 0.1 to 1e37."""
    expected, index = people.search(TEXT, folder, top=99), people.index_images(folder)
    flip(index.embeddings_path, place, bit)
    counts = embedded(people, monkeypatch)
    assert dict(people.search(TEXT, folder, top=99)) == pytest.approx(dict(expected), abs=1e-6) and counts == [1]
    assert 'jsonl: 1 of 10 entries are damaged, and their photos are embedded again' in caplog.text
    caplog.clear()
    after = people.index_images(folder)
    assert counts == [1] and not caplog.text and after.embedding_count == 10
    assert not os.path.exists(index.embeddings_path)


@pytest.mark.parametrize('old, new', [('"5.jpg"', '"6.jpg"'), (', null, ', ', true, '), ('], [', '], ['),
                                      ('.jpg', '.jpf')])
def test_a_flipped_bit_in_a_photos_line_is_seen(people, folder, caplog, old, new):
    expected, index = dict(people.search(TEXT, folder, top=99)), people.index_images(folder)
    with open(index.entries_path, 'rb') as file:
        content = file.read()
    for number in range(1, 4):
        head, *lines = content.split(b'\n')
        lines[number] = lines[number].replace(b'3', b'2', 1)           # of the path, the size, the time or the checksum
        with open(index.entries_path, 'wb') as file:
            file.write(b'\n'.join([head, *lines]).replace(old.encode(), new.encode(), 1))
        assert dict(people.search(TEXT, folder, top=99)) == pytest.approx(expected, abs=1e-6)
        with open(people.index_images(folder).entries_path, 'rb') as file:
            content = file.read()


def test_a_flipped_bit_in_the_first_line_is_refused(people, folder):
    index = people.index_images(folder)
    with open(index.entries_path, 'rb') as file:
        head, rest = file.read().split(b'\n', 1)
    for old, new in ((b'"generation": 1', b'"generation": 0'), (b'"crc32": ', b'"crc32": 1')):
        with open(index.entries_path, 'wb') as file:
            file.write(head.replace(old, new) + b'\n' + rest)
        with pytest.raises(UserError, match='is damaged: remove it, and the photos are embedded again'):
            people.index_images(folder)


def test_an_index_without_checksums_is_made_anew(people, folder, monkeypatch, caplog):
    expected, index = dict(people.search(TEXT, folder, top=99)), people.index_images(folder)
    with open(index.entries_path) as file:
        head, *lines = map(json.loads, file)
    del head['crc32']
    with open(index.entries_path, 'w') as file:
        file.write('\n'.join(map(json.dumps, [head, *(line[:4] for line in lines)])) + '\n')
    counts = embedded(people, monkeypatch)
    assert dict(people.search(TEXT, folder, top=99)) == pytest.approx(expected, abs=1e-6) and counts == [10]
    assert caplog.text.count('has no checksums, because an older version wrote it') >= 1
    assert len(glob.glob(f'{folder}/.pedestal/*.f32')) == 1


def test_a_damaged_index_of_photos_that_are_gone(people, folder):
    index = people.index_images(folder)
    paths = list(index.paths)
    np.array([np.nan], np.float32).tofile(f'{folder}/.pedestal/nan')
    with open(index.embeddings_path, 'r+b') as file:
        file.write(np.array([np.nan], np.float32).tobytes())
    os.remove(os.path.join(folder, paths[0]))
    assert len(people.search(TEXT, folder, top=99)) == 9


# What another program does to an index while this one, such as the demo, has it open.

def append(index, folder, people):
    shutil.copy(f'{folder}/9.jpg', f'{folder}/new.jpg')
    people.index_images(folder)


def rewrite(index, folder, people):
    for number in range(2, 9):
        os.remove(f'{folder}/{number}.jpg')
    shutil.copy(f'{folder}/9.jpg', f'{folder}/new.jpg')
    assert people.index_images(folder).embeddings_path != index.embeddings_path


def remove(index, folder, people):
    shutil.rmtree(f'{folder}/.pedestal')


def replace(index, folder, people):
    with open(f'{index.embeddings_path}.other', 'wb') as file:
        file.write(bytes(100))
    os.replace(f'{index.embeddings_path}.other', index.embeddings_path)


@pytest.mark.parametrize('change', [append, rewrite, remove, replace])
def test_an_open_index_stays_as_it_was(people, folder, change):
    index = people.index_images(folder)
    expected = people.search(TEXT, index, top=99)
    change(index, folder, people)
    assert people.search(TEXT, index, top=99) == expected and len(expected) == 10


@pytest.mark.parametrize('change, sentence', [
    (lambda path: os.truncate(path, 300), '^another program cut .*f32: start this one again'),
    (lambda path: os.truncate(path, 0), '^another program cut .*f32: start this one again'),
    (lambda path: flip(path, 700, 64), '^another program changed .*f32: start this one again')])
def test_an_open_index_that_is_damaged_is_one_sentence(people, folder, change, sentence):
    """A memory map would end the process by SIGBUS."""
    index = people.index_images(folder)
    change(index.embeddings_path)
    for _ in range(2):
        with pytest.raises(UserError, match=sentence):
            people.search(TEXT, index)
    assert len(people.search(TEXT, people.index_images(folder))) == 10


@pytest.mark.parametrize('ending', ['.jsonl', '.1.f32'])
@pytest.mark.parametrize('put', [os.mkdir, pytest.param(getattr(os, 'mkfifo', None), marks=pytest.mark.skipif(
    not hasattr(os, 'mkfifo'), reason='needs pipes'))])
def test_no_file_in_the_place_of_an_index_is_one_sentence(people, folder, ending, put):
    index = people.index_images(folder)
    path = f'{folder}/.pedestal/{index.key}{ending}'
    os.remove(path)
    put(path)
    with pytest.raises(UserError, match=f'{ending}.* (cannot be read|is not a regular file)'):
        people.index_images(folder)


def test_no_similarity_is_above_one(people, folder):
    index = people.index_images(folder)
    index.embeddings = np.full((index.embedding_count, people.embedding_dim), 1e3, np.float32)
    index.check_unchanged = lambda: None
    with pytest.raises(UserError,
                       match='a similarity is .*e.0., and the largest possible one is 1: the embeddings are damaged'):
        people.search(TEXT, index)


def test_a_folder_of_nothing_but_broken_photos(trained, tmp_path):
    (tmp_path / 'x.png').write_bytes(b'')
    with pytest.raises(UserError, match='none of the 1 photos'):
        search.main(['--config_file', trained, '--images', str(tmp_path), '--caption', TEXT])


def test_what_the_library_refuses(people, folder, tmp_path):
    with pytest.raises(UserError, match='no images to encode'):
        people.encode_images([])
    with pytest.raises(UserError, match='no captions to encode'):
        people.encode_captions([])
    with pytest.raises(UserError, match='top must be above 0'):
        people.search(TEXT, folder, top=0)
    with pytest.raises(UserError, match='no image .*none.jpg'):
        people.search(TEXT, ['none.jpg'])
    with pytest.raises(UserError, match='configs.yaml'):
        pedestal.load(str(tmp_path))


def python_of(name):
    """The Python of a document in docs/: a notebook's code but for its first cell, or the first block of a page."""
    with open(os.path.join(os.path.dirname(pedestal.__file__), 'docs', name), encoding='utf-8') as file:
        text = file.read()
    if not name.endswith('.ipynb'):
        return re.search(r'```python\n(.*?)```', text, flags=re.DOTALL)[1]
    _, *cells = [cell for cell in json.loads(text)['cells'] if cell['cell_type'] == 'code']
    return '\n'.join(''.join(cell['source']) for cell in cells)


@pytest.mark.parametrize('name', ['desk.md', 'desk.ipynb'])
def test_the_documented_python_runs(trained, folder, name):
    run = os.path.dirname(trained)
    names = {'run': run, 'photos': folder}
    exec(python_of(name).replace("'logs/CUHK-PEDES/<run>'", repr(run)).replace("'photos'", repr(folder)), names)
    assert len(names['results']) == 10
    if name == 'desk.md':
        assert [len(best) for best in names['best']] == [5, 5]
        assert names['maps'].similarity == pytest.approx(names['results'][0][1], abs=1e-6)
    assert names['similarity'][:, 0].tolist() == pytest.approx([score for _, score in names['results']], abs=1e-6)


@pytest.mark.parametrize('started_in', ['docs', '.'])
def test_the_notebook_finds_pedestal_from_its_own_folder(started_in):
    """Jupyter starts a notebook's kernel in the notebook's folder."""
    root = os.path.dirname(os.path.abspath(pedestal.__file__))
    setting_up, _ = python_of('desk.ipynb').split('\nimport pedestal\n')
    code = f'{setting_up}\nimport importlib.util\nprint(importlib.util.find_spec("pedestal").origin, os.getcwd())'
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', code], cwd=os.path.join(root, started_in), env=environment,
                          capture_output=True, text=True)
    assert done.stdout.split() == [os.path.join(root, 'pedestal.py'), root], done.stderr


@pytest.mark.parametrize('block', [1, 7, 1000])
def test_nearest_block_by_block_is_exact(block):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((100, 8)).astype('float32')
    queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scores, rows = top_k(queries, vectors, 10, block)
    expected = (queries @ torch.from_numpy(vectors).t()).topk(10)
    assert torch.equal(rows, expected.indices) and torch.allclose(scores, expected.values)


def test_nearest_refuses_what_is_no_number():
    with pytest.raises(UserError, match='NaN or infinite'):
        top_k(torch.ones(1, 2), np.array([[1, 0], [np.nan, 0]], 'float32'), 1)


def test_faiss_finds_nearly_all_and_says_how_many(people, folder, trained, capsys):
    pytest.importorskip('faiss', reason='FAISS is not installed: pip install faiss-cpu')
    for _ in range(2):                           # made, and read back
        search.main(['--config_file', trained, '--images', folder, '--caption', TEXT, '--faiss', '--top', '3'])
        assert 'FAISS finds 100.0% of the 3 best photos' in capsys.readouterr().out
    assert glob.glob(f'{folder}/.pedestal/*.faiss')


def test_a_damaged_faiss_index_is_made_again(people, folder, caplog):
    pytest.importorskip('faiss', reason='FAISS is not installed: pip install faiss-cpu')
    queries = people.encode_captions([TEXT])
    expected = people.index_images(folder).search_approximately(queries, 3)
    path, = glob.glob(f'{folder}/.pedestal/*.faiss')
    for position in (os.path.getsize(path) // 2, os.path.getsize(path) - 2):
        flip(path, position, 64)
        assert people.index_images(folder).search_approximately(queries, 3) == expected
        assert caplog.text.count('faiss is damaged and is created again') == 1
        caplog.clear()
    os.truncate(path, 3)
    assert people.index_images(folder).search_approximately(queries, 3) == expected
    shutil.copy(f'{folder}/9.jpg', f'{folder}/new.jpg')
    assert len(people.index_images(folder).search_approximately(queries, 99)[0]) == 11
    assert 'faiss is damaged' not in caplog.text


def test_without_faiss_it_is_one_sentence(folder, trained, monkeypatch):
    """Before anything is embedded."""
    monkeypatch.setitem(__import__('sys').modules, 'faiss', None)
    monkeypatch.setattr(pedestal.People, 'index_images', lambda *_: pytest.fail('photos were embedded'))
    with pytest.raises(UserError, match='--faiss needs FAISS: pip install faiss-cpu'):
        search.main(['--config_file', trained, '--images', folder, '--caption', TEXT, '--faiss'])


def test_a_description_that_is_cut_is_said(people, folder, caplog):
    begin = 'a man in a red coat ' * 15
    one, other = (people.search(begin + end, folder) for end in ('with a black bag', 'without a bag'))
    assert one == other         # the model reads neither end
    assert caplog.text.count('1 of 1 descriptions have more than 77 tokens') == 2
    assert "(96 tokens) loses 'a red coat a man" in caplog.text
    caplog.clear()
    people.search('a man in a red coat', folder)
    assert not caplog.text and not people.describe_truncation('a man')

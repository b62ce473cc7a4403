"""WebPerson: its annotation, its identities and its errors."""
import json

import pytest
from PIL import Image

from datasets.array_cache import MIN_CACHED_CAPTIONS
from datasets.build import build_dataset
from utils.errors import UserError


def write_webperson(root, files):
    """Write ``{file: {image: (caption1, caption2)}}`` and the images."""
    for name, captions in files.items():
        path = root / 'WebPerson' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{image: {'caption1': one, 'caption2': other}}
                                    for image, (one, other) in captions.items()]))
        for image in captions:
            image_path = root / 'WebPerson' / 'images' / image
            image_path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 16)).save(image_path)
    return str(root)


CAPTIONS = {'b/2.jpg': ('a man/n in red', 'a tall man'), 'a/1.jpg': ('a woman', 'a woman with a bag'),
            'b/1.jpg': ('a child', 'a girl')}


@pytest.mark.parametrize('is_cached', [False, True])
def test_each_caption_has_its_own_identity_and_images_are_sorted(tmp_path, monkeypatch, is_cached):
    monkeypatch.setattr('datasets.array_cache.MIN_CACHED_CAPTIONS', 1 if is_cached else MIN_CACHED_CAPTIONS)
    root = write_webperson(tmp_path, {'100w.json': CAPTIONS})
    for _ in range(2):      # the second time from the cache
        dataset = build_dataset('WebPerson', root, splits=('train',))
        assert [(pid, image_id, path.removeprefix(root), caption)
                for pid, image_id, path, caption in dataset.train] == [
            (0, 0, '/WebPerson/images/a/1.jpg', 'a woman'), (1, 0, '/WebPerson/images/a/1.jpg', 'a woman with a bag'),
            (2, 1, '/WebPerson/images/b/1.jpg', 'a child'), (3, 1, '/WebPerson/images/b/1.jpg', 'a girl'),
            (4, 2, '/WebPerson/images/b/2.jpg', 'a man in red'), (5, 2, '/WebPerson/images/b/2.jpg', 'a tall man')]
        assert dataset.is_memory_mapped == is_cached and len(dataset.train_id_container) == 6
        assert dataset.counts('train') == (3, 3, 6) and dataset.counts('test') == (0, 0, 0)


def test_all_files_of_the_folder_are_read(tmp_path):
    root = write_webperson(tmp_path, {'one.json': {'b/2.jpg': CAPTIONS['b/2.jpg']},
                                      'two.json': {'a/1.jpg': CAPTIONS['a/1.jpg']}})
    assert [caption for *_, caption in build_dataset('WebPerson', root, splits=('train',)).train] == [
        'a woman', 'a woman with a bag', 'a man in red', 'a tall man']


@pytest.mark.parametrize('content, message', [
    ([{'1.jpg': {'caption1': 'a man'}}], r'100w.json: entry 0 \(counted from 0\) is not {"<image>": {"caption1"'),
    ([{'1.jpg': {'caption1': 'a', 'caption2': 'b'}}, ['1.jpg']], 'entry 1 .* is not'),
    ({'1.jpg': {'caption1': 'a', 'caption2': 'b'}}, 'is not a JSON list of mappings'), ([], 'holds no entries'),
    ([{'1.jpg': {'caption1': 'a', 'caption2': ' '}}], r"100w.json: the image '1.jpg' has an empty caption"),
    ([{'../1.jpg': {'caption1': 'a', 'caption2': 'b'}}], r"the image '../1.jpg' has a 'path' outside of images/")])
def test_invalid_entries(tmp_path, content, message):
    (tmp_path / 'WebPerson').mkdir()
    (tmp_path / 'WebPerson' / '100w.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        build_dataset('WebPerson', str(tmp_path), splits=('train',))


def test_without_an_annotation(tmp_path):
    with pytest.raises(UserError, match=r'no annotation .*WebPerson.*\.json of WebPerson: point --root_dir at'):
        build_dataset('WebPerson', str(tmp_path))

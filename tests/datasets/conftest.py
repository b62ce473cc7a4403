"""Tiny datasets on disk, in the published formats."""
import json
import random

import pytest
from PIL import Image

FORMATS = {  # name: (annotation, image key, first pid)
    'CUHK-PEDES': ('reid_raw.json', 'file_path', 1),
    'ICFG-PEDES': ('ICFG-PEDES.json', 'file_path', 0),
    'RSTPReid': ('data_captions.json', 'img_path', 0),
    'synthpedes': ('reid_raw.json', 'file_path', 1),
}


@pytest.fixture
def make_dataset(tmp_path):
    """A function that writes a dataset and returns its entries.

    ``<tmp_path>/<name>/`` gets ``identities`` {split: count} with two images each. ``change(entries)`` may alter the
    annotation after the images are written.
    """
    def make(name='CUHK-PEDES', identities=None, captions=2, change=None):
        annotation, key, pid = FORMATS[name]
        folder, rng, entries = tmp_path / name, random.Random(0), []
        for split, count in (identities or {'train': 4, 'val': 1, 'test': 2}).items():
            (folder / 'imgs' / split).mkdir(parents=True)
            for _ in range(count):
                for number in range(2):
                    path = f'{split}/{pid:04d}_{number}.jpg'
                    image = Image.new('RGB', (16, 40), tuple(rng.randrange(256) for _ in range(3)))
                    image.paste(tuple(rng.randrange(256) for _ in range(3)), (2, 5, 9, 30))
                    image.save(folder / 'imgs' / path)
                    texts = [f'person {pid} in view {number}, sentence {n}, wearing a red coat and blue jeans'
                             for n in range(captions)]
                    entries.append({'id': pid, 'split': split, 'captions': texts, key: path})
                pid += 1
        entries = (change(entries) or entries) if change else entries
        (folder / annotation).write_text(json.dumps(entries))
        return entries
    return make

"""The noise of RDE's experiments, equal to the released files."""
import hashlib
import io

import numpy as np
import pytest

from datasets.noise import exchange_captions, draw_noise_permutation, add_caption_noise, read_permutation
from utils.errors import UserError

PAIRS = {'CUHK-PEDES': 68126, 'ICFG-PEDES': 34674, 'RSTPReid': 37010}
CHANGED = {('CUHK-PEDES', 0.2): 13624, ('CUHK-PEDES', 0.5): 34062, ('CUHK-PEDES', 0.8): 54500,
           ('ICFG-PEDES', 0.2): 6933, ('ICFG-PEDES', 0.5): 17337, ('ICFG-PEDES', 0.8): 27737,
           ('RSTPReid', 0.2): 7400, ('RSTPReid', 0.5): 18505, ('RSTPReid', 0.8): 29605}
IDENTITIES_AND_IMAGES = [(0, 0), (0, 0), (1, 1), (1, 2), (2, 3)]
SAMPLES = [(pid, image, f'{image}.png', f'caption {number}')
           for number, (pid, image) in enumerate(IDENTITIES_AND_IMAGES)]


@pytest.mark.parametrize('dataset, rate', CHANGED)
def test_as_many_pairs_change_as_in_the_released_files(dataset, rate):
    permutation = draw_noise_permutation(PAIRS[dataset], rate)
    assert (permutation != np.arange(PAIRS[dataset])).sum() == CHANGED[dataset, rate]
    assert np.array_equal(np.sort(permutation), np.arange(PAIRS[dataset])) and permutation.dtype == np.int64


def test_the_released_file_bit_for_bit():
    file = io.BytesIO()
    np.save(file, draw_noise_permutation(PAIRS['CUHK-PEDES'], 0.2))
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    assert digest == '82919f1ad5e7126aeb1d83f6133e0ae090ba16a5396edab01e7e79e03bfba700'


def test_captions_move_and_images_stay():
    noisy = exchange_captions(SAMPLES, np.array([0, 2, 1, 3, 4]))
    assert [sample[:3] for sample in noisy] == [sample[:3] for sample in SAMPLES]
    assert [sample[3] for sample in noisy] == [f'caption {number}' for number in (0, 2, 1, 3, 4)]


def test_report_counts_what_changed(tmp_path):
    assert add_caption_noise(SAMPLES, 0.0, 'not read') == (SAMPLES, None, None)
    np.save(tmp_path / 'noise.npy', np.array([1, 0, 2, 3, 4]))
    samples, permutation, report = add_caption_noise(SAMPLES, 0.8, str(tmp_path / 'noise.npy'))
    assert permutation.tolist() == [1, 0, 2, 3, 4]
    assert report == {'rate': 0.8, 'file': str(tmp_path / 'noise.npy'), 'clean': 3, 'noisy': 2}
    assert samples[0][3] == 'caption 1' and samples[4] == SAMPLES[4]
    permutation = draw_noise_permutation(5, 0.8)
    assert add_caption_noise(SAMPLES, 0.8)[0] == exchange_captions(SAMPLES, permutation)


@pytest.mark.parametrize('content, message', [
    (np.arange(4), r'shape \[4\], and there are 5 training pairs'), (np.array([0, 1, 2, 3, 3]), 'is no permutation'),
    (np.arange(5.0), 'is no permutation'), (np.array([None] * 5), 'is no NumPy array'), (b'words', 'is no NumPy array'),
     (None, 'there is no file')])
def test_a_file_that_is_no_permutation(tmp_path, content, message):
    path = tmp_path / 'noise.npy'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        read_permutation(str(path), 5)

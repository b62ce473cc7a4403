"""Noisy correspondence: training pairs whose captions were exchanged, as in RDE (Qin et al., CVPR 2024)."""
import io
import os

import numpy as np

from datasets.array_cache import Samples
from utils.errors import UserError

RELEASED_SEED = 1   # with it, the permutations are those of the nine files that RDE released (three datasets; 0.2, 0.5, 0.8)


def draw_noise_permutation(pairs, rate, seed=RELEASED_SEED):
    """int64 [pairs]: pair i takes the caption of pair ``permutation[i]``. The share ``rate`` of all pairs, chosen by chance, exchange
    captions among themselves; a few of them get their own back."""
    draw = np.random.RandomState(seed)
    places = np.arange(pairs)
    draw.shuffle(places)
    chosen = places[:int(rate * pairs)]
    given = chosen.copy()
    draw.shuffle(given)
    permutation = np.arange(pairs)
    permutation[chosen] = given
    return permutation


def read_permutation(path, pairs):
    """The permutation in a ``.npy`` file. Raises UserError where it is none of ``pairs`` pairs."""
    if not os.path.isfile(path):
        raise UserError(f'--noisy_file: there is no file {path}; without it --noisy_rate makes the noise itself')
    try:
        with open(path, 'rb') as file:
            permutation = np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f'--noisy_file: {path} is no NumPy array: {error}') from None
    if permutation.shape != (pairs,):
        raise UserError(f'--noisy_file: {path} holds an array of shape {list(permutation.shape)}, and there are {pairs} training pairs')
    if permutation.dtype.kind not in 'iu' or not np.array_equal(np.sort(permutation), np.arange(pairs)):
        raise UserError(f'--noisy_file: {path} is no permutation of the numbers 0 to {pairs - 1}')
    return permutation.astype(np.int64)


def exchange_captions(samples, permutation):
    """Training samples ``(pid, image_id, path, caption)`` with their captions exchanged; identity and image stay."""
    if isinstance(samples, Samples):
        return samples.permute_captions(permutation)
    return [(*sample[:3], samples[source][3]) for sample, source in zip(samples, permutation.tolist())]


def add_caption_noise(samples, rate, file=''):
    """``(samples, report)``: with the captions that ``--noisy_rate`` and ``--noisy_file`` give them, and how many pairs are clean and
    noisy; the report is None without noise."""
    if not rate:
        return samples, None
    permutation = read_permutation(file, len(samples)) if file else draw_noise_permutation(len(samples), rate)
    noisy = int((permutation != np.arange(len(samples))).sum())
    return exchange_captions(samples, permutation), {'rate': rate, 'file': file or None, 'clean': len(samples) - noisy, 'noisy': noisy}

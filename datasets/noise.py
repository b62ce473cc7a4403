"""Noisy correspondence: training pairs with exchanged captions, as in RDE (Qin et al., CVPR 2024)."""
import io
import os

import numpy as np

from datasets.array_cache import Samples
from utils.errors import UserError

REFERENCE_SEED = 1   # reproduces the permutations of the nine files that RDE released (three datasets; 0.2, 0.5, 0.8)


def draw_noise_permutation(pair_count, rate, seed=REFERENCE_SEED):
    """Draw a permutation, int64 [pair_count]: pair i takes the caption of pair ``permutation[i]``.

    A random fraction ``rate`` of the pairs exchange captions among themselves. A few of them get their own back.
    """
    rng = np.random.RandomState(seed)
    pairs = np.arange(pair_count)
    rng.shuffle(pairs)
    noisy = pairs[:int(rate * pair_count)]
    sources = noisy.copy()
    rng.shuffle(sources)
    permutation = np.arange(pair_count)
    permutation[noisy] = sources
    return permutation


def read_permutation(path, pair_count):
    """Read a permutation of ``pair_count`` pairs from a ``.npy`` file.

    Raises:
        UserError: the file is missing or holds no such permutation.
    """
    if not os.path.isfile(path):
        raise UserError(f'--noisy_file: there is no file {path}; without it --noisy_rate makes the noise itself')
    try:
        with open(path, 'rb') as file:
            permutation = np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f'--noisy_file: {path} is no NumPy array: {error}') from None
    if permutation.shape != (pair_count,):
        raise UserError(f'--noisy_file: {path} holds an array of shape {list(permutation.shape)}, '
                        f'and there are {pair_count} training pairs')
    if permutation.dtype.kind not in 'iu' or not np.array_equal(np.sort(permutation), np.arange(pair_count)):
        raise UserError(f'--noisy_file: {path} is no permutation of the numbers 0 to {pair_count - 1}')
    return permutation.astype(np.int64)


def exchange_captions(samples, permutation):
    """Exchange the captions of training samples ``(pid, image_id, path, caption)``; identities and images stay."""
    if isinstance(samples, Samples):
        return samples.permute_captions(permutation)
    return [(*sample[:3], samples[source][3]) for sample, source in zip(samples, permutation.tolist())]


def add_caption_noise(samples, rate, file=''):
    """Exchange captions as ``--noisy_rate`` and ``--noisy_file`` say.

    Returns:
        ``(samples, permutation, report)``: pair i has the caption of pair ``permutation[i]``, int64 [S], and the report
        is a dict with the number of clean and noisy pairs. Both are None without noise.
    """
    if not rate:
        return samples, None, None
    permutation = read_permutation(file, len(samples)) if file else draw_noise_permutation(len(samples), rate)
    noisy = int((permutation != np.arange(len(samples))).sum())
    report = {'rate': rate, 'file': file or None, 'clean': len(samples) - noisy, 'noisy': noisy}
    return exchange_captions(samples, permutation), permutation, report

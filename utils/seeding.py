"""Random seeds that depend on what is computed, not on the process or the time."""
import random

import numpy as np
import torch


def derive_seed(*keys):
    """Derive a 63-bit seed from non-negative integers, such as (seed, epoch, sample index).

    The same keys give the same seed on any machine. Different keys give unrelated seeds.

    Example:
        >>> derive_seed(1, 7, 42)
        4872264341039337367
        >>> derive_seed(1, 7, 42) == derive_seed(1, 7, 43)
        False
    """
    # The number of keys is included because NumPy treats (1, 2) and (1, 2, 0) alike.
    words = np.random.SeedSequence([len(keys), *keys]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def seed_all(seed):
    """Seed the global generators of Python, NumPy and PyTorch (CPU and GPU)."""
    random.seed(seed)
    np.random.seed(seed & 0xffffffff)
    torch.manual_seed(seed)


def get_random_states():
    """Return the states of all global generators, in types that ``weights_only`` loading accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {'python': [version, list(words), gauss],
            'numpy': [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
            'torch': torch.get_rng_state(),
            'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_states(states):
    """Restore the states of :func:`get_random_states`; those of GPUs only if the number of GPUs is the same."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states['torch'])
    if states['cuda'] and len(states['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states['cuda'])

"""Randomness that depends on what is computed, never on who computes it or when."""
import random

import numpy as np
import torch


def derive_seed(*keys):
    """A 63-bit seed from non-negative integers such as (seed, epoch, sample index): the same keys, the same seed, on any
    machine; keys that differ anywhere give unrelated seeds.

    >>> derive_seed(1, 7, 42)
    4872264341039337367
    >>> derive_seed(1, 7, 42) == derive_seed(1, 7, 43)
    False
    """
    # The number of keys goes in, too: NumPy takes (1, 2) and (1, 2, 0) for the same.
    words = np.random.SeedSequence([len(keys), *keys]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def seed_all(seed):
    """Seed Python's, NumPy's and PyTorch's global generators (CPU and GPU)."""
    random.seed(seed)
    np.random.seed(seed & 0xffffffff)
    torch.manual_seed(seed)


def get_random_states():
    """The states of all global generators, made of tensors and plain numbers so that ``weights_only`` loading takes them."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {'python': [version, list(words), gauss],
            'numpy': [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
            'torch': torch.get_rng_state(),
            'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_states(states):
    """Put back what :func:`random_states` returned; GPU states only where as many GPUs are seen."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states['torch'])
    if states['cuda'] and len(states['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states['cuda'])

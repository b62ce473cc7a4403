"""Seeds depend only on their keys, and a checkpoint restores random states."""
import random

import numpy as np
import torch

from utils.seeding import derive_seed, get_random_states, restore_random_states, seed_all


def test_different_keys_give_different_seeds():
    keys = [(), (0,), (0, 0), (1,), (1, 0), (1, 2), (2, 1), (1, 2, 0), (1, 2, 0, 0)] + [(1, 1, i) for i in range(500)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2 ** 63 for key in keys)


def test_seeds_do_not_change_between_versions():
    assert derive_seed(1, 2, 3) == 3462965343396296285


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_states_go_through_a_checkpoint(tmp_path):
    seed_all(5)
    draw()
    torch.save(get_random_states(), tmp_path / 'states.pth')
    expected = draw()
    seed_all(9)
    restore_random_states(torch.load(tmp_path / 'states.pth', weights_only=True))
    assert draw() == expected

"""Folders of runs, and runs that are interrupted within an epoch."""
import os

import pytest
import torch

import train as train_program
from processor.processor import Trainer


def only(folder):
    """The path of the one entry of a folder."""
    name, = os.listdir(folder)
    return os.path.join(folder, name)


def read_weights(folder, file='last.pth'):
    """The model's state dict in a checkpoint of a run."""
    return torch.load(os.path.join(folder, file), weights_only=True)['model']


def train_until_interrupted(command, folder, steps):
    """Train until a signal arrives in step ``steps``, and return the run's folder, the only one in ``folder``."""
    train_step, finished = Trainer.train_step, []

    def stop_after(self, *step):
        train_step(self, *step)
        finished.append(1)
        if len(finished) == steps:
            self.interrupt.signal_number = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'train_step', stop_after)
        with pytest.raises(SystemExit):
            train_program.main(command)
    return only(folder)


def assert_equal_weights(run, other):
    """Assert that two runs have the same ``last.pth`` to the last bit."""
    first, second = read_weights(run), read_weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

"""``--ema``: the moving average of the weights."""
import pytest
import torch

from processor.weight_average import WeightAverage
from utils.errors import UserError


def train(decay, steps=3):
    """A layer of which each step adds 1 to the weight, and its average. The bias is not trained."""
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(layer.weight)
    layer.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([layer.weight], lr=1.0)
    average = WeightAverage(layer, optimizer, decay)
    for _ in range(steps):
        layer.weight.grad = torch.full((1, 1), -1.0)
        optimizer.step()
    return layer, average


def test_each_update_moves_the_average():
    layer, average = train(decay=0.5)
    assert average.values.keys() == {'weight'}
    assert average.values['weight'].item() == 0.5 * (0.5 * (0.5 * 0 + 0.5 * 1) + 0.5 * 2) + 0.5 * 3


def test_the_model_has_the_average_inside_the_block_only():
    layer, average = train(decay=0.5)
    with pytest.raises(KeyError), average.applied():
        assert layer.weight.item() == 2.125
        raise KeyError
    assert layer.weight.item() == 3 and average.values['weight'].item() == 2.125


def test_without_a_decay_there_is_no_average():
    layer, average = train(decay=None)
    with average.applied():
        assert layer.weight.item() == 3
    assert average.state_dict() == {}


def test_a_stored_average_continues():
    _, average = train(decay=0.5)
    _, other = train(decay=0.5, steps=0)
    other.load(average.state_dict())
    assert torch.equal(other.values['weight'], average.values['weight'])
    _, other = train(decay=0.5)
    other.load({})      # of a run without an average
    assert other.values['weight'].item() == 3


@pytest.mark.parametrize('stored, message', [
    ([], 'the names in the checkpoint'), ({}, 'the names in the checkpoint'),
    ({'bias': torch.zeros(1)}, 'the names in the checkpoint'),
    ({'weight': torch.zeros(2)}, r'weight in the checkpoint must be a finite torch.float32 tensor of shape \[1, 1\]'),
    ({'weight': torch.full((1, 1), float('nan'))}, 'must be a finite'), ({'weight': 1.0}, 'must be a finite'),
    ({'weight': torch.zeros(1, 1, dtype=torch.float64)}, 'must be a finite')])
def test_a_broken_average_is_refused(stored, message):
    _, average = train(decay=0.5)
    with pytest.raises(UserError, match=message):
        average.load({'ema': stored})

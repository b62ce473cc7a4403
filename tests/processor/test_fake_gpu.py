"""Checks of GPU code without a GPU: every tensor of a step is on the model's device, and the host reads no value.

Complete steps (forward, backward, optimizer) run on the meta device, whose tensors have shapes and types but no
values. Without a driver, PyTorch's CUDA build cannot record gradients of fake CUDA tensors or index them. The meta
device has no autocast. Therefore only tests/processor/test_gpu.py tests half precision and the kernels.
"""
import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from processor.build import build_step
from processor.step import to_device
from solver import build_optimizer
from tests.support import golden_archive, golden_json, options, small_batch, small_model

# Without A2TE's attribute, which reads values on devices other than CUDA.
RECIPES = ['sdm+mlm+id', 'sdm+mlm+id+cmt', 'sdm+id+mlm+detail', 'sdm+mae+id+tri', 'sdm+itc+aux', 'itc+cmpm',
           'sdm+moco', 'tal+ccl+rematch']


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture
def without_autocast(monkeypatch):
    """The meta device has no autocast."""
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())


class NoDouble(TorchDispatchMode):
    """Raises if an operator returns float64 on the device, because Apple's GPUs have no float64."""

    def __torch_dispatch__(self, operator, types, inputs=(), settings=None):
        result = operator(*inputs, **(settings or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type == 'meta':
                assert value.dtype != torch.float64, f'{operator} returns float64'
        return result


def step_on_meta(archive, loss_names, **changes):
    model = small_model(archive, loss_names, **changes).train().to('meta')
    # SGD, because PyTorch's fused optimizers do not support the meta device.
    args = options(loss_names=loss_names, text_length=20, optimizer='SGD', **changes)
    step = build_step(model, build_optimizer(args, model), args.micro_batch)
    batch = small_batch()
    batch['caption_ids'] = model.trim_padding(batch['caption_ids'])
    on_host = model.prepare_on_host(batch)
    model.prepare_on_host, model.trim_padding = (lambda fields: {}), (lambda ids: ids)
    return step, to_device({**batch, **on_host}, 'meta')


@pytest.mark.parametrize('loss_names', RECIPES)
def test_a_complete_step_without_values(archive, without_autocast, loss_names):
    step, batch = step_on_meta(archive, loss_names, ccd='rematch' in loss_names)
    with NoDouble():
        results = step(batch)
    assert all(value.device.type == 'meta' for name, value in results.items() if name != 'temperature')
    gradients = [parameter.grad for parameter in step.model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.device.type == 'meta' for gradient in gradients)
    moments = [value for state in step.optimizer.state.values() for value in state.values() if value.ndim]
    assert all(value.device.type == 'meta' for value in moments)


@pytest.mark.parametrize('read', [float, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy])
def test_a_value_that_is_read_is_found(archive, without_autocast, read):
    step, batch = step_on_meta(archive, 'sdm')
    head, = step.model.heads
    forward = head.forward
    head.forward = lambda encoded, batch: {name: loss * read(loss.detach())
                                           for name, loss in forward(encoded, batch).items()}
    with pytest.raises((RuntimeError, TypeError)):      # NotImplementedError is a RuntimeError; numpy raises TypeError
        step(batch)


def test_a_tensor_left_on_the_cpu_is_found(archive, without_autocast):
    step, batch = step_on_meta(archive, 'sdm')
    head, = step.model.heads
    forward = head.forward
    head.forward = lambda encoded, batch: {name: (loss * torch.ones(2)).sum()
                                           for name, loss in forward(encoded, batch).items()}
    with pytest.raises(RuntimeError, match='device'):
        step(batch)

"""Devices by their names."""
import pytest
import torch

from utils import comm, precision
from utils.comm import pick_device
from utils.errors import UserError, run_program


@pytest.mark.parametrize('name', ['xpu', 'meta', 'hpu', 'gpu', 'cuda:x', 'cuda:-1', 'cpu:1', 'mps:1', '7', '', 'Cuda',
                                  'privateuseone'])
def test_an_unknown_device_is_a_sentence(name):
    with pytest.raises(UserError, match=f"unknown --device '{name}'; use auto, cpu, mps, cuda or cuda:<n>"):
        pick_device(name)


@pytest.mark.parametrize('name, count, message', [
    ('cuda', 0, '--device cuda: PyTorch sees no GPU here'), ('cuda:7', 0, '--device cuda:7: PyTorch sees no GPU here'),
    ('cuda:7', 2, '--device cuda:7: there are 2 GPUs, numbered from 0')])
def test_a_gpu_that_is_not_there_is_a_sentence(monkeypatch, name, count, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    with pytest.raises(UserError, match=message):
        pick_device(name)


def test_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert pick_device('mps') == torch.device('mps')
    monkeypatch.setattr(comm, 'get_world_size', lambda: 2)
    with pytest.raises(UserError, match='--device mps is one GPU, and torchrun started 2 processes'):
        pick_device('mps')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with pytest.raises(UserError, match='--device mps: PyTorch sees no Apple GPU here; use --device auto, cpu or cuda'):
        pick_device('mps')


def test_an_apple_gpu_computes_in_float32():
    mps = torch.device('mps')
    assert precision.amp_dtype('auto', mps) is None and precision.amp_dtype('off', mps) is None
    for choice in ('bf16', 'fp16'):
        with pytest.raises(UserError, match=f'--amp {choice}: --device mps computes in float32; use --amp off'):
            precision.amp_dtype(choice, mps)


def test_an_operator_that_an_apple_gpu_lacks_is_a_sentence(capsys):
    def main():
        raise NotImplementedError("The operator 'aten::linalg_qr' is not currently implemented for the MPS device. "
                                  'If you want this op ...')
    with pytest.raises(SystemExit) as left:
        run_program(main)
    assert left.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    assert 'PyTorch has no aten::linalg_qr for --device mps: set PYTORCH_ENABLE_MPS_FALLBACK=1' in line

"""Tests that need a GPU: no step waits for it, and its results are those of the CPU."""
import pytest
import torch

from model.build import total_loss
from processor.build import build_step
from solver import build_optimizer
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from datasets.device_augmentation import augment_on_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

RECIPES = ['sdm+mlm+id', 'sdm+mlm+id+cmt', 'sdm+id+amm+detail', 'sdm+mae+id+tri', 'sdm+itc+aux',
           'sdm+moco', 'tal+ccl+rematch']


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def new_step(archive, loss_names, device='cuda', **changes):
    model = small_model(archive, loss_names, **changes).train().to(device)
    args = options(loss_names=loss_names, text_length=20, **changes)
    return build_step(model, build_optimizer(args, model), args.micro_batch)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
@pytest.mark.parametrize('loss_names', RECIPES)
def test_no_step_waits_for_the_gpu(archive, loss_names, amp):
    step = new_step(archive, loss_names, amp=amp, ccd='rematch' in loss_names)
    batch = {name: value.pin_memory() for name, value in small_batch().items()}
    step(batch)     # the first step initializes libraries and the optimizer state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step(batch)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('settings', [{}, {'grad_checkpoint': True}, {'micro_batch': 2}, {'compile': True}])
def test_a_step_on_the_gpu_equals_one_on_the_cpu(archive, settings):
    batch, losses, weights = small_batch(), [], []
    for device in ('cpu', 'cuda'):
        changes = settings if device == 'cuda' else {}
        step = new_step(archive, 'sdm+mlm+id', device, amp='off', lr=1e-3, **changes)
        losses.append({name: float(value) for name, value in step(batch).items()})
        weights.append([parameter.detach().cpu() for parameter in step.model.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for one, other in zip(*weights):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_half_precision_is_near(archive, amp):
    batch = small_batch()
    full, half = (small_model(archive, 'sdm+mlm+id', amp=precision).cuda() for precision in ('off', amp))
    on_gpu = {name: value.cuda() for name, value in batch.items()}
    assert total_loss(half(on_gpu)).item() == pytest.approx(total_loss(full(on_gpu)).item(), rel=2e-2)


def test_images_are_augmented_on_the_gpu_as_on_the_cpu():
    images = torch.randint(0, 256, (4, 3, 96, 32), dtype=torch.uint8)
    params = torch.tensor([[0, 10, 10, 0, 0, 0, 0], [1, 0, 20, 5, 3, 30, 12], [1, 20, 0, 0, 0, 96, 32],
                           [0, 7, 13, 60, 20, 36, 12]])
    on_gpu, on_cpu = augment_on_device(images.cuda(), params.cuda()).cpu(), augment_on_device(images, params)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-6, atol=1e-6)


def test_less_memory(archive):
    peaks = []
    for settings in ({}, {'micro_batch': 8}, {'grad_checkpoint': True}):
        step = new_step(archive, 'sdm+mlm+id', **settings)
        batch = {name: value.repeat(8, *[1] * (value.ndim - 1)) for name, value in small_batch().items()}
        step(batch)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.6 * peaks[0] and peaks[2] < 0.8 * peaks[0]

"""The loss moco: a plain re-computation, its momentum encoder and queue, and its checkpoints."""
import math

import pytest
import torch
import torch.nn.functional as F

from model import build_model
from model.build import total_loss
from processor.step import Step
from tests.support import (assert_falls, compute_gradients, golden_archive, golden_json, options, small_batch,
                           small_model)
from utils.checkpoint import Checkpointer, init_from_checkpoint, load_weights
from utils.errors import UserError


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def make_step(model):
    return Step(model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3))


def unit(rows):
    return F.normalize(rows, dim=1)


@torch.no_grad()
def momentum_keys(model, batch):
    """The embeddings of a batch by the momentum encoder, of length 1: images and captions."""
    clip, ids = model.momentum.base_model, batch['caption_ids']
    captions = clip.encode_text(ids)[0][torch.arange(len(ids)), ids.argmax(dim=1)]
    return unit(clip.encode_image(batch['images'])[0][:, 0]), unit(captions)


def plain_loss(anchors, keys, queue, temperature):
    """Mean over the anchors: minus the logarithm of the own key's part of the exponentials of all keys."""
    losses = []
    for number, anchor in enumerate(anchors):
        terms = [math.exp(float(anchor @ key) / temperature) for key in (*keys, *queue)]
        losses.append(-math.log(terms[number] / sum(terms)))
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_a_plain_loop(archive):
    model = small_model(archive, 'moco', moco_queue=5, moco_momentum=0.5, moco_loss_weight=0.3, temperature=0.1).train()
    make_step(model)(small_batch(seed=1))       # the momentum encoder now differs from the encoders
    batch = small_batch()
    with torch.no_grad():
        images, captions = unit(model.encode_image(batch['images'])), unit(model.encode_text(batch['caption_ids']))
        loss = model(batch)['moco_loss'].item()
    image_keys, caption_keys = momentum_keys(model, batch)
    assert not torch.allclose(images, image_keys, atol=1e-3)
    both = (plain_loss(images, caption_keys, model.queue.texts, 0.1)
            + plain_loss(captions, image_keys, model.queue.images, 0.1))
    assert loss == pytest.approx(0.3 * both / 2, rel=1e-4)


@pytest.mark.parametrize('loss_names', ['moco', 'sdm+id+moco'])
def test_it_overfits_a_batch(archive, loss_names):
    model = small_model(archive, loss_names, temperature=0.1, moco_queue=3, moco_momentum=0.5).train()
    step, batch = make_step(model), small_batch()
    # The queue holds the samples of the last step as negatives, so the loss stays above 0.
    assert_falls((total_loss(step(batch)) for _ in range(60)), 0.5)


def test_micro_batches_give_the_gradients_of_the_batch(archive):
    gradients = []
    for micro_batch in (None, 4):
        model = small_model(archive, 'moco', moco_queue=3, temperature=0.1).train()
        compute_gradients(model, small_batch(), micro_batch)
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and not any('momentum' in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_momentum_encoder_starts_from_loaded_weights_and_follows_them(archive, tmp_path):
    model, other = small_model(archive, 'moco', moco_momentum=0.75), small_model(archive, 'sdm')
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    Checkpointer(other, save_dir=str(tmp_path), save_to_disk=True).save('best', epoch=1)
    init_from_checkpoint(model, str(tmp_path / 'best.pth'))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in model.momentum.state_dict().items())
    make_step(model)(small_batch())
    after = dict(model.backbone.named_parameters())
    for name, slow in model.momentum.named_parameters():
        torch.testing.assert_close(slow, 0.75 * before[name] + 0.25 * after[name], rtol=1e-5, atol=1e-7)


def test_the_queue_holds_the_newest_samples_first(archive):
    model, batch = small_model(archive, 'moco', moco_queue=8).train(), small_batch()
    expected, before = momentum_keys(model, batch)[0], model.queue.images.clone()
    make_step(model)(batch)
    torch.testing.assert_close(model.queue.images, torch.cat([expected, before])[:8])


def test_momentum_encoder_and_queue_are_in_last_and_not_in_best(archive, tmp_path):
    model, batch = small_model(archive, 'moco', moco_queue=8).train(), small_batch()
    step = make_step(model)
    step(batch)
    schedule = torch.optim.lr_scheduler.ConstantLR(step.optimizer)
    checkpointer = Checkpointer(model, step.optimizer, schedule, str(tmp_path), True)
    checkpointer.save('best', epoch=1)
    checkpointer.save('last', training_state=True, epoch=1, step=1)
    best, last = (torch.load(tmp_path / f'{name}.pth')['model'] for name in ('best', 'last'))
    assert {'queue.images', 'queue.texts', 'momentum.base_model.ln_final.weight'} <= set(last)
    assert last.keys() - best.keys() == model.training_only
    assert not any(name.startswith(('queue', 'momentum')) for name in best)
    load_weights(small_model(archive, 'moco', moco_queue=8), best)
    again = small_model(archive, 'moco', seed=1, moco_queue=8)
    load_weights(again, last, resumed=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(UserError, match='entries are missing .*(momentum|queue)'):
        load_weights(again, best, resumed=True)


def test_it_trains_on_other_backbones():
    model = build_model(options(backbone='aptm', pretrain_choice='scratch:aptm-tiny', loss_names='moco', moco_queue=3,
                                img_size=(96, 32), text_length=20), 4).train()
    batch, before = small_batch(), model.momentum.vision_proj.weight.clone()
    batch = {name: batch[name] for name in ('pids', 'image_ids', 'images', 'caption_ids')}
    batch['caption_ids'] = batch['caption_ids'].clamp(max=200)
    loss = total_loss(make_step(model)(batch))
    assert loss.isfinite() and not torch.equal(model.momentum.vision_proj.weight, before)

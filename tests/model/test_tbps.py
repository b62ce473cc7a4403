"""TBPS-CLIP's heads in a model; test_golden_method_losses.py has the reference values of the losses."""
import math

import pytest
import torch

from model import objectives
from processor.build import build_step
from solver.build import parameter_groups
from tests.support import golden_archive, golden_json, options, small_batch, small_model

NAMES = 'nitc+ritc+citc+ss'


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('tbps') / 'clip.pt')


def test_losses_are_those_of_the_batchs_views(archive):
    model, batch = small_model(archive, NAMES, mvs_image=True).eval(), small_batch()
    results = model(batch)
    with torch.no_grad():
        image, second = model.encode_image(batch['images']), model.encode_image(batch['second_images'])
        text, scale = model.encode_text(batch['caption_ids']), model.logit_scale.exp()
        views = [model.simclr_mlp(model.encode_image(view)) for view in batch['simclr_images'].unbind(1)]
    pids = batch['pids']
    nitc = [objectives.nitc(view, text, view, text, pids, scale=scale, alpha=0.5) for view in (image, second)]
    expected = {
        'nitc_loss': sum(nitc) / 2,
        'ritc_loss': objectives.ritc(image, text, pids, scale=scale), 'citc_loss': 0.1 * objectives.citc(image, text),
        'ss_loss': 0.4 * objectives.simclr(*views)}
    for name, value in expected.items():
        torch.testing.assert_close(results[name].detach(), value, msg=name)


def test_the_weight_of_soft_targets_rises_in_the_first_epoch(archive):
    nitc = small_model(archive, NAMES).heads[0]
    weights = []
    for epoch, step in ((1, 1), (1, 3), (1, 5), (2, 1), (3, 5)):
        nitc.before_step(epoch, step, 5)
        weights.append(nitc.alpha)
    assert weights == pytest.approx([0, 0.2, 0.4, 0.5, 0.5])


def test_dropout_of_the_text_encoder_is_drawn_again_and_only_in_training(archive):
    model, ids = small_model(archive, NAMES, text_dropout=0.05), small_batch()['caption_ids']
    assert {block.attn.dropout for block in model.base_model.transformer.resblocks} == {0.05}
    assert {block.attn.dropout for block in model.base_model.visual.transformer.resblocks} == {0.0}
    assert torch.equal(model.eval().encode_text(ids), model.encode_text(ids))
    assert not torch.equal(model.train().encode_text(ids), model.encode_text(ids))
    checkpointed = small_model(archive, NAMES, text_dropout=0.05, grad_checkpoint=True).train()
    batch, grads = small_batch(), []
    for each in (model, checkpointed):
        torch.manual_seed(3)
        sum(value for name, value in each(batch).items() if name.endswith('_loss')).backward()
        grads.append(each.base_model.token_embedding.weight.grad)
    torch.testing.assert_close(*grads)


def test_the_temperature_starts_at_the_value_of_the_archive(archive, tmp_path):
    weights = torch.load(archive)
    torch.save({**weights, 'logit_scale': torch.tensor(4.6)}, tmp_path / 'clip.pt')
    assert small_model(str(tmp_path / 'clip.pt'), NAMES).logit_scale.item() == pytest.approx(4.6)
    assert small_model(archive, NAMES).logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_only_matrices_have_weight_decay_and_all_have_one_learning_rate(archive):
    model = small_model(archive, NAMES)
    groups = parameter_groups(options(loss_names=NAMES, lr=1e-4, weight_decay=0.02, lr_rules='undecayed'), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {names[parameter] for group in groups if group['weight_decay'] for parameter in group['params']}
    assert {group['lr'] for group in groups} == {1e-4} and {group['weight_decay'] for group in groups} == {0.0, 0.02}
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim > 1}


@pytest.mark.parametrize('changes, split', [(dict(loss_names='nitc+ritc+citc'), True), (dict(loss_names=NAMES), False),
                                            (dict(loss_names='nitc', mvs_image=True), False)])
def test_micro_batches_are_unsupported_with_further_views(archive, changes, split):
    model = small_model(archive, **changes)
    assert all(head.micro_batch_unsupported() is None for head in model.heads) is split
    if split:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        expected, results = (build_step(model.eval(), optimizer, size)(small_batch()) for size in (None, 2))
        for name in expected:
            torch.testing.assert_close(results[name], expected[name], rtol=1e-4, atol=1e-5)

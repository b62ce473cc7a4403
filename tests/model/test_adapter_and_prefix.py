"""The tunings adapter and prefix against a plain re-computation, and what every tuning must do."""
import copy

import pytest
import torch
import torch.nn.functional as F

from model.build import total_loss
from model.clip_model import ResidualAttentionBlock
from model.tunings import registry
from processor.build import build_step
from solver import build_optimizer
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError

TUNINGS = sorted(set(registry()) - {'none'})
DEFAULTS = {'prefix_length': 3, 'lora_rank': 4, 'adapter_width': 16}
LEARNING_RATES = {'prefix': 0.1}    # of the overfitted batch; 0.01 for the others


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('clip') / 'clip.pt')


def tuned_model(archive, tuning, loss_names='sdm', **changes):
    return small_model(archive, loss_names, tuning=tuning, **{**DEFAULTS, **changes})


def compute_block(block, x, causal, scale=None):
    """A block of CLIP with adapter or prefix, written out in float64: [L, D] -> [L, D]."""
    double = copy.deepcopy(block).double()
    width, heads, length = x.shape[1], block.attn.heads, len(x)
    h = F.layer_norm(x, (width,), double.ln_1.weight, double.ln_1.bias)
    q, k, v = (h @ double.attn.in_proj_weight.T + double.attn.in_proj_bias).split(width, dim=1)
    open_places = torch.ones(length, length, dtype=torch.bool)
    if causal:
        open_places = open_places.tril()
    if hasattr(block, 'prefix_keys'):
        k, v = torch.cat([double.prefix_keys, k]), torch.cat([double.prefix_values, v])
        open_places = torch.cat([torch.ones(length, len(double.prefix_keys), dtype=torch.bool), open_places], dim=1)
    attended = []
    for part in range(heads):
        columns = slice(part * width // heads, (part + 1) * width // heads)
        scores = q[:, columns] @ k[:, columns].T / (width // heads) ** 0.5
        weights = scores.masked_fill(~open_places, -torch.inf).exp()
        attended.append(weights / weights.sum(1, keepdim=True) @ v[:, columns])
    x = x + double.attn.out_proj(torch.cat(attended, dim=1))
    h = double.mlp.c_fc(F.layer_norm(x, (width,), double.ln_2.weight, double.ln_2.bias))
    out = x + double.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    if hasattr(block, 'adapter'):
        out = out + scale * double.adapter.up(double.adapter.down(x).clamp(min=0))
    return out


@pytest.mark.parametrize('tuning', ['adapter', 'prefix'])
@pytest.mark.parametrize('causal', [False, True])
def test_a_block_computes_what_its_equation_says(tuning, causal, archive):
    model = tuned_model(archive, tuning, adapter_scale=0.7, adapter_width=5)
    generator = torch.Generator().manual_seed(1)
    for name in model.tuning.parameter_names:
        parameter = model.get_parameter(name)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    block = (model.base_model.transformer if causal else model.base_model.visual.transformer).resblocks[1]
    x = torch.randn(2, 7, block.width, generator=generator)
    for need_map in (False, True):
        out, attention = block(x, causal=causal, need_map=need_map)
        expected = torch.stack([compute_block(block, rows.double(), causal, 0.7) for rows in x])
        torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    assert attention.shape == (2, 7, 7)     # without the prefix
    sums = attention.sum(-1)
    assert (sums < 0.99).all() if tuning == 'prefix' else torch.allclose(sums, torch.ones(2, 7))


def test_an_adapter_adds_nothing_at_the_start(archive):
    plain, model, batch = small_model(archive, 'sdm'), tuned_model(archive, 'adapter'), small_batch(2)
    for side, inputs in (('encode_image', batch['images']), ('encode_text', batch['caption_ids'])):
        assert torch.equal(getattr(plain.eval(), side)(inputs), getattr(model.eval(), side)(inputs))


# -- every tuning ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('tuning', TUNINGS)
def test_each_tuning_overfits_a_batch_and_leaves_the_rest_alone(tuning, archive):
    model = tuned_model(archive, tuning, 'itc')
    args = options(loss_names='itc', tuning=tuning, lr=LEARNING_RATES.get(tuning, 0.01), optimizer='AdamW',
                   weight_decay=0.0)
    step, batch = build_step(model, build_optimizer(args, model)), small_batch(6, seed=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = [float(total_loss(step(dict(batch)))) for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= trained and len(changed) > 0.5 * len(trained)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)
    assert len(step.optimizer.state) <= len(trained)


@pytest.mark.parametrize('tuning', ['adapter', 'lora', 'prefix'])
@pytest.mark.parametrize('changes', [{'grad_checkpoint': True}, {'micro_batch': 2}])
def test_recomputation_and_micro_batches_give_the_same_gradients(tuning, changes, archive):
    gradients = []
    for settings in ({}, changes):
        model = tuned_model(archive, tuning, grad_checkpoint=settings.get('grad_checkpoint', False))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        step = build_step(model, torch.optim.SGD(trained, lr=0.0), settings.get('micro_batch'))
        step(small_batch())
        gradients.append([parameter.grad for parameter in trained])
    for whole, parts in zip(*gradients):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('tuning, reason', [('adapter', 'an adapter is not linear'),
                                            ('prefix', 'no weight computes its keys and values')])
def test_what_cannot_be_merged_says_why(tuning, reason, archive):
    model = tuned_model(archive, tuning)
    with pytest.raises(UserError, match=f'--merge: --tuning {tuning} cannot be merged, because {reason}'):
        model.tuning.merge(model.backbone)


@pytest.mark.parametrize('tuning', ['adapter', 'prefix'])
def test_other_backbones_are_refused(tuning):
    with pytest.raises(UserError, match=f'--tuning {tuning} does not fit --backbone open_clip: give --backbone clip'):
        options(tuning=tuning, backbone='open_clip', loss_names='itc')


@pytest.mark.parametrize('tuning', ['adapter', 'lora', 'prefix'])
def test_blocks_share_no_parameter(tuning, archive):
    model = tuned_model(archive, tuning)
    blocks = [part for part in model.modules() if isinstance(part, ResidualAttentionBlock)]
    assert len({type(block.tuning) for block in blocks}) == 1 and len(blocks) == 4
    owners = [name.split('resblocks.')[0] + name.split('resblocks.')[1][0] for name in model.tuning.parameter_names]
    assert len(set(owners)) == 4 and len({owners.count(owner) for owner in owners}) == 1

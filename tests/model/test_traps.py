"""Mistakes of a head's or a layer's author that would go unnoticed, and behavior that an author may rely on."""
import types

import pytest
import torch
from torch import nn

from model.build import total_loss
from model.clip_model import MLP
from model.head_registry import registry
from model.heads import Head
from model.heads.mlm import CrossEncoder
from solver.build import parameter_groups, parameter_settings
from tests.support import compute_gradients, golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


class FixedResults(Head):
    """A head that returns the results that its class names."""

    def __init__(self, args, model):
        super().__init__()

    def forward(self, encoded, batch):
        return {name: encoded.image.square().mean() for name in self.result_names}


@pytest.fixture
def register_head(monkeypatch):
    """``register_head('one', 'one_loss')`` registers a head with the name ``one`` that returns ``one_loss``."""
    def register(name, *result_names):
        head = type(name.title(), (FixedResults,), {'names': (name,), 'result_names': result_names})
        monkeypatch.setitem(registry(), name, head)
    return register


@pytest.mark.parametrize('micro_batch', [None, 4])
def test_two_heads_with_the_same_name_for_a_result(archive, register_head, micro_batch):
    register_head('one', 'one_loss', 'norm')
    register_head('two', 'two_loss', 'norm')
    model = small_model(archive, 'one+two')
    with pytest.raises(UserError, match="Two returns 'norm', which another head also returns"):
        compute_gradients(model, small_batch(), micro_batch)
    with pytest.raises(UserError, match="returns 'norm'"):
        model(small_batch())


def test_a_named_head_without_a_loss(archive, register_head):
    register_head('quiet', 'quiet_norm')
    for run in (compute_gradients, lambda model, batch: model(batch)):
        with pytest.raises(UserError, match="the loss 'quiet' is named in --loss_names, and .* only quiet_norm"):
            run(small_model(archive, 'sdm+quiet'), small_batch())


def test_a_head_that_options_enable_needs_no_loss(archive):
    assert 'aux_loss' not in compute_gradients(small_model(archive, 'sdm', php_parts='crfm'), small_batch())


def test_shared_parts_know_whether_they_are_training(archive):
    model = small_model(archive, 'mlm')
    cross = next(part for head in model.heads for part in head.children() if isinstance(part, CrossEncoder))
    assert model.train() and cross.training
    assert model.eval() and not cross.training


def lean_mlp():
    torch.manual_seed(0)
    mlp = MLP(8)
    mlp.lean = True
    return mlp


def test_the_lean_mlp_equals_its_layers():
    mlp, x = lean_mlp(), torch.randn(3, 8)
    torch.testing.assert_close(mlp(x), nn.Sequential.forward(mlp, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('part', ['c_fc', 'gelu', 'c_proj'])
@pytest.mark.parametrize('hook', ['register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook'])
def test_hooks_on_an_mlps_layers_are_called(part, hook):
    mlp, calls = lean_mlp(), []
    getattr(getattr(mlp, part), hook)(lambda *_: calls.append(1))
    mlp(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert calls == [1]


class LowRank(nn.Module):
    """A wrapper like LoRA's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + 1


@pytest.mark.parametrize('part', ['c_fc', 'c_proj'])
def test_wrapped_and_exchanged_layers_of_an_mlp_are_used(part):
    mlp, x = lean_mlp(), torch.randn(3, 8)
    before = mlp(x)
    setattr(mlp, part, LowRank(getattr(mlp, part)))
    assert (mlp(x) - before).abs().min() > 1e-3
    other = lean_mlp()
    layer = getattr(other, part)
    layer.forward = types.MethodType(lambda self, x: nn.Linear.forward(self, x) + 1, layer)
    torch.testing.assert_close(other(x), mlp(x))


def test_the_model_uses_lean_mlps(archive):
    model = small_model(archive, 'mlm')
    assert all(part.lean for part in model.modules() if isinstance(part, MLP))


# -- Learning rates

def rates(args, model):
    """{parameter name: learning rate}."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group['lr']
            for group in parameter_groups(args, model) for parameter in group['params']}


class Greedy(FixedResults):
    """A head that sets the learning rate of every parameter."""
    names, result_names = ('greedy',), ('greedy_loss',)

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        return 0.5, weight_decay

    def __init__(self, args, model):
        super().__init__(args, model)
        self.greedy_proj = nn.Linear(4, 4)


def test_a_new_head_does_not_change_other_learning_rates(archive, monkeypatch):
    args = options(loss_names='sdm+mlm+id', vocab_size=512)
    before = rates(args, small_model(archive, 'sdm+mlm+id'))
    monkeypatch.setitem(registry(), 'greedy', Greedy)
    assert rates(args, small_model(archive, 'sdm+mlm+id')) == before
    args = options(loss_names='sdm+mlm+id+greedy', vocab_size=512)
    after = rates(args, small_model(archive, 'sdm+mlm+id+greedy'))
    assert {name for name, rate in after.items() if rate == 0.5} == {'greedy_proj.weight', 'greedy_proj.bias'}
    assert {name: rate for name, rate in after.items() if rate != 0.5} == before


@pytest.mark.parametrize('name', [
    'layers.0.attn.relative_position_bias_table', 'encoder.crossattention.self.query.weight',
    'my_classifier_notes.weight', 'across.weight'])
def test_rules_cover_only_the_published_names(name):
    args = options(loss_names='sdm')
    assert parameter_settings(name, args) == (args.lr, args.weight_decay)


def test_a_head_sets_the_learning_rate_of_its_shared_parts(archive, monkeypatch):
    from model.heads.mlm import MLM

    def learning_rate(name, lr, weight_decay, args):
        return (0.25, weight_decay) if name.startswith('ln_post') else (lr, weight_decay)
    monkeypatch.setattr(MLM, 'learning_rate', staticmethod(learning_rate))
    args = options(loss_names='sdm+mlm', vocab_size=512)
    by_name = rates(args, small_model(archive, 'sdm+mlm'))
    assert {name for name, rate in by_name.items() if rate == 0.25} == {'ln_post.weight', 'ln_post.bias'}


def test_captions_may_begin_with_the_word_that_has_id_0(archive):
    """`!` has the id of the padding, so the position of the end token gives a caption's length."""
    model = small_model(archive, 'sdm').eval()
    ids = torch.zeros(2, 20, dtype=torch.long)
    ids[0, :12] = torch.tensor([510, *[0] * 10, 511])     # exclamation marks only
    ids[1, :3] = torch.tensor([510, 5, 511])
    assert model.trim_padding(ids).shape[1] == 16
    torch.testing.assert_close(model.encode_text(model.trim_padding(ids)), model.encode_text(ids), rtol=1e-5, atol=1e-6)


def test_a_step_without_micro_batches_equals_forward_and_backward(archive):
    for names in ('sdm+mlm+id', 'sdm+id+amm+detail', 'sdm+mae+id+tri', 'sdm+itc+aux'):
        gradients = []
        for run in (compute_gradients, lambda model, batch: total_loss(model(batch)).backward()):
            model = small_model(archive, names)
            torch.manual_seed(4)
            run(model, small_batch())
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                              if parameter.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0]), names

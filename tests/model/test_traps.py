"""What a head's or a layer's author may get wrong, or rely on, without anybody noticing."""
import types

import pytest
import torch
from torch import nn

from model.build import total_loss
from model.clip_model import MLP
from model.heads import Head, registry
from model.heads.mlm import CrossEncoder
from processor.step import compute_gradients
from solver.build import parameter_groups, parameter_settings
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


class Saying(Head):
    """A head that returns what its class says."""

    def __init__(self, args, model):
        super().__init__()

    def forward(self, encoded, batch):
        return {name: encoded.image.square().mean() for name in self.says}


@pytest.fixture
def saying(monkeypatch):
    """``saying('one', 'one_loss')`` registers a head for the loss name ``one`` that returns ``one_loss``."""
    def register(name, *says):
        monkeypatch.setitem(registry(), name, type(name.title(), (Saying,), {'names': (name,), 'says': says}))
    return register


@pytest.mark.parametrize('micro_batch', [None, 4])
def test_two_heads_with_the_same_name_for_a_result(archive, saying, micro_batch):
    saying('one', 'one_loss', 'norm')
    saying('two', 'two_loss', 'norm')
    model = small_model(archive, 'one+two')
    with pytest.raises(UserError, match="Two returns 'norm', which another head returns too"):
        compute_gradients(model, small_batch(), micro_batch)
    with pytest.raises(UserError, match="returns 'norm'"):
        model(small_batch())


def test_a_named_head_without_a_loss(archive, saying):
    saying('quiet', 'quiet_norm')
    for run in (compute_gradients, lambda model, batch: model(batch)):
        with pytest.raises(UserError, match="the loss 'quiet' is named in --loss_names, and .* only quiet_norm"):
            run(small_model(archive, 'sdm+quiet'), small_batch())


def test_a_head_that_options_ask_for_needs_no_loss(archive):
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


def test_the_lean_mlp_computes_what_its_layers_do():
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
    """A wrapper as LoRA's."""

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


# -- learning rates ------------------------------------------------------------------------------------------------------

def rates(args, model):
    """{parameter name: its lr}"""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group['lr'] for group in parameter_groups(args, model) for parameter in group['params']}


class Greedy(Saying):
    """Claims a rate for every parameter there is."""
    names, says = ('greedy',), ('greedy_loss',)

    @staticmethod
    def learning_rate(name, lr, weight_decay, args):
        return 0.5, weight_decay

    def __init__(self, args, model):
        super().__init__(args, model)
        self.greedy_proj = nn.Linear(4, 4)


def test_a_new_file_changes_nobody_elses_learning_rates(archive, monkeypatch):
    args = options(loss_names='sdm+mlm+id', vocab_size=512)
    before = rates(args, small_model(archive, 'sdm+mlm+id'))
    monkeypatch.setitem(registry(), 'greedy', Greedy)
    assert rates(args, small_model(archive, 'sdm+mlm+id')) == before
    args = options(loss_names='sdm+mlm+id+greedy', vocab_size=512)
    found = rates(args, small_model(archive, 'sdm+mlm+id+greedy'))
    assert {name for name, rate in found.items() if rate == 0.5} == {'greedy_proj.weight', 'greedy_proj.bias'}
    assert {name: rate for name, rate in found.items() if rate != 0.5} == before


@pytest.mark.parametrize('name', ['layers.0.attn.relative_position_bias_table', 'encoder.crossattention.self.query.weight',
                                  'my_classifier_notes.weight', 'across.weight'])
def test_rules_are_of_the_published_names_alone(name):
    args = options(loss_names='sdm')
    assert parameter_settings(name, args) == (args.lr, args.weight_decay)


def test_a_head_gets_its_shared_parts_asked_about(archive, monkeypatch):
    from model.heads.mlm import MLM
    monkeypatch.setattr(MLM, 'learning_rate', staticmethod(
        lambda name, lr, weight_decay, args: (0.25, weight_decay) if name.startswith('ln_post') else (lr, weight_decay)))
    args = options(loss_names='sdm+mlm', vocab_size=512)
    found = rates(args, small_model(archive, 'sdm+mlm'))
    assert {name for name, rate in found.items() if rate == 0.25} == {'ln_post.weight', 'ln_post.bias'}


def test_captions_may_begin_with_the_word_that_has_id_0(archive):
    """`!` has the id that pads: a caption's length is its end's place."""
    model = small_model(archive, 'sdm').eval()
    ids = torch.zeros(2, 20, dtype=torch.long)
    ids[0, :12] = torch.tensor([510, *[0] * 10, 511])     # nothing but exclamation marks
    ids[1, :3] = torch.tensor([510, 5, 511])
    assert model.trim_padding(ids).shape[1] == 16
    torch.testing.assert_close(model.encode_text(model.trim_padding(ids)), model.encode_text(ids), rtol=1e-5, atol=1e-6)


def test_a_step_in_one_piece_is_the_models_own(archive):
    for names in ('sdm+mlm+id', 'sdm+id+amm+detail', 'sdm+mae+id+tri', 'sdm+itc+aux'):
        found = []
        for run in (lambda model, batch: compute_gradients(model, batch), lambda model, batch: total_loss(model(batch)).backward()):
            model = small_model(archive, names)
            torch.manual_seed(4)
            run(model, small_batch())
            found.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0]), names

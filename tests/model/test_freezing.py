"""``--freeze``: parameters whose names match a pattern keep their values, in every kind of training step."""
import pytest
import torch

from processor.build import build_step
from processor.weight_average import WeightAverage
from solver import build_optimizer
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils.checkpoint import frozen_encoder_names
from utils.errors import UserError

IMAGE, TEXT = 'base_model.visual.', 'base_model.transformer.resblocks.'


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def train(archive, freeze, loss_names='sdm+id', step_settings=None, **settings):
    """Train two batches: (model, its values before, its optimizer)."""
    settings = {'freeze': freeze, **settings}
    model = small_model(archive, loss_names, **settings).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(options(loss_names=loss_names, lr=1e-2, weight_decay=0.1, **settings), model)
    step = build_step(model, optimizer, **(step_settings or {}))
    for number in range(2):
        step(small_batch(seed=number))
    step.update()
    return model, before, optimizer


def unchanged_names(model, before):
    return {name for name, value in model.named_parameters() if torch.equal(value, before[name])}


CASES = {'the image encoder': (['visual.*'], {}, (IMAGE,)),
         'with the prefix of its names': (['base_model.visual.*'], {}, (IMAGE,)),
         'a block and a head': (['transformer.resblocks.[1-9].*', 'classifier.*'], {}, (f'{TEXT}1.', 'classifier.')),
         'gradient checkpointing': (['visual.*'], {'grad_checkpoint': True}, (IMAGE,)),
         'micro batches': (['visual.*'], {'step_settings': {'micro_batch': 2}}, (IMAGE,)),
         'both encoders in micro batches': (['base_model.*'], {'step_settings': {'micro_batch': 2}}, ('base_model.',)),
         'accumulation': (['visual.*'], {'step_settings': {'accumulate': 2}}, (IMAGE,))}


@pytest.mark.parametrize('case', CASES)
def test_frozen_parameters_keep_their_values(archive, case):
    freeze, settings, prefixes = CASES[case]
    model, before, optimizer = train(archive, freeze, **settings)
    frozen = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert frozen == model.frozen_names and unchanged_names(model, before) == frozen
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    parameters = dict(model.named_parameters())
    assert optimized == {id(value) for name, value in parameters.items() if name not in frozen}
    assert all(parameters[name].grad is None and parameters[name] not in optimizer.state for name in frozen)
    assert frozen.isdisjoint(WeightAverage(model, optimizer, 0.9).values)


def test_groups_of_other_parameters_stay(archive):
    def settings_by_name(freeze):
        model, _, optimizer = train(archive, freeze)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {names[id(parameter)]: (group['lr'], group['weight_decay'])
                for group in optimizer.param_groups for parameter in group['params']}
    some, all_settings = settings_by_name(['visual.*']), settings_by_name(None)
    assert len(some) < len(all_settings) and some.items() <= all_settings.items()


def test_a_part_of_a_tuning_is_frozen_and_saved(archive):
    model, before, _ = train(archive, ['visual.*'], 'sdm', tuning='lora')
    added = set(model.tuning.parameter_names)
    assert model.frozen_names == {name for name in added if name.startswith(IMAGE)} != set()
    assert model.frozen_names <= unchanged_names(model, before) and added - unchanged_names(model, before)
    assert frozen_encoder_names(model).isdisjoint(added)     # best.pth holds what the base's file lacks


def test_a_frozen_batch_norm_keeps_its_statistics(archive):
    for freeze, is_frozen in ((['base_model.*'], False), (['base_model.*', '*_emb_layer.mlp.*'], True)):
        model, before, _ = train(archive, freeze, 'tal+tse', tse_mode='train')
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
        assert norms and all(norm.training is not is_frozen for norm in norms)
        statistics = [name for name in before if name.endswith('bns.0.running_mean')]
        assert statistics and all(torch.equal(model.state_dict()[name], before[name]) is is_frozen
                                  for name in statistics)


@pytest.mark.parametrize('pattern, message', [
    ('visul.*', "--freeze 'visul.*' matches no parameter; did you mean visual.*?"),
    ('visual', "--freeze 'visual' matches no parameter; did you mean visual.*?"),
    ('transformer.resblocks.7.*', 'did you mean transformer.resblocks.[01].*?'),
    ('image_encoder.layer4', 'matches no parameter; the model has base_model.*, classifier.*, ln_final.*, ')])
def test_a_pattern_without_a_match_names_the_nearest(archive, pattern, message):
    with pytest.raises(UserError) as error:
        small_model(archive, 'sdm+id', freeze=['classifier.*', pattern])
    start, _, end = message.partition('[01]')
    assert start in str(error.value) and end in str(error.value)


def test_nothing_left_to_train_is_one_sentence(archive):
    with pytest.raises(UserError, match=r"no parameter trains: --freeze \* freezes all of them: leave out a pattern"):
        train(archive, ['*'])
    model = small_model(archive, 'sdm', freeze=['*']).train()
    model.unread = torch.nn.Parameter(torch.zeros(1))
    for micro_batch in (None, 2):
        with pytest.raises(UserError, match='no loss depends on a parameter that trains: change --freeze'):
            build_step(model, torch.optim.SGD([model.unread], lr=1.0), micro_batch)(small_batch())

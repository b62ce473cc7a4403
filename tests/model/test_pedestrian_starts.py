"""Runs that start from weights that were pretrained on generated pedestrians (NAM, HAM, GA-DMS).

They come in several layouts, and start a run by --init_from or --pretrain_choice.
"""
import pytest
import torch

from model import build_model
from tests.support import options, small_archive
from utils.checkpoint import init_from_checkpoint
from utils.errors import UserError
from utils.options import get_args

SIZES = dict(img_size=(64, 32), cmt_depth=1, loss_names='sdm+mlm+id')


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return small_archive(tmp_path_factory.mktemp('clip') / 'clip.pt')


def irra(clip, seed, identities=6, **changes):
    torch.manual_seed(seed)
    return build_model(options(pretrain_choice=clip, **{**SIZES, **changes}), identities)


@pytest.fixture(scope='module')
def pretrained(clip):
    """A model that has learned something else: on pairs, each an identity of its own."""
    model = irra(clip, seed=5, identities=50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model.state_dict()


def of_clip(weights):
    return {
        name.removeprefix('base_model.'): value for name, value in weights.items() if name.startswith('base_model.')
    }


LAYOUTS = {
    "IRRA's checkpoint": lambda weights: {'model': weights, 'epoch': 30},
    'trained on several GPUs': lambda weights: {
        'model': {f'module.{name}': value for name, value in weights.items()},
        'epoch': 3,
    },
    "IRRA's with what nothing reads": lambda weights: {'model': {**weights, 'base_model.logit_scale': torch.ones(())}},
    'a state dict': lambda weights: dict(weights),
    'under state_dict': lambda weights: {
        'state_dict': {f'module.{name}': value for name, value in weights.items()},
        'epoch': 1,
    },
    'half precision': lambda weights: {'model': {name: value.half() for name, value in weights.items()}},
    'with heads of its own': lambda weights: {'model': {**weights, 'mask_head.weight': torch.ones(3, 3)}},
    "CLIP's": lambda weights: of_clip(weights),
    "CLIP's, under state_dict": lambda weights: {
        'state_dict': {f'module.{name}': value for name, value in of_clip(weights).items()}
    },
    "CLIP's with its temperature": lambda weights: {**of_clip(weights), 'logit_scale': torch.ones(())},
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_run_starts_from_each_layout(pretrained, clip, tmp_path, layout):
    path = str(tmp_path / 'ham.pth')
    torch.save(LAYOUTS[layout](pretrained), path)
    begun = irra(clip, seed=7)
    classifier = begun.classifier.weight.clone()
    init_from_checkpoint(begun, path)
    chosen = irra(path, seed=7)
    for model in (begun, chosen):
        for name, value in of_clip(model.state_dict()).items():
            assert torch.allclose(
                value, pretrained[f'base_model.{name}'], atol=2e-3 if layout == 'half precision' else 0
            ), name
    # for other identities: re-created
    assert torch.equal(begun.classifier.weight, classifier)
    with_heads = not layout.startswith("CLIP's")
    assert (
        torch.allclose(begun.cross_attn.in_proj_weight, pretrained['cross_attn.in_proj_weight'], atol=2e-3)
        == with_heads
    )


def test_a_clip_of_another_resolution_is_for_pretrain_choice(clip):
    """The archive's own grid is 4 x 4, and the run's is 4 x 2."""
    with pytest.raises(UserError, match='another encoder.*--img_size.*is for --pretrain_choice'):
        init_from_checkpoint(irra(clip, seed=7), clip)


@pytest.mark.parametrize('dataset', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
def test_the_recipe_changes_what_hams_readme_does(dataset):
    plain, ham = (vars(get_args(['--config_file', f'configs/irra{ending}.yaml', '--dataset_name', dataset]))
                  for ending in ('', '-ham'))
    differing = {name for name in plain if plain[name] != ham[name]} - {'config_file', 'name'}
    assert differing == {'lr', 'batch_size'} and (ham['lr'], ham['batch_size']) == (5e-6, 128)

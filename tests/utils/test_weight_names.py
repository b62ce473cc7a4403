"""Prefixes that wrappers and training code add to all names of a state dict are stripped if the names then fit."""
import pytest
import torch
from torch import nn

from model.aptm_weights import read_weights
from model.clip_weights import build_clip
from tests.support import small_archive, small_model
from utils.checkpoint import Checkpointer, load_weights, read_checkpoint, init_from_checkpoint
from utils.errors import UserError
from utils.weight_names import is_known, to_own_names, strip_prefixes

PREFIXES = ['_orig_mod.', 'module.', 'model.', 'student.', 'net.', 'module._orig_mod.', '_orig_mod.module.',
            'module.module.',
            'model.student.model.']


def prefixed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return small_archive(tmp_path_factory.mktemp('clip') / 'clip.pt')


@pytest.fixture(scope='module')
def trained(clip):
    return small_model(clip, 'sdm+id', img_size=(64, 32), text_length=77)


@pytest.mark.parametrize('prefix', PREFIXES)
def test_a_prefix_before_all_names_of_a_run_is_stripped_and_said(trained, tmp_path, caplog, prefix):
    path = str(tmp_path / 'best.pth')
    torch.save({'model': prefixed(trained.state_dict(), prefix), 'epoch': 3}, path)
    with caplog.at_level('INFO', logger='Pedestal'):
        weights = read_checkpoint(path)['model']
    assert same(weights, trained.state_dict())
    assert caplog.text.count(path) == 1 and all(f'{part}.' in caplog.text for part in prefix.split('.') if part)


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('layout', [
    dict, lambda weights: {name if name.startswith('visual.') else f'text.{name}': value for name,
                           value in weights.items()},
    lambda weights: {name if name.startswith('visual.') else f'encode_text.{name}': value for name,
                     value in weights.items()}])
def test_a_prefix_before_all_names_of_a_clip_is_stripped(clip, tmp_path, prefix, layout):
    weights, path = torch.load(clip), str(tmp_path / 'prefixed.pt')
    torch.save({'state_dict': prefixed(layout(weights), prefix)}, path)
    assert same(build_clip(path, (64, 64), 16).state_dict(), weights)


def test_a_prefix_before_the_names_of_aptms_and_albefs_parts(tmp_path):
    for layout in ({'bert.embeddings.word_embeddings.weight': torch.zeros(2)},
                   {'patch_embed.proj.weight': torch.zeros(2)},
                   {'vision_encoder.norm.weight': torch.zeros(2), 'temp': torch.zeros(())},
                   {'visual_encoder.norm.weight': torch.zeros(2), 'temp': torch.zeros(())}):
        torch.save({'model': prefixed(layout, 'student.module.')}, tmp_path / 'weights.pth')
        assert read_weights(str(tmp_path / 'weights.pth')).keys() == layout.keys()


def test_what_torch_compile_puts_into_names_is_dropped():
    """One part of the model was compiled separately."""
    weights = {'base_model._orig_mod.visual.proj': 1, 'classifier.weight': 2}
    assert to_own_names(weights) == {'base_model.visual.proj': 1, 'classifier.weight': 2}


@pytest.mark.parametrize('names', [
    ['student.visual.proj', 'teacher.visual.proj'],                    # not a common prefix
    ['student.conv.weight', 'student.fc.weight'],                      # no known names
    ['base_model.visual.proj', 'base_model.ln_final.weight'],          # a run without heads
    ['text.ln_final.weight', 'text.text_projection'], ['student'], ['model.', 'model.visual.proj'], []])
def test_other_names_stay(names, caplog):
    weights = dict.fromkeys(names, 0)
    with caplog.at_level('INFO', logger='Pedestal'):
        assert list(strip_prefixes(weights, is_known)) == names
    assert not caplog.text


def test_names_that_would_become_one_stay():
    weights = {'visual.proj': 1, '_orig_mod.visual.proj': 2}
    assert strip_prefixes(weights, is_known) == weights


class Unknown(nn.Module):
    """An unknown family whose only part is named like a prefix."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({'visual': nn.Linear(3, 2), 'text': nn.Linear(3, 2)})


def test_names_of_a_family_of_ones_own(tmp_path):
    model, other = Unknown(), Unknown()
    load_weights(other, prefixed(model.state_dict(), 'student.module.'))
    assert same(other.state_dict(), model.state_dict())
    Checkpointer(model, save_dir=str(tmp_path), save_to_disk=True).save('best', epoch=1, val_dataset='test')
    assert same(read_checkpoint(str(tmp_path / 'best.pth'))['model'], model.state_dict())
    with pytest.raises(UserError, match='do not|does not fit'):
        load_weights(Unknown(), prefixed(nn.Linear(3, 2).state_dict(), 'student.'))


def test_a_new_run_starts_from_prefixed_weights(trained, clip, tmp_path):
    torch.save({'model': prefixed(trained.state_dict(), '_orig_mod.model.')}, tmp_path / 'best.pth')
    begun = small_model(clip, 'sdm+id', seed=3, img_size=(64, 32), text_length=77)
    init_from_checkpoint(begun, str(tmp_path / 'best.pth'))
    assert same(begun.state_dict(), trained.state_dict())

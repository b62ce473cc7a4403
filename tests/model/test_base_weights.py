"""The base of a tuned run: which file it is, and the name under which it is found again."""
import os
import shutil

import pytest
import torch

from model import clip_weights
from model.base_weights import add_base_weights, describe_base
from tests.support import golden_archive, golden_json, options
from utils.errors import UserError
from utils.weight_files import compute_sha256


@pytest.fixture
def archive(tmp_path):
    return golden_archive(golden_json('irra_tiny'), tmp_path / 'clip.pt')


def describe(choice, **changes):
    return describe_base(options(loss_names='sdm', tuning='lora', pretrain_choice=choice, **changes))


def test_a_name_stays_and_a_relative_path_becomes_absolute(archive, tmp_path, monkeypatch):
    sha256 = compute_sha256(archive)
    monkeypatch.setenv('HOME', str(tmp_path))
    os.makedirs(tmp_path / '.cache' / 'clip')
    shutil.copyfile(archive, tmp_path / '.cache' / 'clip' / 'ViT-B-16.pt')
    monkeypatch.setitem(clip_weights.OPENAI_SHA256, 'ViT-B/16', sha256)
    monkeypatch.chdir(tmp_path)
    assert describe('ViT-B/16') == {'name': 'ViT-B/16', 'sha256': sha256}
    assert describe('clip.pt') == {'name': archive, 'sha256': sha256}
    assert describe('~/clip.pt') == {'name': '~/clip.pt', 'sha256': sha256}
    assert describe('ViT-B/16', init_from='clip.pt') == {'name': archive, 'sha256': sha256}


def test_no_base_is_named_if_it_cannot_be_read_again(tmp_path):
    """A foreign TorchScript archive needs --trust_archive, which only the command line can give."""
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / 'foreign.pt')
    assert describe(str(tmp_path / 'foreign.pt')) is None
    assert describe('scratch:tiny') is None


def test_a_checkpoint_without_a_tuning_is_returned_unchanged():
    checkpoint = {'model': {'classifier.weight': torch.ones(1)}}
    assert add_base_weights(checkpoint, options(tuning='lora'), 'best.pth') is checkpoint


def test_another_tuning_is_refused():
    tuned = {'model': {}, 'tuning': {'name': 'prefix', 'base': None, 'is_whole': True}}
    with pytest.raises(UserError, match='^best.pth was tuned with --tuning prefix, and the options have --tuning lora'):
        add_base_weights(tuned, options(tuning='lora'), 'best.pth')

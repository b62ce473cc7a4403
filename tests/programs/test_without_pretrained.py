"""Runs that start from a checkpoint, or resume one, read nothing of --pretrain_choice and need no network."""
import glob
import os
import shutil

import pytest
import torch
import yaml

import train as train_program
from model import build_model, clip_weights
from model.aptm_weights import swin_file
from tests.support import SMALL_VOCABULARY, options, small_archive, small_model
from tests.model.test_aptm import tiny
from utils.checkpoint import read_checkpoint, init_from_checkpoint
from utils.errors import UserError

SIZES = dict(img_size=(64, 32), text_length=77, vocab_size=SMALL_VOCABULARY, cmt_depth=1)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """OpenAI's ViT-B/16 in a small shape, and no way to its weights."""
    def refuse(*_, **__):
        raise AssertionError('the pretrained weights were asked for')
    shapes = tmp_path / 'shapes'
    shapes.mkdir()
    (shapes / 'ViT-B-16.yaml').write_text(
        'embed_dim: 64\nimage_resolution: 64\nvision_layers: 1\nvision_width: 64\nvision_patch_size: 16\n'
        'text_length: 77\n'
        f'vocab_size: {SMALL_VOCABULARY}\ntext_width: 64\ntext_layers: 1\n')
    monkeypatch.setattr(clip_weights, 'SHAPES_FOLDER', str(shapes))
    monkeypatch.setattr(clip_weights, 'openai_file', refuse)


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return small_archive(tmp_path_factory.mktemp('clip') / 'clip.pt')


def replaced(choice, path, loss_names='sdm+id', **changes):
    """A model of seed 3 that starts from the checkpoint ``path``."""
    torch.manual_seed(3)
    settings = dict(loss_names=loss_names, pretrain_choice=choice, init_from=path, **SIZES)
    model = build_model(options(**{**settings, **changes}), 9, weights_to_load=read_checkpoint(path)['model'])
    init_from_checkpoint(model, path)
    return model


def saved(model, path, change=lambda weights: weights):
    torch.save({'model': change(model.state_dict())}, path)
    return str(path)


@pytest.mark.parametrize('choice', ['ViT-B/16', '/gone/clip.pt'])
def test_init_from_gives_the_same_model_without_the_weights(archive, offline, tmp_path, choice):
    """The new classifier has the random numbers that it has if the weights are read."""
    path = saved(small_model(archive, 'sdm+id+mlm', seed=1, **SIZES), tmp_path / 'best.pth')
    torch.manual_seed(3)
    expected = build_model(options(loss_names='sdm+id+mlm', pretrain_choice=archive, **SIZES), 9)
    drawn = torch.rand(1)
    init_from_checkpoint(expected, path)
    model = replaced(choice, path, 'sdm+id+mlm', text_dropout=0.05)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert {block.attn.dropout for block in model.base_model.transformer.resblocks} == {0.05}
    torch.manual_seed(3)
    build_model(options(loss_names='sdm+id+mlm', pretrain_choice=choice, init_from=path, **SIZES), 9,
                weights_to_load=read_checkpoint(path)['model'])
    assert torch.equal(torch.rand(1), drawn)


def test_a_clips_own_weights_replace_them_too(archive, offline, tmp_path):
    weights = small_model(archive, 'itc', seed=1, **SIZES).state_dict()
    torch.save({name.removeprefix('base_model.'): value for name, value in weights.items()}, tmp_path / 'ham.pth')
    model = replaced('ViT-B/16', str(tmp_path / 'ham.pth'), 'itc')
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_learned_temperature_that_the_checkpoint_lacks_comes_from_the_weights(archive, offline, tmp_path):
    torch.save({**torch.load(archive), 'logit_scale': torch.tensor(4.2)}, tmp_path / 'clip.pt')
    source = small_model(archive, 'nitc+ritc', seed=1, **SIZES)
    expected = saved(source, tmp_path / 'tbps.pth')
    without = saved(source, tmp_path / 'irra.pth', lambda weights: {
        name: value for name, value in weights.items() if name != 'logit_scale'})
    assert torch.equal(replaced('ViT-B/16', expected, 'nitc+ritc').logit_scale, source.logit_scale)
    assert replaced(str(tmp_path / 'clip.pt'), without, 'nitc+ritc').logit_scale.item() == pytest.approx(4.2)
    with pytest.raises(AssertionError, match='were asked for'):
        replaced('ViT-B/16', without, 'nitc+ritc')


def test_what_does_not_fit_is_refused_as_before(archive, offline, tmp_path):
    path = saved(small_model(archive, 'sdm+id', seed=1, **SIZES), tmp_path / 'best.pth')
    with pytest.raises(UserError, match='another encoder than the options describe.*positional_embedding'):
        replaced('ViT-B/16', path, img_size=(64, 64))
    with pytest.raises(UserError, match='another encoder than the options describe'):
        replaced('ViT-B/16', saved(small_model(archive, 'sdm', **SIZES), tmp_path / 'cut.pth', lambda weights: {
            name: value for name, value in weights.items() if 'ln_final' not in name}))
    with pytest.raises(UserError,
                       match='aptm.pth holds a model with --backbone aptm, and the options have --backbone clip'):
        replaced('ViT-B/16', saved(tiny('itc'), tmp_path / 'aptm.pth'))


@pytest.mark.parametrize('name, shape, message', [
    ('text_projection', (64,), 'is no CLIP that Pedestal knows: its tensors have other dimensions'),
    ('visual.conv1.weight', (0, 3, 16, 16), 'is no CLIP that Pedestal knows: its tensors have other dimensions'),
    ('ln_final.weight', (6400,), r'does not hold the parameters of a CLIP.*\[64, 64\] for \[6400, 64\]'),
    ('visual.conv1.weight', (100, 3, 16, 16), 'a transformer of width 100 cannot be divided into heads of 64')])
def test_weights_that_do_not_fit_each_other_are_one_sentence(archive, tmp_path, name, shape, message):
    path = saved(small_model(archive, 'sdm', **SIZES), tmp_path / 'spoilt.pth', lambda weights: {
        **weights, f'base_model.{name}': torch.zeros(shape)})
    with pytest.raises(UserError, match=message):
        replaced('/gone/clip.pt', path)


def test_aptms_weights_are_not_asked_for_either(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(UserError, match='no weights of Swin-B'):
        swin_file()
    source = tiny('itc+itm')
    path = saved(source, tmp_path / 'checkpoint_best.pth')
    args = options(backbone='aptm', loss_names='itc+itm', pretrain_choice='aptm-base', init_from=path,
                   img_size=(96, 32), text_length=20)
    model = build_model(args, 1, weights_to_load=read_checkpoint(path)['model'])
    init_from_checkpoint(model, path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in source.state_dict().items())


# -- the program -----------------------------------------------------------------------------------------------------

def gone(run, folder, **changes):
    """A copy of a run in the reference layout. Its pretrained weights are OpenAI's, and they are missing."""
    os.makedirs(folder)
    with open(run) as file:
        config = yaml.safe_load(file)
    config.update(pretrain_choice='ViT-B/16', **changes)
    (folder / 'configs.yaml').write_text(yaml.safe_dump(config))
    return folder


def test_a_released_run_is_resumed_and_started_from_offline(trained, offline, tmp_path, capsys):
    run = gone(trained, tmp_path / 'released')
    ours = read_checkpoint(os.path.join(os.path.dirname(trained), 'last.pth'))
    moments = {number: {'step': torch.tensor(2.0), 'exp_avg': torch.zeros_like(value),
                        'exp_avg_sq': torch.zeros_like(value)} for number, value in enumerate(ours['model'].values())}
    torch.save({'model': ours['model'], 'epoch': 1, 'scheduler': {'last_epoch': 1}, 'optimizer': {
        'state': moments, 'param_groups': [{'params': [number], 'lr': 1e-3} for number in moments]}}, run / 'best.pth')
    train_program.main(['--resume', str(run), '--num_epoch', '2', '--output_dir', str(tmp_path / 'resumed')])
    train_program.main(['--config_file', str(run / 'configs.yaml'), '--init_from', str(run / 'best.pth'),
                        '--num_epoch', '1', '--output_dir', str(tmp_path / 'begun')])
    for folder in ('resumed', 'begun'):
        assert glob.glob(str(tmp_path / folder / 'CUHK-PEDES' / '*' / 'best.pth'))


def test_the_activation_goes_with_a_run(data, clip, tmp_path, capsys, run_folder):
    """The activation goes from open_clip's file into configs.yaml, and from there to other runs and to a test."""
    shutil.copy(clip, tmp_path / 'open_clip_pytorch_model.bin')
    (tmp_path / 'open_clip_config.json').write_text('{"model_cfg": {"embed_dim": 64}}')
    words = ['--name', 'laion', '--loss_names', 'sdm', '--dataset_name', 'CUHK-PEDES', '--root_dir', data,
             '--num_epoch', '1', '--pretrain_choice', str(tmp_path / 'open_clip_pytorch_model.bin'), '--img_size', '64',
             '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu', '--limit_train', '8']
    train_program.main([*words, '--output_dir', str(tmp_path / 'logs')])
    folder = run_folder()
    os.remove(tmp_path / 'open_clip_config.json')

    def said(run):
        with open(os.path.join(run, 'train_log.txt')) as log, open(os.path.join(run, 'configs.yaml')) as config:
            return yaml.safe_load(config)['activation'], [line for line in log
                                                          if 'activation of the encoders: gelu' in line]
    assert said(folder)[0] == 'gelu' and 'open_clip_config.json says so' in said(folder)[1][0]
    train_program.main(['--resume', folder, '--num_epoch', '2'])
    assert said(folder)[0] == 'gelu' and 'configs.yaml says so' in said(folder)[1][-1]
    with pytest.raises(UserError,
                       match='--activation quick_gelu: the run of .*last.pth has gelu; leave the option out'):
        train_program.main(['--resume', folder, '--num_epoch', '3', '--activation', 'quick_gelu'])
    train_program.main([*words, '--init_from', os.path.join(folder, 'best.pth'),
                        '--output_dir', str(tmp_path / 'next')])
    assert said(run_folder(root=tmp_path / 'next'))[0] == 'gelu'

    import pedestal
    people = pedestal.load(folder)
    assert people.model.base_model.activation == 'gelu' == people.args.activation

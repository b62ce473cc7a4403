"""The open_clip backbone trained, resumed and tested by the programs, on random weights of two small architectures."""
import json
import os

import pytest
import torch

import pedestal
import test as test_program
import train as train_program
from datasets.synthpedes import generate
from processor.processor import Trainer
from run_scripts import export
from utils.errors import UserError

open_clip = pytest.importorskip('open_clip',
                                reason='the open_clip library is not installed: pip install open_clip_torch')

WORDS = {'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 2, 'context_length': 40}
SHAPES = {'small-clip': {'embed_dim': 64, 'vision_cfg': {'image_size': 64, 'layers': 2, 'width': 64, 'head_width': 32,
                                                         'patch_size': 16}, 'text_cfg': WORDS},
          'small-sig': {'embed_dim': 64, 'init_logit_bias': -10, 'custom_text': True,
                        'vision_cfg': {'image_size': 160, 'timm_model_name': 'test_vit', 'timm_pool': 'map',
                                       'timm_proj': 'none'},
                        'text_cfg': {**WORDS, 'no_causal_mask': True, 'pool_type': 'last', 'proj_bias': True}},}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    generate(str(root), 16, images_per_id=2, size=(96, 32), format='synthpedes', val_ids=0, test_ids=6, workers=1)
    return str(root)


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    for name, shape in SHAPES.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, shape)


def command(data, logs, model, *more):
    return ['--backbone', 'open_clip', '--pretrain_choice', model, '--loss_names', 'sdm+itc+mlm',
            '--dataset_name', 'synthpedes', '--root_dir', data, '--img_size', '96', '32', '--text_length', '40',
            '--batch_size', '8', '--num_workers', '0', '--device', 'cpu', '--cmt_depth', '1', '--optimizer', 'AdamW',
            '--lr', '1e-3', '--temperature', '0.1', '--warmup_epochs', '0', '--img_aug', '--num_epoch', '3',
            '--output_dir', str(logs), *more]


def only(folder):
    name, = os.listdir(folder)
    return os.path.join(folder, name)


def epochs(folder):
    """What the journal holds of each epoch."""
    with open(os.path.join(folder, 'metrics.jsonl'), encoding='utf-8') as file:
        return [line for line in map(json.loads, file) if line['kind'] == 'epoch']


def weights(folder, name='last.pth'):
    return torch.load(os.path.join(folder, name))['model']


@pytest.fixture(scope='module', params=list(SHAPES))
def run(request, data, tmp_path_factory):
    """(the model, the folder of a run over three epochs)."""
    logs = tmp_path_factory.mktemp('logs')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, request.param, SHAPES[request.param])
        train_program.main(command(data, logs, request.param))
    return request.param, only(logs / 'synthpedes')


def test_losses_fall(run):
    losses = [epoch['loss'] for epoch in epochs(run[1])]
    assert len(losses) == 3 and losses[-1] < 0.9 * losses[0]


def test_a_resumed_run_is_the_same_to_the_last_bit(run, data, tmp_path):
    """Stopped between two steps of an epoch, and gone on with from the cache of images."""
    model, folder = run
    steps, train_step = [], Trainer.train_step

    def stop_at_third(self, *step):
        train_step(self, *step)
        steps.append(1)
        if len(steps) == 3:
            self.interrupt.signal_number = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'train_step', stop_at_third)
        with pytest.raises(SystemExit):
            train_program.main(command(data, tmp_path / 'logs', model))
    cut = only(tmp_path / 'logs' / 'synthpedes')
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(cut, 'last.pth'),
                        '--image_cache', str(tmp_path / 'cache')])
    first, second = weights(folder), weights(cut)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert any('bicubic' in name for name in os.listdir(tmp_path / 'cache'))


def test_lora_is_stored_without_the_weights_of_the_file(run, data, tmp_path):
    model, folder = run
    choice = f'{model}:{os.path.join(folder, "best.pth")}'
    train_program.main(command(data, tmp_path, choice, '--tuning', 'lora', '--lora_targets', 'q', 'mlp',
                               '--loss_names', 'itc', '--num_epoch', '1'))
    tuned = only(tmp_path / 'synthpedes')
    best, last = (torch.load(os.path.join(tuned, f'{name}.pth')) for name in ('best', 'last'))
    assert best['tuning']['base']['name'] == choice and all('.lora.' in name for name in best['model'])
    whole = {**last['model'], **best['model']}
    loaded = pedestal.load(tuned, device='cpu', amp='off').model.state_dict()
    assert loaded.keys() == whole.keys() and all(torch.equal(value, whole[name]) for name, value in loaded.items())
    assert os.path.getsize(os.path.join(tuned, 'best.pth')) < os.path.getsize(os.path.join(folder, 'best.pth')) / 20
    export.main(['--config_file', os.path.join(tuned, 'configs.yaml'), '--to', 'full', '--merge', '--out',
                 str(tmp_path / 'merged')])
    assert 'open_clip_config.json' in os.listdir(tmp_path / 'merged')


def test_switches_for_memory_change_no_result(run, data, tmp_path):
    model, folder = run
    train_program.main(command(data, tmp_path / 'logs', model, '--grad_checkpoint', '--micro_batch', '3'))
    for line, expected in zip(epochs(only(tmp_path / 'logs' / 'synthpedes')), epochs(folder), strict=True):
        assert line['loss'] == pytest.approx(expected['loss'], rel=1e-4)


def test_a_run_is_tested_by_what_its_folder_holds(run, tmp_path, monkeypatch):
    """Wherever it is, and whatever the library knows by then."""
    model, folder = run
    os.makedirs(tmp_path / 'moved')
    for name in ('configs.yaml', 'best.pth', 'open_clip_config.json'):
        os.link(os.path.join(folder, name), tmp_path / 'moved' / name)
    monkeypatch.delitem(open_clip.factory._MODEL_CONFIGS, model)
    os.rename(folder, f'{folder}.elsewhere')
    try:
        assert test_program.main(['--config_file', str(tmp_path / 'moved' / 'configs.yaml'), '--num_workers', '0',
                                  '--device', 'cpu']) == 0
    finally:
        os.rename(f'{folder}.elsewhere', folder)
    with open(tmp_path / 'moved' / 'metrics.json', encoding='utf-8') as file:
        assert json.load(file)['independence']['holds']
    assert pedestal.load(tmp_path / 'moved', device='cpu').encode_captions(['a man in a red coat']).shape == (1, 64)


def test_a_folder_with_a_broken_description(run, tmp_path):
    os.makedirs(tmp_path / 'moved')
    for name in ('configs.yaml', 'best.pth'):
        os.link(os.path.join(run[1], name), tmp_path / 'moved' / name)
    (tmp_path / 'moved' / 'open_clip_config.json').write_text('{"model_cfg": 1}')
    with pytest.raises(UserError, match='open_clip_config.json describes no model of open_clip'):
        test_program.main(['--config_file', str(tmp_path / 'moved' / 'configs.yaml'), '--num_workers', '0',
                           '--device', 'cpu'])

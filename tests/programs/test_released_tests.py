"""test.py on runs of RDE's and FMFA's published code, as their own test.py: --config_file <run>/configs.yaml."""
import json
import os

import pytest
import torch

import test as test_program
import train as train_program
from tests.utils.test_published_configs import IRRA
from utils.errors import UserError


def a_run(data, clip, logs, *flags):
    """The folder of a run of ours with its losses."""
    train_program.main(['--dataset_name', 'RSTPReid', '--root_dir', data, '--num_epoch', '1', '--pretrain_choice', clip,
                        '--img_size', '64', '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu',
                        '--output_dir', str(logs), *flags])
    folder, = os.listdir(logs / 'RSTPReid')
    return logs / 'RSTPReid' / folder


def released(folder, data, clip, **content):
    """A released run's folder with its configs.yaml."""
    os.makedirs(folder)
    content = {**IRRA, 'root_dir': data, 'pretrain_choice': clip, 'img_size': '!!python/tuple [64, 32]', 'cmt_depth': 1,
               'num_workers': 0, 'batch_size': 8, 'test_batch_size': 8, **content}
    (folder / 'configs.yaml').write_text(''.join(f'{name}: {value}\n' for name, value in content.items()))
    return str(folder / 'configs.yaml')


def evaluated(config, *flags, status=0, name='metrics'):
    assert test_program.main(['--config_file', config, '--device', 'cpu', *flags]) == status
    with open(os.path.join(os.path.dirname(config), f'{name}.json'), encoding='utf-8') as file:
        return json.load(file)


def same_results(one, other):
    (_, one), (_, other) = next(iter(one['results'].items())), next(iter(other['results'].items()))
    return one == other


@pytest.mark.parametrize('loss', ['TAL', 'SDM'])
def test_rde(data, clip, tmp_path, capsys, loss):
    ours = a_run(data, clip, tmp_path / 'logs', '--loss_names', f'{loss}+sr0.3_n0.0', '--img_aug', '--txt_aug')
    config = released(tmp_path / 'rde', data, clip, loss_names=f'{loss}+sr0.3_tau0.015_margin0.1_n0.0', noisy_rate=0.0,
                      tau=0.015, margin=0.1, select_ratio=0.3, txt_aug='true', noisy_file="''")
    weights = torch.load(ours / 'best.pth', weights_only=True)['model']
    torch.save({'model': weights, 'epoch': 1}, tmp_path / 'rde' / 'best.pth')
    capsys.readouterr()
    found = evaluated(config)
    said = capsys.readouterr()
    assert 'BGE-t2i' in said.out and 'TSE-t2i' in said.out
    assert f"is RDE's name of {loss.lower()}+tse with --ccd" in said.out + said.err
    assert same_results(found, evaluated(str(ours / 'configs.yaml'), '--test_batch_size', '8'))


def test_fmfa(data, clip, tmp_path, capsys):
    """A checkpoint whose names begin with module., with a classifier of training pairs and three best epochs."""
    ours = a_run(data, clip, tmp_path / 'logs', '--loss_names', 'a-sdm+mlm+id+efa', '--MLM', '--cmt_depth', '1')
    config = released(tmp_path / 'fmfa', data, clip, loss_names='a-sdm+mlm+id+efa', minmax_loss_weight=1.0,
                      finetune="''", sdm_loss_use_weight='true')
    weights = torch.load(ours / 'best.pth', weights_only=True)['model']
    for number in range(3):
        content = {f'module.{name}': value for name, value in weights.items()}
        content['module.classifier.weight'] = torch.full((99, len(weights['classifier.weight'][0])), float(number))
        content['module.classifier.bias'] = torch.zeros(99)
        content['module.base_model.ln_final.bias'] = weights['base_model.ln_final.bias'] + (number < 2)
        torch.save({'model': content, 'epoch': number}, tmp_path / 'fmfa' / f'best{number}.pth')
    capsys.readouterr()
    found = evaluated(config, name='metrics_best2')
    said = capsys.readouterr()
    assert same_results(found, evaluated(str(ours / 'configs.yaml'), '--test_batch_size', '8'))
    assert 'best2.pth is of the best epoch on RSTPReid' in said.out + said.err
    assert 'has no option finetune' in said.out + said.err
    assert 'best2.pth: epoch 2, chosen by the test split of RSTPReid, the split it is tested on' in said.out
    with pytest.raises(UserError, match='best2.pth holds no optimizer; .* --init_from'):
        train_program.main(['--resume', os.path.dirname(config), '--output_dir', str(tmp_path)])
    elsewhere = evaluated(config, '--dataset_name', 'CUHK-PEDES', name='metrics_best0_CUHK-PEDES')
    assert elsewhere['produced_by']['checkpoint'].endswith('best0.pth')
    assert 'chosen by the test split of CUHK-PEDES, the split it is tested on' in capsys.readouterr().out

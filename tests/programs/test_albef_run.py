"""RaSa and MARS trained, resumed, tested and re-ranked by the programs."""
import json
import os

import pytest
import torch

import test as test_program
import train as train_program
from datasets.synthpedes import generate
from model.heads.rasa import Matching
from tests.programs.run_folders import assert_equal_weights, only, read_weights, train_until_interrupted

TRAINING_ONLY = ('visual_encoder_m.', 'text_encoder_m.', 'vision_proj_m.', 'text_proj_m.', 'image_queue', 'text_queue',
                 'idx_queue', 'queue_ptr')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    generate(str(root), 12, images_per_id=2, size=(96, 32), format='synthpedes', val_ids=0, test_ids=4, workers=1)
    return str(root)


def command(data, logs, *more):
    return ['--config_file', 'configs/mars.yaml', '--dataset_name', 'synthpedes', '--root_dir', data,
            '--pretrain_choice', 'scratch:albef-tiny', '--img_size', '48', '32', '--moco_queue', '20', '--batch_size',
            '8', '--num_epoch', '2', '--warmup_steps', '2', '--lr', '1e-4', '--weak_positive_rate', '0.5',
            '--num_workers', '0', '--device', 'cpu', '--output_dir', str(logs), *more]


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    """The folder of a run with MARS' losses over two epochs."""
    logs = tmp_path_factory.mktemp('logs')
    train_program.main(command(data, logs))
    return only(logs / 'synthpedes')


def test_a_resumed_run_is_the_same_to_the_last_bit(data, run, tmp_path):
    """Stopped within the first epoch, with its queues and its momentum encoder, and with blocks computed twice."""
    folder = train_until_interrupted(command(data, tmp_path / 'logs'), tmp_path / 'logs' / 'synthpedes', steps=2)
    assert not torch.equal(read_weights(folder)['image_queue'], read_weights(run)['image_queue'])
    train_program.main(['--resume', folder, '--grad_checkpoint'])
    assert_equal_weights(run, folder)


def test_the_best_checkpoint_has_no_momentum_encoder(run):
    def training_only(file):
        return {prefix for prefix in TRAINING_ONLY for name in read_weights(run, file) if name.startswith(prefix)}
    assert training_only('last.pth') == set(TRAINING_ONLY) and not training_only('best.pth')


def test_captions_are_re_ranked_by_pairs_alone(run, capsys, monkeypatch):
    def evaluate(*more):
        assert test_program.main(['--config_file', os.path.join(run, 'configs.yaml'), '--num_workers', '0', '--device',
                                  'cpu', '--rerank', '5', *more]) == 0
        with open(os.path.join(run, 'metrics.json'), encoding='utf-8') as file:
            return list(json.load(file)['results'].items())
    (_, cosine), (title, pairs) = evaluate('--rerank_score', 'itm')[:2]
    assert '5 best re-ranked by itm alone' in title and title in capsys.readouterr().out
    assert cosine['t2i']['R5'] == pairs['t2i']['R5']        # the five best stay the five best
    title, sums = evaluate('--rerank_score', 'sum')[1]
    assert '5 best re-ranked by the sum of itm and cosine similarity' in title and title in capsys.readouterr().out
    assert sums['t2i']['R5'] == pairs['t2i']['R5'] and sums['t2i'] not in (pairs['t2i'], cosine['t2i'])
    score_pairs = Matching.score_pairs
    monkeypatch.setattr(Matching, 'score_pairs', lambda *pairs: -score_pairs(*pairs))
    assert evaluate('--rerank_score', 'itm')[1][1]['t2i'] != pairs['t2i']

"""APTM trained, resumed, tested and re-ranked by the programs."""
import json
import os
import shutil

import pytest
import torch
from PIL import Image

import pedestal
import test as test_program
import train as train_program
from datasets.synthpedes import generate
from model.backbones.aptm import STATISTICS
from model.heads.aptm import ITM
from processor.reranker import Reranker
from run_scripts import export, page
from tests.programs.run_folders import assert_equal_weights, only, read_weights, train_until_interrupted
from utils.errors import UserError
from utils.rerank_options import PairScores


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    generate(str(root), 16, images_per_id=2, size=(96, 32), format='synthpedes', val_ids=0, test_ids=6, workers=1)
    return str(root)


def command(data, logs, *more):
    return ['--backbone', 'aptm', '--pretrain_choice', 'scratch:aptm-tiny', '--loss_names', 'itc+itm+mlm',
            '--dataset_name', 'synthpedes', '--root_dir', data, '--img_size', '96', '32', '--text_length', '40',
            '--batch_size', '8', '--num_workers', '0', '--device', 'cpu', '--optimizer', 'AdamW', '--lr', '1e-3',
            '--lrscheduler', 'step_linear', '--warmup_steps', '2', '--rand_aug', '--num_epoch', '2',
            '--output_dir', str(logs), *more]


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    """The folder of a run over two epochs."""
    logs = tmp_path_factory.mktemp('logs')
    train_program.main(command(data, logs))
    return only(logs / 'synthpedes')


def test_a_resumed_run_is_the_same_to_the_last_bit(data, run, tmp_path):
    """Stopped between two steps of an epoch, from the cache of images and with blocks computed twice."""
    folder = train_until_interrupted(command(data, tmp_path / 'logs'), tmp_path / 'logs' / 'synthpedes', steps=3)
    train_program.main(['--resume', '--resume_ckpt_file', os.path.join(folder, 'last.pth'),
                        '--image_cache', str(tmp_path / 'cache')])
    assert_equal_weights(run, folder)
    assert any('bicubic' in name for name in os.listdir(tmp_path / 'cache'))


def evaluated(folder, *more):
    status = test_program.main(['--config_file', os.path.join(folder, 'configs.yaml'), '--num_workers', '0',
                                '--device', 'cpu', *more])
    with open(os.path.join(folder, 'metrics.json'), encoding='utf-8') as file:
        return status, json.load(file)


def test_a_second_row_re_ranked(run, tmp_path, capsys, monkeypatch):
    status, content = evaluated(run, '--rerank', '5')
    first, second = content['results']
    assert status == 0 and '5 best re-ranked' in second and second in capsys.readouterr().out
    by_cosine, again = (content['results'][row]['t2i'] for row in (first, second))
    assert by_cosine['R5'] == again['R5']        # the five best stay the five best
    page.main([run, '--out', str(tmp_path / 'page.html')])
    assert 't2i, 5 best re-ranked' in (tmp_path / 'page.html').read_text()
    assert content['independence']['second_stage'][0] < 1e-3
    assert evaluated(run, '--rerank', '5',
                     '--rerank_score', 'released')[1]['results'].keys() != content['results'].keys()
    score_pairs = ITM.score_pairs
    monkeypatch.setattr(ITM, 'score_pairs', lambda *pairs: -score_pairs(*pairs))
    backwards = evaluated(run, '--rerank', '5')[1]['results'][second]['t2i']
    assert backwards != again and backwards['R5'] == again['R5']


def test_a_search_is_ordered_by_the_scores_of_pairs(run):
    """The five best by cosine similarity, as test.py --rerank 5 orders them; then the others."""
    people = pedestal.load(run, device='cpu')
    split, caption = people.split, people.split.captions[1]
    reranker = Reranker(people.model, split.run.images, split.run.captions)
    by_cosine = people.search(caption, split.paths, top=12)
    images = torch.tensor([split.paths.index(path) for path, _ in by_cosine])
    order = reranker.score_pairs(1, images[:5]).argsort(descending=True)
    expected = [*(by_cosine[i] for i in order.tolist()), *by_cosine[5:]]
    results = people.search(caption, split.paths, top=12, rerank=5)
    assert [path for path, _ in results] == [path for path, _ in expected] != [path for path, _ in by_cosine]
    assert [score for _, score in results] == pytest.approx([score for _, score in expected], abs=1e-5)
    again, = people.build_reranked_search(split, PairScores(5, 'itm'))([caption], 12)
    assert [path for path, _ in again] == [path for path, _ in expected]
    log_odds = Reranker(people.model, split.run.images, split.run.captions, 'sum').score_pairs(1, images[:5])
    similarities = torch.tensor([similarity for _, similarity in by_cosine[:5]])
    head, = (head for head in people.model.heads if isinstance(head, ITM))
    order = (log_odds + similarities / head.temperature.temp).argsort(descending=True)
    summed, = people.build_reranked_search(split, PairScores(5, 'sum'))([caption], 12)
    assert [path for path, _ in summed] == [by_cosine[i][0] for i in (*order.tolist(), *range(5, 12))]
    with pytest.raises(UserError, match='re-ranks each caption alone; .* another --rerank_score than released'):
        people.search(caption, split.paths, rerank=PairScores(5, 'released'))


def test_a_released_checkpoint_without_a_config(run, data, tmp_path, monkeypatch, capsys):
    released = tmp_path / 'checkpoint_best.pth'
    torch.save({'model': read_weights(run), 'config': {'embed_dim': 64}}, released)
    options = ['--backbone', 'aptm', '--checkpoint', str(released), '--dataset_name', 'synthpedes', '--root_dir', data,
               '--img_size', '96', '32', '--text_length', '40', '--num_workers', '0', '--device', 'cpu',
               '--rerank', '3']
    with pytest.raises(UserError, match='bert-base-uncased|--vocab_file'):     # nobody said which words
        monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
        test_program.main(options)
    os.link(os.path.join(run, 'vocab.txt'), tmp_path / 'vocab.txt')
    assert test_program.main(options) == 0
    assert '3 best re-ranked' in capsys.readouterr().out


@pytest.mark.parametrize('more, message', [
    (['--rerank', '1000'], 'the gallery holds 12 images'), (['--rerank', '0'], "'0' must be above 0")])
def test_re_ranking_refused(run, more, message):
    with pytest.raises(UserError, match=message):
        evaluated(run, *more)


def test_re_ranking_needs_a_head_that_scores_pairs(data, tmp_path):
    train_program.main(command(data, tmp_path / 'logs', '--loss_names', 'itc', '--num_epoch', '1',
                               '--warmup_steps', '0'))
    with pytest.raises(UserError, match="--rerank needs a loss whose head scores pairs.*'itm'.*have none .itc."):
        evaluated(only(tmp_path / 'logs' / 'synthpedes'), '--rerank', '3')


def test_no_vocabulary(run, tmp_path):
    os.makedirs(tmp_path / 'moved')
    for name in ('configs.yaml', 'best.pth'):
        os.link(os.path.join(run, name), tmp_path / 'moved' / name)
    os.rename(os.path.join(run, 'vocab.txt'), tmp_path / 'vocab.txt')
    try:
        with pytest.raises(UserError, match='there is no vocabulary: neither .*vocab.txt'):
            test_program.main(['--config_file', str(tmp_path / 'moved' / 'configs.yaml'), '--num_workers', '0'])
        assert test_program.main(['--config_file', str(tmp_path / 'moved' / 'configs.yaml'), '--num_workers', '0',
                                  '--vocab_file', str(tmp_path / 'vocab.txt')]) == 0
    finally:
        os.rename(tmp_path / 'vocab.txt', os.path.join(run, 'vocab.txt'))


def test_a_run_keeps_a_copy_of_its_vocabulary(run, data, tmp_path):
    """So that the run is resumed, tested and exported after the file has moved; a file that is named is read."""
    given, other = tmp_path / 'given.txt', tmp_path / 'other.txt'
    shutil.copyfile(os.path.join(run, 'vocab.txt'), given)
    options = command(data, tmp_path / 'logs', '--vocab_file', str(given), '--loss_names', 'itc', '--num_epoch', '1',
                      '--warmup_steps', '0')
    folder = train_until_interrupted(options, tmp_path / 'logs' / 'synthpedes', steps=1)
    with open(given) as file, open(os.path.join(folder, 'vocab.txt')) as copy:
        assert copy.read() == file.read()
    os.rename(given, other)
    given.write_text('another vocabulary\n')                # the copy counts, and not the file of the same name
    train_program.main([*options, '--resume', folder])
    config = os.path.join(folder, 'configs.yaml')
    sentence = ['a man in a red coat']
    embedding = pedestal.load(config, device='cpu').encode_captions(sentence)
    export.main(['--config_file', config, '--to', 'full', '--out', str(tmp_path / 'full')])
    given.unlink()
    for path in (folder, tmp_path / 'full'):
        assert torch.equal(pedestal.load(path, device='cpu').encode_captions(sentence), embedding)
    assert test_program.main(['--config_file', config, '--num_workers', '0', '--vocab_file', str(other)]) == 0
    with pytest.raises(UserError, match="cannot read BERT's vocabulary .*given.txt"):
        test_program.main(['--config_file', config, '--num_workers', '0', '--vocab_file', str(given)])


def test_attributes_are_learned_and_recognised(data, tmp_path, capsys):
    train_program.main(command(data, tmp_path / 'logs', '--loss_names', 'itc+itm+mlm+attr', '--num_epoch', '1',
                               '--lr_rule', 'pretrain'))
    status, content = evaluated(only(tmp_path / 'logs' / 'synthpedes'))
    assert status == 0 and list(content['attributes']) == ['mA', 'accuracy', 'precision', 'recall', 'F1']
    assert 'recognized by their prompts' in capsys.readouterr().out


def test_a_dataset_of_attributes_alone(tmp_path, capsys):
    os.makedirs(tmp_path / 'finetune')
    for split, count in (('train', 16), ('test', 8)):
        rows = [{'image': f'{split}{number}.png', 'label': [number % 2] * 26} for number in range(count)]
        (tmp_path / 'finetune' / f'PA100K_{split}.json').write_text(json.dumps(rows))
        os.makedirs(tmp_path / 'images' / 'pa100k' / 'release_data', exist_ok=True)
        for row in rows:
            colour = (255, 0, 0) if row['label'][0] else (0, 0, 255)
            Image.new('RGB', (32, 96), colour).save(tmp_path / 'images' / 'pa100k' / 'release_data' / row['image'])
    train_program.main(command(str(tmp_path), tmp_path / 'logs', '--loss_names', 'attr', '--dataset_name', 'PA-100K',
                               '--attr_smoothing', '0', '--num_epoch', '3'))
    run = only(tmp_path / 'logs' / 'PA-100K')
    status, content = evaluated(run)
    assert status == 0 and content['results'] == {} and content['attributes']['mA'] >= 50
    with open(os.path.join(run, 'train_log.txt')) as file:
        log = file.read()
    best = torch.load(os.path.join(run, 'last.pth'), weights_only=True)['best']
    assert f"done | best mA {best['mA']:.3f} at epoch {best['epoch']}" in log
    assert 'Rank-1' not in log and 'R1' not in best
    state = torch.load(os.path.join(run, 'last.pth'), weights_only=True)
    state['best'] = {'R1': best['mA'], 'epoch': best['epoch']}         # as older code called it
    torch.save(state, os.path.join(run, 'last.pth'))
    train_program.main(['--resume', run, '--num_epoch', '4'])
    with open(os.path.join(run, 'train_log.txt')) as file:
        assert f"| best mA {best['mA']:.3f} at epoch {best['epoch']}" in file.read()
    train_program.main(command(str(tmp_path), tmp_path / 'image', '--loss_names', 'img_cls',
                               '--dataset_name', 'PA-100K', '--num_epoch', '4', '--lr', '3e-3'))
    status, content = evaluated(only(tmp_path / 'image' / 'PA-100K'))
    assert status == 0 and content['attributes']['mA'] == 100
    assert 'recognized without prompts' in capsys.readouterr().out
    with pytest.raises(UserError, match='PA-100K has no captions to train on: give --loss_names attr'):
        train_program.main(command(str(tmp_path), tmp_path / 'logs', '--dataset_name', 'PA-100K'))
    with pytest.raises(UserError, match='--rerank orders images for captions, and PA-100K has none'):
        evaluated(only(tmp_path / 'logs' / 'PA-100K'), '--rerank', '3')


def test_embeddings_of_photos_depend_on_the_image_statistics(run, monkeypatch):
    """An index of photos that was made with other statistics is not taken for this run's."""
    def identity():
        return pedestal.load(run, device='cpu').fingerprint
    model, key = identity()
    assert len(model['pixels'][0]) == 3 and identity() == (model, key)
    monkeypatch.setitem(STATISTICS, 'CUHK-PEDES', ((.3890, .3652, .3484), (.2434, .2374, .2337)))
    assert identity()[1] != key

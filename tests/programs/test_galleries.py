"""run_scripts/galleries.py: each gallery is ranked separately, and synthetic data also have baselines."""
import os
import statistics

import pytest
import torch

import train as train_program
from datasets.synthpedes import generate
from run_scripts import galleries
from utils.errors import UserError
from utils.retrieval_metrics import compute_metrics


@pytest.fixture(scope='module')
def trained(clip, tmp_path_factory):
    """The configs.yaml of a run on synthetic pedestrians."""
    root, logs = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('logs')
    generate(str(root), 20, images_per_id=2, size=(64, 32), val_ids=0, test_ids=8, workers=1)
    train_program.main(['--name', 'small', '--loss_names', 'sdm', '--dataset_name', 'synthpedes',
                        '--root_dir', str(root), '--num_epoch', '1', '--pretrain_choice', clip, '--img_size', '64',
                        '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu', '--output_dir', str(logs)])
    folder, = os.listdir(logs / 'synthpedes')
    return str(logs / 'synthpedes' / folder / 'configs.yaml')


def test_galleries_of_a_run(trained, capsys):
    galleries.main(['--config_file', trained, '--galleries', '2', '--ids_per_gallery', '4'])
    printed = capsys.readouterr().out
    assert '2 galleries of 4 identities, mean (standard deviation); chance: Rank-1 25.0' in printed
    rows = {cells[1].strip(): cells[2:7] for cells in (line.split('|') for line in printed.splitlines())
            if len(cells) == 8}
    assert set(rows) == {'', 'model', 'color words, whole image', 'color words, garment bands'}
    # colors distinguish people without learning
    assert float(rows['color words, garment bands'][0].split()[0]) > 25
    galleries.main(['--config_file', trained, '--galleries', '2', '--ids_per_gallery', '4', '--gallery_seed', '0'])
    assert capsys.readouterr().out.endswith(printed[-400:])                    # the same identities come together


def test_a_small_split_has_smaller_galleries(trained, capsys):
    galleries.main(['--config_file', trained])
    assert '4 galleries of 2 identities' in capsys.readouterr().out
    galleries.main(['--config_file', trained, '--galleries', '1'])
    assert '1 galleries of 8 identities' in capsys.readouterr().out


def test_each_gallery_is_ranked_on_its_own():
    generator = torch.Generator().manual_seed(0)
    q_pids, g_pids = torch.tensor([1, 1, 2, 3, 4]), torch.tensor([1, 2, 2, 3, 4, 4])
    similarity = torch.rand(5, 6, generator=generator)
    results = galleries.rank_galleries(galleries.rank_by_similarity(similarity, q_pids, g_pids), q_pids, g_pids,
                                     [(1, 3), (2, 4)])
    assert results == [compute_metrics(similarity[[0, 1, 3]][:, [0, 3]], q_pids[[0, 1, 3]], g_pids[[0, 3]]),
                     compute_metrics(similarity[[2, 4]][:, [1, 2, 4, 5]], q_pids[[2, 4]], g_pids[[1, 2, 4, 5]])]


def test_the_table_holds_mean_and_deviation():
    rows = [dict.fromkeys(galleries.METRICS, value) for value in (10.0, 20.0, 60.0)]
    assert f'30.00 ({statistics.pstdev([10, 20, 60]):.2f})' in galleries.format_table({'model': rows})


@pytest.mark.parametrize('words, sentence',
                         [(['--galleries', '3', '--ids_per_gallery', '4'],
                           '--ids_per_gallery 4 need 12 identities, and the test split of synthpedes has 8'),
                          (['--galleries', '0'], '--galleries.*must be above 0'),
                          (['--ids_per_gallery', '-1'], '--ids_per_gallery.*must be above 0')])
def test_what_is_refused(trained, words, sentence, monkeypatch):
    monkeypatch.setattr(galleries, 'rank_by_model', lambda *_: pytest.fail('something was embedded'))
    with pytest.raises(UserError, match=sentence):
        galleries.main(['--config_file', trained, *words])

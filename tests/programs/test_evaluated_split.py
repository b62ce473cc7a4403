"""test.py --split and --distractors: what is ranked, where the results are, and what is refused."""
import json
import os
import shutil

import pytest

import test as test_program
from processor.results import find_other_results
from run_scripts import compare
from utils.errors import UserError
from utils.images import find_images


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run's configs.yaml, next to its checkpoint."""
    folder = tmp_path / 'run'
    shutil.copytree(os.path.dirname(trained), folder)
    return str(folder / 'configs.yaml')


def read(run, name):
    with open(os.path.join(os.path.dirname(run), name)) as file:
        return json.load(file)


def test_each_split_has_its_own_results(run, capsys):
    metrics = {}
    for split, counts in (('val', '16 captions, 8 images'), ('train', '48 captions, 24 images')):
        assert test_program.main(['--config_file', run, '--split', split]) == 0
        printed, results = capsys.readouterr().out, read(run, f'metrics_{split}.json')
        (title, tasks), = results['results'].items()
        assert title == f'CUHK-PEDES {split}: {counts}' and f'not the published {split} split' in printed
        assert 'chosen by the test split of CUHK-PEDES' in printed and 'the split it is tested on' not in printed
        assert (results['produced_by']['split'], results['produced_by']['distractors']) == (split, 0)
        metrics[split] = tasks['t2i']
    assert 'metrics.json' not in os.listdir(os.path.dirname(run)) and metrics['val'] != metrics['train']
    folder = os.path.dirname(run)
    with pytest.raises(UserError, match='different galleries'):
        compare.main([folder, os.path.join(folder, 'metrics_train.json'), '--results', 'metrics_val.json'])
    assert find_other_results(os.path.join(folder, 'best.pth'), 'another dataset') == []


def test_distractors_enlarge_the_gallery(run, data, tmp_path, capsys):
    test_program.main(['--config_file', run])
    plain, = read(run, 'metrics.json')['results'].values()
    photos = os.path.join(data, 'RSTPReid', 'imgs')
    test_program.main(['--config_file', run, '--distractors', photos])
    results = read(run, 'metrics_distractors.json')
    (title, tasks), = results['results'].items()
    count = sum(len(files) for _, _, files in os.walk(photos))
    assert title == f'CUHK-PEDES test: 24 captions, {12 + count} images, {count} of them distractors'
    by = results['produced_by']
    assert (by['images'], by['identities'], by['distractors']) == (12 + count, 6, count)
    for name in ('R1', 'R10', 'mAP', 'mINP'):       # an image more never raises a caption's metrics
        assert tasks['t2i'][name] <= plain['t2i'][name]
    assert tasks['t2i']['mINP'] < plain['t2i']['mINP']
    assert read(run, 'metrics.json')['produced_by']['distractors'] == 0


def test_photos_without_captions_of_a_table_are_distractors(run, data, tmp_path):
    """The metrics are those of the same photos with --distractors."""
    folder, photos = tmp_path / 'own', tmp_path / 'own' / 'imgs'
    for name in ('CUHK-PEDES', 'RSTPReid'):
        shutil.copytree(os.path.join(data, name, 'imgs'), photos / name)
    with open(os.path.join(data, 'CUHK-PEDES', 'reid_raw.json')) as file:
        rows = [{'image': f'CUHK-PEDES/{entry["file_path"]}', 'caption': entry['captions'], 'id': entry['id'],
                 'split': entry['split']} for entry in json.load(file)]
    street = sorted(os.path.relpath(path, photos) for path in find_images(str(photos / 'RSTPReid'))[0])
    (folder / 'plain.json').write_text(json.dumps(rows))
    (folder / 'street.json').write_text(json.dumps([*rows, *({'image': path, 'split': 'test'} for path in street)]))
    words = ['--config_file', run, '--root_dir', str(folder)]
    test_program.main([*words, '--dataset_name', 'plain.json', '--distractors', str(photos / 'RSTPReid')])
    test_program.main([*words, '--dataset_name', 'street.json'])
    given, own = read(run, 'metrics_distractors_plain.json.json'), read(run, 'metrics_street.json.json')
    (title, metrics), (_, expected) = (next(iter(by['results'].items())) for by in (own, given))
    assert title == f'street.json test: 24 captions, {12 + len(street)} images, {len(street)} of them distractors'
    assert metrics == expected
    for kind in ('images', 'identities', 'distractors', 'captions'):
        assert own['produced_by'][kind] == given['produced_by'][kind]
    with pytest.raises(UserError, match='a distractor has none: leave out --i2t$'):
        test_program.main([*words, '--dataset_name', 'street.json', '--i2t'])


@pytest.mark.parametrize('words, sentence', [
    (['--distractors', 'nowhere'], '--distractors nowhere: there is no image in or below this folder'),
    (['--distractors', 'IMGS'], '12 of its images are in the gallery already'),
    (['--distractors', 'OTHERS', '--i2t'], '--i2t ranks captions for each image, and a distractor has none'),
    (['--split', 'dev'], "invalid choice: 'dev'")])
def test_what_is_refused(run, data, words, sentence):
    folders = {'IMGS': os.path.join(data, 'CUHK-PEDES', 'imgs'), 'OTHERS': os.path.join(data, 'RSTPReid', 'imgs')}
    with pytest.raises(UserError, match=sentence):
        test_program.main(['--config_file', run, *(folders.get(word, word) for word in words)])

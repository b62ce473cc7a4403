"""MALS, PA-100K and APTM's lists, and attributes in batches."""
import json
import os

import pytest
import torch
from PIL import Image

from datasets import build_dataloader
from datasets.build import build_dataset
from datasets.prompts import MALS, PA100K
from datasets.synthpedes import generate
from datasets.synthpedes.attributes import PROMPTS
from model.backbones.aptm import Aptm
from tests.support import options
from utils.errors import UserError


def written(root, folder, name, rows, images):
    os.makedirs(os.path.join(root, folder), exist_ok=True)
    with open(os.path.join(root, folder, name), 'w', encoding='utf-8') as file:
        json.dump(rows, file)
    for row in rows:
        path = os.path.join(root, 'images', images, row['image'])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new('RGB', (16, 48)).save(path)


@pytest.fixture
def root(tmp_path):
    root = str(tmp_path)
    for stem in ('g_4x', 'c_g_a_0'):
        written(root, 'gene_attrs', f'{stem}_attrs.json', [
            {'image': f'{stem}/{i}.jpg', 'caption': f'a person {stem} {i}', 'image_id': f'{stem}_{i}',
             'label': [i % 2, -1] + [0] * 25}
            for i in range(4)], 'MALS')
    for split, count in (('train', 6), ('val', 3), ('test', 4)):
        written(root, 'finetune', f'PA100K_{split}.json',
                [{'image': f'{split}_{i}.png', 'label': [i % 2] * 26} for i in range(count)],
                os.path.join('pa100k', 'release_data'))
        written(root, 'finetune', f'cuhk_{split}.json', [
            {'image': f'CUHK01/{split}{i}.png', 'caption': ['a', 'b'] if split != 'train' else 'a man',
             'image_id': i + 1}
            for i in range(3)], 'CUHK-PEDES')
    return root


def test_mals(root):
    dataset = build_dataset('MALS', root, splits=('train',))
    assert len(dataset.train) == 8 and len(dataset.train_id_container) == 8 and not dataset.test['captions']
    labels, prompts = dataset.attributes('train')
    assert labels.shape == (8, 27) and labels.dtype == torch.int8 and prompts is MALS
    assert labels[:, 1].unique().tolist() == [-1]


def test_pa100k_has_prompts_for_captions(root):
    dataset = build_dataset('PA-100K', root)
    assert [len(dataset.train), len(dataset.val['img_paths']), len(dataset.test['img_paths'])] == [6, 3, 4]
    assert len(dataset.test['captions']) == 52 and dataset.test['captions'][1] == PA100K[0][1]
    assert dataset.evaluates_attributes
    assert dataset.attributes('test')[0].tolist() == [[i % 2] * 26 for i in range(4)]


def test_lists_are_read_where_there_is_no_annotation(root):
    dataset = build_dataset('CUHK-PEDES', root)
    assert len(dataset.train) == 3 and len(dataset.test['captions']) == 6 and dataset.test['image_pids'] == [1, 2, 3]
    assert all(os.path.isfile(path) for path in dataset.test['img_paths'])


@pytest.mark.parametrize('name, message', [('MALS', 'no lists .*gene_attrs'),
                                           ('PA-100K', 'no lists .*PA100K_<split>.json')])
def test_missing_lists(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        build_dataset(name, str(tmp_path))


@pytest.fixture(scope='module')
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    generate(str(folder), 8, images_per_id=1, size=(96, 32), format='synthpedes', val_ids=0, test_ids=3, workers=1)
    return str(folder)


def loader_of(root, tmp_path, **changes):
    settings = dict(backbone='aptm', pretrain_choice='scratch:aptm-tiny', loss_names='itc+attr',
                    dataset_name='synthpedes', root_dir=root, img_size=(96, 32), text_length=20, batch_size=4,
                    num_workers=0, output_dir=str(tmp_path))
    return build_dataloader(options(**{**settings, **changes}), Aptm)


def test_batches_carry_labels_and_prompts_masked_by_their_seed(synthetic, tmp_path):
    train, images, captions, _ = loader_of(synthetic, tmp_path)

    def batch(epoch):
        train.batch_sampler.set_epoch(epoch, 0)
        return next(iter(train))
    first, second = batch(1), batch(1)
    assert first['attribute_labels'].shape == (4, len(PROMPTS)) and first['prompt_ids'].shape[0] == 2 * len(PROMPTS)
    assert first['prompt_mlm_labels'].shape == (2 * len(PROMPTS), 10)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(batch(2)['prompt_mlm_ids'], first['prompt_mlm_ids'])
    labels, prompts = images.dataset.attributes
    assert labels.shape == (3, len(PROMPTS)) and len(prompts) == 2 * len(PROMPTS)


def test_prompts_of_a_file_with_another_count(synthetic, tmp_path):
    (tmp_path / 'prompts.json').write_text('[["a", "b"]]')
    with pytest.raises(UserError, match=f'1 pairs of prompts, and the images have {len(PROMPTS)} labels'):
        loader_of(synthetic, tmp_path, prompt_file=str(tmp_path / 'prompts.json'))


def test_a_dataset_without_attributes(root, tmp_path):
    message = 'the losses attr and img_cls need images with attributes, and CUHK-PEDES has none'
    with pytest.raises(UserError, match=message):
        loader_of(root, tmp_path, dataset_name='CUHK-PEDES')


def test_a_dataset_without_a_test_split_asks_for_another(root, tmp_path):
    with pytest.raises(UserError, match='--eval_dataset'):
        loader_of(root, tmp_path, dataset_name='MALS')
    train, images, _, classes = loader_of(root, tmp_path, dataset_name='MALS', eval_dataset='CUHK-PEDES')
    assert classes == 8 and len(images.dataset) == 3 and images.dataset.attributes is None

"""APTM's image statistics: each split is normalized by those of its own dataset, with all digits."""
import json
import os

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import resize, to_tensor, InterpolationMode

from datasets import build_dataloader
from datasets.build import build_training_loaders
from datasets.synthpedes import generate
from model.backbones import backbone_class
from model.backbones.aptm import Aptm
from processor.evaluation import embed
from processor.step import prepare_batch
from tests.support import evaluation_options, options
from utils.iotools import read_image

# ../shared/aptm.md, "Images"
PUBLISHED = {
    'MALS': ((0.4416847, 0.41812873, 0.4237452), (0.3088255, 0.29743394, 0.301009)),
    'CUHK-PEDES': ((0.38901278, 0.3651612, 0.34836376), (0.24344306, 0.23738699, 0.23368555)),
    'ICFG-PEDES': ((0.30941582, 0.28956893, 0.30347288), (0.25849792, 0.24547698, 0.2366199)),
    'RSTPReid': ((0.27722597, 0.26065794, 0.3036557), (0.2609547, 0.2508087, 0.25293276)),
    'PA-100K': ((0.46485138, 0.45038012, 0.4632019), (0.25088054, 0.24609283, 0.24240193))}
NAMES = ('CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid')
SIZE = 96, 32


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """The three datasets, and MALS with the same images."""
    folder = tmp_path_factory.mktemp('data')
    for name in NAMES:
        splits = {} if name == 'ICFG-PEDES' else {'val_ids': 2}
        generate(str(folder), 7 + splits.get('val_ids', 0), images_per_id=1, size=(48, 16), format=name, test_ids=3,
                 workers=1, **splits)
    rows = [{'image': f'g_4x/{i}.png', 'caption': f'a person {i}', 'image_id': f'g_4x_{i}', 'label': [0] * 27}
            for i in range(4)]
    os.makedirs(folder / 'gene_attrs')
    os.makedirs(folder / 'images' / 'MALS' / 'g_4x')
    (folder / 'gene_attrs' / 'g_4x_attrs.json').write_text(json.dumps(rows))
    for row in rows:
        Image.effect_noise((16, 48), 60).convert('RGB').save(folder / 'images' / 'MALS' / row['image'])
    return str(folder)


def settings(root, output, **changes):
    return options(**{**dict(backbone='aptm', pretrain_choice='scratch:aptm-tiny', loss_names='itc', root_dir=root,
                             img_size=SIZE, text_length=20, batch_size=4, num_workers=0, output_dir=str(output)),
                      **changes})


def training_loaders(*given, **changes):
    args = settings(*given, **changes)
    return build_training_loaders(args, backbone_class(args))


def normalized(path, dataset):
    """The image as the reference implementation reads it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PUBLISHED[dataset])
    return (to_tensor(resize(read_image(path), SIZE, InterpolationMode.BICUBIC)) - mean) / std


def assert_normalized(loader, dataset):
    for number, path in enumerate(loader.dataset.img_paths):
        torch.testing.assert_close(loader.dataset[number][1], normalized(path, dataset), rtol=0, atol=1e-6)


@pytest.mark.parametrize('dataset', PUBLISHED)
def test_published_statistics_with_all_digits(dataset):
    image_stats = Aptm.image_stats(options(dataset_name='CUHK-PEDES'), dataset)
    assert (image_stats.mean, image_stats.std, image_stats.interpolation) == (*PUBLISHED[dataset], 'bicubic')


@pytest.mark.parametrize('trained_on, dataset, expected', [
    ('MALS', 'CUHK-PEDES', 'CUHK-PEDES'), ('CUHK-PEDES', 'ICFG-PEDES', 'ICFG-PEDES'),
    ('ICFG-PEDES', 'people.csv', 'ICFG-PEDES'), ('ICFG-PEDES', None, 'ICFG-PEDES'),
    ('people.csv', 'synthpedes', 'CUHK-PEDES'),
    ('ICFG-PEDES+RSTPReid', None, 'ICFG-PEDES'), (None, 'RSTPReid', 'RSTPReid')])
def test_whose_statistics(trained_on, dataset, expected):
    """Tables, synthpedes and photos (None) have no statistics: they use those of the training set, or CUHK-PEDES'."""
    args = evaluation_options(trained_on, dataset_name='PA-100K' if trained_on else dataset)
    image_stats = Aptm.image_stats(args, dataset)
    assert (image_stats.mean, image_stats.std) == PUBLISHED[expected]


def test_validation_of_pretraining_has_its_own_statistics(root, tmp_path):
    loaders = training_loaders(root, tmp_path, dataset_name='MALS', eval_dataset='CUHK-PEDES')
    assert_normalized(loaders.evaluations['CUHK-PEDES'][0], 'CUHK-PEDES')
    own = torch.stack([normalized(sample[2], 'MALS') for sample in loaders.train.dataset.samples])
    for sample in map(loaders.train.dataset.__getitem__, range(4)):
        assert min((sample['images'] - other).abs().max() for image in own for other in (image, image.flip(-1))) < 1e-6


@pytest.mark.parametrize('trained_on', ['CUHK-PEDES', 'MALS', 'CUHK-PEDES+ICFG-PEDES'])
def test_another_dataset_is_tested_with_its_own_statistics(root, tmp_path, trained_on):
    (tmp_path / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a']))
    args = evaluation_options(trained_on, **vars(settings(root, tmp_path, dataset_name='RSTPReid')))
    images, _, _ = build_dataloader(args, Aptm)
    assert_normalized(images, 'RSTPReid')


class Images:
    """A model whose embedding is the image."""
    training = False

    def parameters(self):
        return iter([torch.zeros(1)])

    def train(self, mode=True):
        return self

    eval = train

    def encode_image(self, images):
        return images.flatten(1)

    encode_text = image_stats = None


@pytest.mark.parametrize('cached', [False, True])
def test_joined_datasets_keep_their_own_statistics(root, tmp_path, cached):
    """In training and in evaluation. The image cache holds colors, so that statistics are no part of its key."""
    cache = {'image_cache': str(tmp_path / 'cache')} if cached else {}
    loaders = training_loaders(root, tmp_path, dataset_name='ICFG-PEDES+CUHK-PEDES', **cache)
    for name, (images, _) in loaders.evaluations.items():
        expected = torch.stack([normalized(path, name) for path in images.dataset.img_paths])
        torch.testing.assert_close(embed(Images(), images, 'image')[0], expected.flatten(1), rtol=0, atol=1e-6)
    samples, seen = loaders.train.dataset.samples, set()
    for batch in loaders.train:
        for index, image in zip(batch['index'].tolist(),
                                prepare_batch(batch, 'cpu', image_stats=loaders.train.dataset.image_stats)['images']):
            name = next(name for name in NAMES if f'{os.sep}{name}{os.sep}' in samples[index][2])
            expected, seen = normalized(samples[index][2], name), seen | {name}
            assert min((image - other).abs().max() for other in (expected, expected.flip(-1))) < 1e-6
    assert seen == {'ICFG-PEDES', 'CUHK-PEDES'}


def test_one_dataset_needs_no_statistics_in_its_batches(root, tmp_path):
    loaders = training_loaders(root, tmp_path, dataset_name='ICFG-PEDES', rand_aug=True)
    assert 'image_stats' not in next(iter(loaders.train))
    joined = training_loaders(root, tmp_path, dataset_name='ICFG-PEDES+CUHK-PEDES', backbone='clip',
                              image_cache=str(tmp_path))
    assert 'image_stats' not in next(iter(joined.train))      # CLIP's are the same for all

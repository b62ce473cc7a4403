"""Recipes in configs/: the file of each method and dataset, and former paths."""
import os

import pytest

from utils.errors import UserError
from utils.options import build_test_parser, get_args, parse_test_options, run_options
from utils.recipes import BENCHMARKS, CONFIGS, find_recipes, recipe_names

METHODS = ('a2te', 'agm', 'aptm', 'conquer', 'dm-adapter', 'fmfa', 'gadms', 'icl', 'irra', 'mars', 'php', 'rasa', 'rde',
           'sen', 'tbps-clip', 'up-person')
# {dataset: methods with other values on it}
WITH_OWN_FILES = {'CUHK-PEDES': (), 'ICFG-PEDES': ('a2te', 'php'), 'RSTPReid': ('a2te', 'php', 'up-person')}


def recipe_of(method, dataset):
    """Options that name the recipe of a method for a dataset."""
    if method in WITH_OWN_FILES[dataset]:
        return f'--config_file configs/{method}-{dataset.lower()}.yaml'
    return f'--config_file configs/{method}.yaml --dataset_name {dataset}'


FORMER_PATHS = {
    **{f'configs/{method}/{dataset.lower()}.yaml': recipe_of(method, dataset)
       for method in METHODS for dataset in BENCHMARKS},
    **{f'configs/{method}/{dataset.lower()}-{variant}.yaml':
       f'--config_file configs/{method}-{variant}.yaml --dataset_name {dataset}'
       for method, variant in (('irra', 'ham'), ('sen', 'xl')) for dataset in BENCHMARKS},
    'configs/aptm/pretrain-mals.yaml': '--config_file configs/aptm-mals.yaml',
    'configs/aptm/pa-100k.yaml': '--config_file configs/aptm-pa-100k.yaml',
    'configs/aptm/pa-100k-image.yaml': '--config_file configs/aptm-pa-100k-image.yaml',
    **{f'configs/{method}/synthpedes.yaml': f'--config_file configs/{method}-synthpedes.yaml'
       for method in ('aptm', 'rasa')}}


NEVER_MOVED = {'configs/gadms-webperson.yaml', 'configs/rasa-synthpedes-encoders.yaml'}


def test_every_recipe_had_a_former_path_or_never_moved():
    recipes = {f'configs/{name}.yaml' for name in recipe_names([''])}
    files = {f'configs/{name}' for name in os.listdir(CONFIGS) if name.endswith('.yaml')}
    assert files - recipes == {'configs/zoo.yaml'}
    former = {command.split()[1] for command in FORMER_PATHS.values()}
    assert recipes == former | NEVER_MOVED and not former & NEVER_MOVED


@pytest.mark.parametrize('path, command', FORMER_PATHS.items())
def test_a_former_path_is_answered_with_the_command(path, command, monkeypatch):
    monkeypatch.chdir(os.path.dirname(CONFIGS))
    sentence = f'^no config file {path}: the recipe has moved; give {command}$'
    with pytest.raises(UserError, match=sentence):
        get_args(['--config_file', path])
    with pytest.raises(UserError, match=sentence):
        parse_test_options(build_test_parser('', ''), ['--config_file', path])
    method, dataset = path.split('/')[1], get_args(command.split()).dataset_name
    assert os.path.splitext(os.path.basename(path))[0].removeprefix('pretrain-').startswith(dataset.lower())
    assert get_args(command.split()).name.startswith(method)


def test_a_former_path_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"give --config_file {os.path.join(CONFIGS, 'irra.yaml')} --dataset_name RSTP"):
        run_options(os.path.join(CONFIGS, 'irra', 'rstpreid.yaml'))
    for missing in ('irra/cuhk-pedes.yaml', 'configs/irra/cuhk-pedes.yaml', 'configs/irra/x.yaml', 'x.yaml', 'configs'):
        with pytest.raises(UserError, match=f'^no config file {missing}$'):
            run_options(missing)
    (tmp_path / 'configs' / 'irra').mkdir(parents=True)
    (tmp_path / 'configs' / 'irra' / 'cuhk-pedes.yaml').write_text('batch_size: 7')      # somebody's own copy
    assert get_args(['--config_file', 'configs/irra/cuhk-pedes.yaml']).batch_size == 7


@pytest.mark.parametrize('dataset, expected', [
    ('CUHK-PEDES', {f'{method}.yaml' for method in METHODS}),
    *((dataset, {f'{method}-{dataset.lower()}.yaml' if method in WITH_OWN_FILES[dataset] else f'{method}.yaml'
                 for method in METHODS}) for dataset in ('ICFG-PEDES', 'RSTPReid')),
    ('MALS', {'aptm-mals.yaml'}), ('PA-100K', {'aptm-pa-100k.yaml'}),
    ('synthpedes', {'aptm-synthpedes.yaml', 'rasa-synthpedes.yaml'}),
    ('people.csv', set())])
def test_recipes_of_a_dataset(dataset, expected):
    paths = find_recipes(dataset)
    assert len(paths) == len(set(paths)) and {os.path.basename(path) for path in paths} == expected
    assert all(os.path.dirname(path) == CONFIGS for path in paths)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dataset', BENCHMARKS)
def test_a_recipe_differs_from_no_recipe(method, dataset):
    args = get_args(recipe_of(method, dataset).split())
    assert args.dataset_name == dataset and args.name == method and not args.config.notes


@pytest.mark.parametrize('flags, note', [
    ('--lr 2e-5', 'configs/irra.yaml: lr 2e-05 (recipe 1e-05)'),
    ('--freeze image', "configs/irra.yaml: freeze ['image'] (recipe without it)"),
    ('--batch_size 128 --lr_rules flat --lr 2e-5', 'configs/gadms.yaml: lr 2e-05 (recipe 1e-05)')])
def test_a_run_is_compared_with_the_nearest_of_several_recipes_with_its_losses(flags, note):
    args = get_args(['--config_file', 'configs/irra.yaml', *flags.split()])
    assert args.config.notes == (f'differs from {note}',)


@pytest.mark.parametrize('dataset, notes', [
    ('CUHK-PEDES', ()), ('RSTPReid', ('differs from configs/php-rstpreid.yaml: aux_factor 3.0 (recipe 0.5)',))])
def test_a_recipe_on_a_dataset_that_has_its_own_is_noted(dataset, notes):
    assert get_args(['--config_file', 'configs/php.yaml', '--dataset_name', dataset]).config.notes == notes


def test_a_recipe_is_tested_for_the_dataset_of_the_command_line(tmp_path):
    checkpoint = tmp_path / 'checkpoint_best.pth'
    checkpoint.write_bytes(b'')

    def trained_on(recipe):
        words = ['--config_file', recipe, '--dataset_name', 'RSTPReid', '--checkpoint', str(checkpoint)]
        args = parse_test_options(build_test_parser('', ''), words)
        assert args.dataset_name == 'RSTPReid'
        return args.config.data.trained_on
    assert trained_on('configs/tbps-clip.yaml') == 'RSTPReid'
    assert trained_on('configs/php.yaml') == 'CUHK-PEDES'      # the recipe names its dataset

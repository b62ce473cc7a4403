"""Complete options, and the derived values of a run."""
import argparse
import dataclasses

import pytest
import yaml

from model import build_model
from solver import build_lr_scheduler, build_optimizer
from tests.support import options, small_archive
from utils.errors import UserError
from utils.iotools import load_train_configs, save_train_configs
from utils.options import (build_parser, build_test_parser, complete, get_args, parse_test_options, replace_options,
                           run_options, with_notes)


@pytest.fixture
def run(tmp_path):
    """The configs.yaml of a run on two datasets."""
    save_train_configs(str(tmp_path), get_args(['--dataset_name', 'MALS+CUHK-PEDES', '--loss_names', 'sdm+mlm']))
    (tmp_path / 'best.pth').write_bytes(b'')
    return str(tmp_path / 'configs.yaml')


def test_complete_options_are_all_options_and_nothing_else(run):
    assert set(vars(get_args([]))) == set(vars(run_options(run))) == set(build_parser().actions())
    tested = parse_test_options(build_test_parser('', ''), ['--config_file', run])
    assert set(vars(tested)) == set(build_parser().actions()) | set(build_test_parser('', '').actions())


def test_missing_options_get_their_defaults_in_a_copy():
    script = argparse.Namespace(loss_names='sdm', img_size=[64, 32])
    args = complete(script)
    assert vars(script) == {'loss_names': 'sdm', 'img_size': [64, 32]}
    assert (args.loss_names, args.img_size, args.lr, args.caption_masking) == ('sdm', (64, 32), 1e-5, 'clean')
    assert vars(complete(argparse.Namespace())) == vars(get_args([]))
    assert complete(argparse.Namespace(training=False)).checkpoint is None


def test_complete_options_stay_as_they_are():
    args = with_notes(options(loss_names='sdm+itc+aux'), ['a note'])
    again = complete(args)
    assert again is not args and vars(again) == vars(args) and again.config == args.config
    assert vars(complete(argparse.Namespace(**vars(args)))) == vars(args)


def test_options_that_contradict_each_other():
    with pytest.raises(UserError, match='--masked_token_rate and --masked_token_unchanged_rate.* must not exceed 1'):
        complete(argparse.Namespace(masked_token_rate=0.9, masked_token_unchanged_rate=0.2))


def test_derived_values_follow_the_options():
    args = options(loss_names='sdm', dataset_name='RSTPReid')
    assert args.config.data.batch_fields == () and args.config.data.trained_on == 'RSTPReid'
    changed = replace_options(args, loss_names='sdm+mlm', init_from='start.pth')
    assert changed.config.data.batch_fields == ('mlm_labels',) and changed.config.model.weights == 'start.pth'
    assert args.loss_names == 'sdm' and args.config.model.weights == 'ViT-B/16'
    args.loss_names = 'sdm+mlm'     # as a script of IRRA's users does
    assert complete(args).config.data.batch_fields == ('mlm_labels',)
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.config.notes = ()


def test_an_evaluation_knows_what_the_run_trained_on(run):
    args = parse_test_options(build_test_parser('', ''), ['--config_file', run])
    data = args.config.data
    assert (args.dataset_name, data.trained_on, data.further_datasets) == ('MALS', 'MALS+CUHK-PEDES', ('CUHK-PEDES',))
    other = replace_options(args, dataset_name='RSTPReid')
    assert other.config.data.trained_on == 'MALS+CUHK-PEDES' and other.config.model.weights == args.checkpoint
    untrained = parse_test_options(build_test_parser('', ''), ['--pretrain_choice', 'ViT-B/16'])
    assert untrained.config.data.trained_on is None and untrained.config.model.weights == 'ViT-B/16'


def test_a_configs_file_records_options_and_batch_fields(run):
    with open(run) as file:
        content = yaml.safe_load(file)
    recorded = set(build_parser().actions()) - {'config_file', 'print_config', 'dry_run'}
    assert set(content) == recorded | {'batch_fields'} and content['batch_fields'] == ['mlm_labels']
    assert vars(complete(load_train_configs(run))) == vars(run_options(run))


def test_building_changes_no_option(tmp_path):
    archive = small_archive(tmp_path / 'clip.pt')
    args = options(loss_names='sdm+id', pretrain_choice=archive, img_size=(64, 32))
    script = argparse.Namespace(loss_names='sdm+id', pretrain_choice=archive, img_size=(64, 32), training=True)
    for given in (args, script):
        before = dict(vars(given))
        model = build_model(given, 3)
        build_lr_scheduler(given, build_optimizer(given, model))
        assert vars(given) == before and model.backbone.resolved_options['activation'] == 'quick_gelu'

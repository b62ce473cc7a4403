"""Configs that the reference implementations of five methods wrote, read with the meaning that their code gave them."""
import pytest

from utils.iotools import load_train_configs
from utils.options import get_args, run_options

IRRA = {
    'MLM': 'true', 'alpha': '0.9', 'batch_size': '64', 'beta': '0.999', 'bias_lr_factor': '2.0', 'cmt_depth': '4',
    'dataset_name': 'RSTPReid', 'distributed': 'false', 'eval_period': '1', 'gamma': '0.1', 'id_loss_weight': '1.0',
    'img_aug': 'true',
    'img_size': '!!python/tuple\n- 384\n- 128', 'local_rank': '0', 'log_period': '100', 'loss_names': 'sdm+mlm+id',
    'lr': '1.0e-05',
    'lr_factor': '5.0', 'lrscheduler': 'cosine', 'masked_token_rate': '0.8', 'masked_token_unchanged_rate': '0.1',
    'milestones': '!!python/tuple\n- 20\n- 50', 'mlm_loss_weight': '1.0', 'momentum': '0.9', 'name': 'run',
    'num_epoch': '60',
    'num_instance': '4', 'num_workers': '8', 'optimizer': 'Adam', 'output_dir': 'logs/RSTPReid/20230101_000000_run',
    'power': '0.9',
    'pretrain_choice': 'ViT-B/16', 'resume': 'false', 'resume_ckpt_file': "''", 'root_dir': './data',
    'sampler': 'random',
    'stride_size': '16', 'target_lr': '0', 'temperature': '0.02', 'test_batch_size': '512', 'text_length': '77',
    'training': 'true',
    'val_dataset': 'test', 'vocab_size': '49408', 'warmup_epochs': '5', 'warmup_factor': '0.1',
    'warmup_method': 'linear',
    'weight_decay': '4.0e-05', 'weight_decay_bias': '0.0'}
FORKS = {
    'irra': {},
    'agm': {'loss_names': 'sdm+mlm+id+cmt', 'MIM': 'false', 'patch_dim': '64', 'mim_loss_weight': '1.0'},
    'a2te': {'attribute_weight': '1.0', 'pool_ratio': '0.3', 'detail_loss_weight': '0.01',
             'img_res': '16', 'queue_size': '65536', 'stage': 'first', 'alpha': '0.5', 'temperature': '0.01'},
    'sen': {'loss_names': 'sdm+id', 'MLM': 'false', 'need_MAE': 'true', 'mask_ratio': '0.7', 'mae_loss_weight': '10.0',
            'tri_loss_weight': '10.0', 'need_limit': 'false', 'need_pseudo': 'false', 'fuse_loss_weight': '1.0',
            'sampler': 'idrannum',
            'num_instance': '2', 'seed': '42'},
    'php': {'loss_names': 'sdm+itc+aux', 'MLM': 'false', 'num_experts': '4', 'topk': '2', 'reduction': '8',
            'moe_layers': '4',
            'moe_heads': '8',
            'moe_lr_factor': '2.0', 'transformer_lr_factor': '1.0', 'aux_factor': '0.5', 'cnum': '9',
            'test_batch_size': '64'},
    'up-person': {'loss_names': 'sdm', 'prefix_length': '10', 'rank': '32', 'depth_lora': '12', 'depth_prefix': '12',
                  'depth_adapter': '0', 'n_ctx': '4', 'depth': '9'},
    'dm-adapter': {'loss_names': 'sdm+aux', 'num_experts': '6', 'topk': '2', 'reduction': '8'}}


def write(tmp_path, fork, without=(), file='configs.yaml', **changes):
    content = {**IRRA, **FORKS[fork], **changes}
    path = tmp_path / file
    path.write_text(''.join(f'{name}: {value}\n' for name, value in sorted(content.items()) if name not in without))
    return str(path)


@pytest.mark.parametrize('fork, meant', [
    ('irra', dict(caption_masking='inplace', mlm_masking='random', freeze_conv1=False, itc_loss_weight=1.0,
                  php_attention=None)),
    ('agm', dict(caption_masking='inplace', mlm_masking='random', loss_names='sdm+mlm+id+cmt')),
    ('a2te', dict(caption_masking='inplace', freeze_conv1=True, temperature=0.01, alpha=0.5, momentum=0.9)),
    ('sen', dict(caption_masking='inplace', mlm_masking='noun', caption_filter=0.2, num_instance=2,
                 freeze_conv1=False)),
    ('php', dict(caption_masking='clean', php_attention='batch', php_parts='crfm+efp', itc_loss_weight=5.0,
                 test_batch_size=64,
                 num_experts=4, moe_lr_factor=2.0)),
    ('up-person', dict(tuning='up-person', loss_names='sdm', prefix_length=10, rank=32, caption_masking='inplace')),
    ('dm-adapter', dict(tuning='dm-adapter', loss_names='sdm+aux', num_experts=6, php_attention=None, php_parts=None,
                        itc_loss_weight=1.0, caption_masking='inplace'))])
def test_each_fork(tmp_path, fork, meant):
    path = write(tmp_path, fork)
    for args in (run_options(path), load_train_configs(path)):
        assert {name: getattr(args, name) for name in meant} == meant
        assert args.img_size == (384, 128) and args.milestones == (20, 50) and args.lr == 1e-5


def test_what_an_older_config_lacks_is_its_forks_default(tmp_path):
    args = run_options(write(tmp_path, 'php', without=('test_batch_size', 'moe_lr_factor', 'transformer_lr_factor')))
    assert (args.test_batch_size, args.moe_lr_factor, args.transformer_lr_factor) == (64, 1.0, 1.0)
    assert run_options(write(tmp_path, 'a2te', without=('temperature', 'alpha'))).temperature == 0.01
    assert run_options(write(tmp_path, 'sen', without=('num_instance',))).num_instance == 2
    assert run_options(write(tmp_path, 'irra', without=('temperature',))).temperature == 0.02


def test_sen_without_its_dataset_masks_nothing(tmp_path):
    args = run_options(write(tmp_path, 'sen', need_MAE='false'))
    assert (args.caption_masking, args.mlm_masking, args.caption_filter) == ('clean', 'random', 0.0)


def test_a_key_of_ours_wins(tmp_path):
    """A config of Pedestal has its own meaning, such as slots for PHP."""
    assert run_options(write(tmp_path, 'php', php_attention='slots')).php_attention == 'slots'
    ours = get_args(['--loss_names', 'sdm+itc+aux', '--num_experts', '4'])
    from utils.iotools import save_train_configs
    save_train_configs(str(tmp_path), ours)
    loaded = run_options(str(tmp_path / 'configs.yaml'))
    assert (loaded.php_attention, loaded.itc_loss_weight) == ('slots', 1.0)
    assert (loaded.freeze_conv1, loaded.caption_masking) == (False, 'clean')


def test_a_published_config_as_a_recipe_trains_as_it_did(tmp_path):
    args = get_args(['--config_file', write(tmp_path, 'php')])
    assert (args.php_attention, args.itc_loss_weight, args.output_dir) == ('batch', 5.0, 'logs')


@pytest.mark.parametrize('file', ['configs.yaml', 'php.yaml'])
def test_content_decides_and_not_the_files_name(tmp_path, file):
    args = get_args(['--config_file', write(tmp_path, 'php', file=file)])
    assert (args.php_attention, args.itc_loss_weight, args.num_experts, args.output_dir) == ('batch', 5.0, 4, 'logs')


def test_a_recipe_of_that_name_is_a_recipe(tmp_path):
    path = tmp_path / 'configs.yaml'
    path.write_text('loss_names: sdm+itc+aux\nnum_experts: 4\nmoe_layers: 4\noutput_dir: mine\n')
    args = get_args(['--config_file', str(path)])
    assert (args.php_attention, args.itc_loss_weight, args.output_dir) == ('slots', 1.0, 'mine')


def test_a_loaded_config_is_read_by_attribute_and_by_key(tmp_path):
    args = load_train_configs(write(tmp_path, 'sen'))
    assert args.mask_ratio == args['mask_ratio'] == 0.7
    args.training = False
    assert args['training'] is False and vars(args)['training'] is False
    assert args.img_size == (384, 128) and 'lr' in args

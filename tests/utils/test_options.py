"""Flags, recipes and published configs: what they mean, and one sentence for each way to get them wrong."""
import os

import pytest
import yaml

from utils.errors import UserError
from utils.options import build_parser, get_args, run_options

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IRRA_COMMAND = ['--name', 'irra', '--img_aug', '--batch_size', '64', '--MLM', '--loss_names', 'sdm+mlm+id',
                '--dataset_name', 'CUHK-PEDES', '--root_dir', 'data', '--num_epoch', '60']

# options.md, column IRRA
IRRA_DEFAULTS = dict(
    name='baseline', output_dir='logs', log_period=100, eval_period=1, val_dataset='test', resume=False, resume_ckpt_file='',
    pretrain_choice='ViT-B/16', temperature=0.02, img_aug=False, cmt_depth=4, masked_token_rate=0.8,
    masked_token_unchanged_rate=0.1, lr_factor=5.0, MLM=False, loss_names='sdm+id+mlm', mlm_loss_weight=1.0, id_loss_weight=1.0,
    img_size=(384, 128), stride_size=16, text_length=77, vocab_size=49408, optimizer='Adam', lr=1e-5, bias_lr_factor=2.0,
    momentum=0.9, weight_decay=4e-5, weight_decay_bias=0.0, alpha=0.9, beta=0.999, num_epoch=60, milestones=(20, 50), gamma=0.1,
    warmup_factor=0.1, warmup_epochs=5, warmup_method='linear', lrscheduler='cosine', target_lr=0.0, power=0.9,
    dataset_name='CUHK-PEDES', sampler='random', num_instance=4, root_dir='./data', batch_size=128, test_batch_size=512,
    num_workers=8, training=True, local_rank=0)


def test_defaults_are_irras():
    args = vars(get_args([]))
    assert {name: args[name] for name in IRRA_DEFAULTS} == IRRA_DEFAULTS


def test_irras_own_command():
    args = get_args(IRRA_COMMAND)
    assert args.img_aug and args.MLM and args.batch_size == 64 and args.caption_masking == 'inplace'
    assert args.batch_fields == ('mlm_labels',)
    assert args.notes == []  # the command is the recipe: nothing differs from it


@pytest.mark.parametrize('argv, masking', [([], 'clean'), (['--MLM'], 'inplace'), (['--MLM', '--caption_masking', 'clean'], 'clean'),
                                           (['--caption_masking', 'inplace'], 'inplace')])
def test_caption_masking(argv, masking):
    assert get_args(argv).caption_masking == masking


def test_types_that_work():
    args = get_args('--img_size 256 96 --log_period 5 --eval_period 2 --milestones 3 6 9 --lr 1e-4 --val_dataset val'.split())
    assert (args.img_size, args.log_period, args.eval_period, args.milestones, args.lr) == ((256, 96), 5, 2, (3, 6, 9), 1e-4)


@pytest.mark.parametrize('argv, message', [
    (['--batchsize', '3'], 'unknown flag --batchsize; did you mean --batch_size'),
    (['--warmup', '3'], 'unknown flag --warmup, which could be --warmup_epochs or --warmup_factor or --warmup_method'),
    (['--batch_size', 'many'], "argument --batch_size: invalid int value: 'many'"),
    (['--batch_size', '0'], 'must be above 0'),
    (['--lr', 'nan'], 'must be at least 0'),
    (['--temperature', '0'], 'must be above 0'),
    (['--img_size', '384'], 'expected 2 arguments'),
    (['--lrscheduler', 'cosin'], 'invalid choice'),
    (['--loss_names', 'sdm+idd'], "unknown loss 'idd'.*did you mean id"),
    (['stray'], "'stray' belongs to no flag"),
    (['--masked_token_rate', '0.8', '--masked_token_unchanged_rate', '0.3'], 'add up to 1.1'),
    (['--resume'], 'needs --resume_ckpt_file'),
    (['--init_from', 'no.pth'], 'there is no file no.pth'),
    (['--config_file', 'no/such.yaml'], 'no config file no/such.yaml'),
])
def test_wrong_flags(argv, message):
    with pytest.raises(UserError, match=message):
        get_args(argv)


def recipe(tmp_path, text):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    return str(path)


def test_recipe_then_flags(tmp_path):
    path = recipe(tmp_path, 'batch_size: 16\nlr: 1e-4\nimg_aug: true\nimg_size: [96, 48]\nmilestones: 7\n')
    args = get_args(['--config_file', path, '--batch_size', '32'])
    assert (args.batch_size, args.lr, args.img_aug, args.img_size, args.milestones) == (32, 1e-4, True, (96, 48), (7,))
    assert get_args(['--config_file', path, '--no-img_aug']).img_aug is False


@pytest.mark.parametrize('text, message', [
    ('batchsize: 3', "unknown option 'batchsize'; did you mean batch_size"),
    ('batch_size: many', 'batch_size'),
    ('batch_size: [1, 2]', 'must be a single value'),
    ('img_aug: perhaps', 'must be true or false'),
    ('img_size: [384]', 'must be 2 numbers'),
    ('lrscheduler: cosin', 'must be one of'),
    ('- 1\n- 2', 'name: value'),
    ('a: [', 'is not YAML'),
    ("x: !!python/object/apply:os.system ['true']", 'line 1.*plain values only'),
    ('x: !!python/name:os.system', 'line 1.*plain values only'),
])
def test_wrong_recipes(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        get_args(['--config_file', recipe(tmp_path, text)])


def test_yaml_that_carries_code_does_not_run(tmp_path):
    mark = tmp_path / 'ran'
    with pytest.raises(UserError):
        get_args(['--config_file', recipe(tmp_path, f"x: !!python/object/apply:pathlib.Path.touch [{mark}]")])
    assert not mark.exists()


def test_print_config_is_a_recipe(tmp_path, capsys):
    argv = ['--config_file', os.path.join(ROOT, 'configs/irra/cuhk-pedes.yaml'), '--batch_size', '32']
    with pytest.raises(SystemExit) as left:
        get_args(argv + ['--print_config'])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    path = recipe(tmp_path, printed)
    again, direct = vars(get_args(['--config_file', path])), vars(get_args(argv))
    for name in set(direct) - {'config_file', 'notes'}:
        assert again[name] == direct[name], name


@pytest.mark.parametrize('method, losses', [('irra', {'sdm', 'mlm', 'id'}), ('agm', {'sdm', 'mlm', 'id', 'cmt'})])
@pytest.mark.parametrize('dataset', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
def test_recipes(method, losses, dataset):
    args = get_args(['--config_file', os.path.join(ROOT, f'configs/{method}/{dataset.lower()}.yaml')])
    assert args.dataset_name == dataset and set(args.loss_names.split('+')) == losses
    assert (args.batch_size, args.lr, args.num_epoch, args.caption_masking, args.img_aug) == (64, 1e-5, 60, 'inplace', True)
    assert args.notes == []


def test_differences_from_the_published_recipe_are_said():
    notes = get_args(IRRA_COMMAND + ['--batch_size', '32', '--lr', '1e-4']).notes
    assert len(notes) == 1
    assert 'configs/irra/cuhk-pedes.yaml' in notes[0]
    assert 'batch_size 32 (recipe 64)' in notes[0] and 'lr 0.0001 (recipe 1e-05)' in notes[0]


def test_an_option_that_no_head_reads_is_said():
    notes = get_args(['--loss_names', 'sdm', '--mlm_loss_weight', '2']).notes
    assert len(notes) == 1 and 'no active head reads --mlm_loss_weight' in notes[0]
    assert get_args(['--loss_names', 'sdm', '--temperature', '0.1']).notes == []


OFFICIAL_CONFIG = """\
MLM: true
attn_implementation_of_a_fork: whatever
batch_size: 64
distributed: false
img_size: !!python/tuple
- 384
- 128
local_rank: 0
loss_names: sdm+mlm+id
milestones: !!python/tuple
- 20
- 50
output_dir: logs/CUHK-PEDES/20230101_000000_irra
root_dir: /somebody/else
training: true
"""


def test_mlm_on_the_command_line_decides_the_masking_of_a_printed_recipe(tmp_path, capsys):
    with pytest.raises(SystemExit):
        get_args(['--loss_names', 'sdm+mlm+id', '--print_config'])
    path = recipe(tmp_path, capsys.readouterr().out)
    assert get_args(['--config_file', path]).caption_masking == 'clean'
    assert get_args(['--config_file', path, '--MLM']).caption_masking == 'inplace'
    assert get_args(['--config_file', path, '--MLM', '--caption_masking', 'clean']).caption_masking == 'clean'


def test_a_printed_recipe_makes_no_noise(tmp_path, capsys):
    with pytest.raises(SystemExit):
        get_args(IRRA_COMMAND + ['--print_config'])
    assert get_args(['--config_file', recipe(tmp_path, capsys.readouterr().out)]).notes == []


def test_an_embedding_that_no_loss_names_is_said():
    notes = get_args(['--config_file', os.path.join(ROOT, 'configs/php/cuhk-pedes.yaml'), '--loss_names', 'sdm+id']).notes
    assert any("'aux' is not among the losses and shapes the model all the same" in note for note in notes)


def test_published_config_is_read(tmp_path):
    path = tmp_path / 'configs.yaml'
    path.write_text(OFFICIAL_CONFIG)
    args = run_options(str(path))
    assert args.img_size == (384, 128) and args.caption_masking == 'inplace' and args.temperature == 0.02
    assert args.output_dir == 'logs/CUHK-PEDES/20230101_000000_irra' and args.attn_implementation_of_a_fork == 'whatever'


def test_a_runs_config_as_a_recipe_leaves_the_run_behind(tmp_path):
    path = tmp_path / 'configs.yaml'
    path.write_text(OFFICIAL_CONFIG.replace('attn_implementation_of_a_fork: whatever\n', ''))
    args = get_args(['--config_file', str(path)])
    assert args.output_dir == 'logs' and args.batch_size == 64


def test_every_option_has_help():
    assert not [name for name, action in build_parser().actions().items() if not action.help]


def test_saved_options_are_plain_yaml(tmp_path):
    from utils.iotools import load_train_configs, save_train_configs
    args = get_args(IRRA_COMMAND)
    save_train_configs(str(tmp_path), args)
    content = yaml.safe_load((tmp_path / 'configs.yaml').read_text())
    assert content['img_size'] == [384, 128] and content['loss_names'] == 'sdm+mlm+id'
    loaded = load_train_configs(str(tmp_path / 'configs.yaml'))
    assert {name: value for name, value in vars(loaded).items() if name != 'config_file'} == \
        {name: value for name, value in vars(args).items() if name != 'config_file'}

"""Flags, recipes and published configs: their meaning, and an error for each wrong use."""
import os

import pytest
import yaml

from utils import iotools, option_declarations, options
from utils.errors import UserError
from utils.help_pages import help_page
from utils.options import build_parser, build_test_parser, get_args, run_options
from utils.recipes import UNREAD_COMMENT

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IRRA_COMMAND = ['--name', 'irra', '--img_aug', '--batch_size', '64', '--MLM', '--loss_names', 'sdm+mlm+id',
                '--dataset_name', 'CUHK-PEDES', '--root_dir', 'data', '--num_epoch', '60']

# options.md, column IRRA
IRRA_DEFAULTS = dict(
    name='baseline', output_dir='logs', log_period=100, eval_period=1, val_dataset='test', resume=False,
    resume_ckpt_file='', pretrain_choice='ViT-B/16', temperature=0.02, img_aug=False, cmt_depth=4,
    masked_token_rate=0.8, masked_token_unchanged_rate=0.1, lr_factor=5.0, MLM=False, loss_names='sdm+id+mlm',
    mlm_loss_weight=1.0, id_loss_weight=1.0, img_size=(384, 128), stride_size=16, text_length=77, vocab_size=49408,
    optimizer='Adam', lr=1e-5, bias_lr_factor=2.0, momentum=0.9, weight_decay=4e-5, weight_decay_bias=0.0, alpha=0.9,
    beta=0.999, num_epoch=60, milestones=(20, 50), gamma=0.1, warmup_factor=0.1, warmup_epochs=5,
    warmup_method='linear', lrscheduler='cosine', target_lr=0.0, power=0.9, dataset_name='CUHK-PEDES',
    sampler='random', num_instance=4, root_dir='./data', batch_size=128, test_batch_size=512, num_workers=8,
    training=True, local_rank=0)


def test_defaults_are_irras():
    args = vars(get_args([]))
    assert {name: args[name] for name in IRRA_DEFAULTS} == IRRA_DEFAULTS


def test_irras_own_command():
    args = get_args(IRRA_COMMAND)
    assert args.img_aug and args.MLM and args.batch_size == 64 and args.caption_masking == 'inplace'
    assert args.config.data.batch_fields == ('mlm_labels',)
    assert args.config.notes == ()  # the command equals the recipe


@pytest.mark.parametrize('argv, masking', [
    ([], 'clean'), (['--MLM'], 'inplace'), (['--MLM', '--caption_masking', 'clean'], 'clean'),
    (['--caption_masking', 'inplace'], 'inplace')])
def test_caption_masking(argv, masking):
    assert get_args(argv).caption_masking == masking


def test_types():
    command = '--img_size 256 96 --log_period 5 --eval_period 2 --milestones 3 6 9 --lr 1e-4 --val_dataset val'
    args = get_args(command.split())
    assert (args.img_size, args.milestones) == ((256, 96), (3, 6, 9))
    assert (args.log_period, args.eval_period, args.lr) == (5, 2, 1e-4)


@pytest.mark.parametrize('argv, message', [
    (['--patience', '3'], 'unknown flag --patience; --help all lists all flags'),
    (['--batchsize', '3'], 'unknown flag --batchsize; did you mean --batch_size'),
    (['--lerning_rate', '3'], 'unknown flag --lerning_rate; did you mean --lr'),
    (['--gpus', '0'], 'unknown flag --gpus; did you mean --device'),
    (['--warmup', '3'], 'unknown flag --warmup, which could be --warmup_epochs or --warmup_factor or --warmup_lr or '
                        '--warmup_method or --warmup_steps'),
    (['--batch_size', 'many'], "argument --batch_size: 'many' must be an integer above 0 and at most 1000000"),
    (['--batch_size', '0'], 'must be above 0'),
    (['--lr', 'nan'], 'must be at least 0'),
    (['--temperature', '0'], 'must be above 0'),
    (['--img_size', '384'], 'expected 2 arguments'),
    (['--lrscheduler', 'cosin'], "--lrscheduler: invalid choice: 'cosin'; did you mean cosine.*; known: step, exp"),
    (['--loss_names', 'sdm+idd'], "unknown loss 'idd'.*did you mean id"),
    (['--loss_names', 'sdm,id'], r"unknown loss 'sdm,id' .*; losses are joined by \+: --loss_names sdm\+id$"),
    (['--loss_names', 'sdm id'], r'; losses are joined by \+: --loss_names sdm\+id$'),
    (['--root_dir=--'], '--root_dir needs a value'),
    (['stray'], "'stray' follows no flag"),
    (['--masked_token_rate', '0.8', '--masked_token_unchanged_rate', '0.3'], 'add up to 1.1'),
    (['--resume'], 'needs --resume_ckpt_file'),
    (['--init_from', 'no.pth'], '--init_from: there is no file no.pth'),
    (['--config_file', 'no/such.yaml'], 'no config file no/such.yaml'),
    (['--config_file', 'configs'], 'configs is a folder; name a file in it, such as a recipe, or the configs.yaml of'),
])
def test_wrong_flags(argv, message):
    with pytest.raises(UserError, match=message):
        get_args(argv)


def write_recipe(tmp_path, text):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    return str(path)


def test_recipe_then_flags(tmp_path):
    path = write_recipe(tmp_path, 'batch_size: 16\nlr: 1e-4\nimg_aug: true\nimg_size: [96, 48]\nmilestones: 7\n')
    args = get_args(['--config_file', path, '--batch_size', '32'])
    assert (args.batch_size, args.lr, args.img_aug, args.img_size, args.milestones) == (32, 1e-4, True, (96, 48), (7,))
    assert get_args(['--config_file', path, '--no-img_aug']).img_aug is False


@pytest.mark.parametrize('text, message', [
    ('batchsize: 3', "unknown option 'batchsize'; did you mean batch_size"),
    ('learning_rate: 3', "unknown option 'learning_rate'; did you mean lr"),
    ('batch_size: many', "recipe.yaml, batch_size: 'many' must be an integer above 0"),
    ('batch_size: [1, 2]', 'must be a single value'),
    ('img_aug: perhaps', 'must be true or false'),
    ('img_size: [384]', 'must be 2 numbers'),
    ('lrscheduler: cosin', "lrscheduler: invalid choice: 'cosin'; did you mean cosine"),
    ('- 1\n- 2', 'name: value'),
    ('a: [', 'is not YAML'),
    ("x: !!python/object/apply:os.system ['true']", 'line 1.*plain values only'),
    ('x: !!python/name:os.system', 'line 1.*plain values only'),
])
def test_wrong_recipes(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        get_args(['--config_file', write_recipe(tmp_path, text)])


def test_yaml_that_carries_code_does_not_run(tmp_path):
    marker = tmp_path / 'ran'
    with pytest.raises(UserError):
        get_args(['--config_file', write_recipe(tmp_path, f"x: !!python/object/apply:pathlib.Path.touch [{marker}]")])
    assert not marker.exists()


def test_print_config_is_a_recipe(tmp_path, capsys):
    argv = ['--config_file', os.path.join(ROOT, 'configs/irra.yaml'), '--batch_size', '32']
    with pytest.raises(SystemExit) as exit_info:
        get_args(argv + ['--print_config'])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    path = write_recipe(tmp_path, printed)
    again, direct = vars(get_args(['--config_file', path])), vars(get_args(argv))
    for name in set(direct) - {'config_file'}:
        assert again[name] == direct[name], name


@pytest.mark.parametrize('method, losses', [('irra', {'sdm', 'mlm', 'id'}), ('agm', {'sdm', 'mlm', 'id', 'cmt'})])
@pytest.mark.parametrize('dataset', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
def test_recipes(method, losses, dataset):
    args = get_args(['--config_file', os.path.join(ROOT, f'configs/{method}.yaml'), '--dataset_name', dataset])
    assert args.dataset_name == dataset and set(args.loss_names.split('+')) == losses
    assert (args.batch_size, args.lr, args.num_epoch) == (64, 1e-5, 60)
    assert (args.caption_masking, args.img_aug) == ('inplace', True)
    assert args.config.notes == ()


def test_differences_from_the_published_recipe_are_noted():
    notes = get_args(IRRA_COMMAND + ['--batch_size', '32', '--lr', '1e-4']).config.notes
    assert len(notes) == 1
    assert 'configs/irra.yaml' in notes[0]
    assert 'batch_size 32 (recipe 64)' in notes[0] and 'lr 0.0001 (recipe 1e-05)' in notes[0]


def test_an_option_that_no_head_reads_is_noted():
    notes = get_args(['--loss_names', 'sdm', '--mlm_loss_weight', '2']).config.notes
    assert len(notes) == 1 and 'no active head reads --mlm_loss_weight' in notes[0]
    assert get_args(['--loss_names', 'sdm', '--temperature', '0.1']).config.notes == ()


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
    path = write_recipe(tmp_path, capsys.readouterr().out)
    assert get_args(['--config_file', path]).caption_masking == 'clean'
    assert get_args(['--config_file', path, '--MLM']).caption_masking == 'inplace'
    assert get_args(['--config_file', path, '--MLM', '--caption_masking', 'clean']).caption_masking == 'clean'


def test_a_printed_recipe_has_no_notes(tmp_path, capsys):
    with pytest.raises(SystemExit):
        get_args(IRRA_COMMAND + ['--print_config'])
    assert get_args(['--config_file', write_recipe(tmp_path, capsys.readouterr().out)]).config.notes == ()


def test_an_embedding_that_no_loss_names_is_noted():
    config = os.path.join(ROOT, 'configs/php.yaml')
    notes = get_args(['--config_file', config, '--loss_names', 'sdm+id']).config.notes
    assert any("the head 'aux' is part of the model because its options are given" in note for note in notes)


def test_published_config_is_read(tmp_path):
    path = tmp_path / 'configs.yaml'
    path.write_text(OFFICIAL_CONFIG)
    args = run_options(str(path))
    assert args.img_size == (384, 128) and args.caption_masking == 'inplace' and args.temperature == 0.02
    assert args.output_dir == 'logs/CUHK-PEDES/20230101_000000_irra'
    assert iotools.load_train_configs(str(path)).attn_implementation_of_a_fork == 'whatever'


def test_a_runs_config_as_a_recipe_does_not_set_its_folder(tmp_path):
    path = tmp_path / 'configs.yaml'
    path.write_text(OFFICIAL_CONFIG)
    args = get_args(['--config_file', str(path)])
    assert args.output_dir == 'logs' and args.batch_size == 64
    for notes in (args.config.notes, run_options(str(path)).config.notes):
        assert f'{path}: Pedestal has no option attn_implementation_of_a_fork: skipped' in notes


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
    parts = (tmp_path / 'configs.yaml').read_text().split(UNREAD_COMMENT)
    read, unread = map(yaml.safe_load, parts)
    assert {'mlm_loss_weight', 'cmt_depth', 'temperature', 'lr'} <= set(read)      # the losses' own come first
    assert {'tau', 'num_experts', 'lora_rank', 'full_ca', 'queue_size'} <= set(unread) and not set(read) & set(unread)


# -- flags and recipes pass the same checks ----------------------------------------------------------------------------

WEIGHTS = [*sorted(name for name in build_parser().actions() if name.endswith('_weight')),
           'aux_factor', 'lr_factor', 'moe_lr_factor']


def flag_and_recipe(tmp_path, name, value):
    """Two command lines: with an option as a flag, and with a recipe that holds it."""
    return [f'--{name}={value}'], ['--config_file', write_recipe(tmp_path, f'{name}: {value}\n')]


@pytest.mark.parametrize('name', WEIGHTS)
@pytest.mark.parametrize('value', ['nan', 'inf', '-inf', '1e400', '-1', '.nan', '.inf'])
def test_weights_are_numbers_of_at_least_0(tmp_path, name, value):
    for argv in flag_and_recipe(tmp_path, name, value):
        with pytest.raises(UserError, match=name):
            get_args(argv)


def number_actions(parser):
    return [action for action in parser.actions().values() if action.type and not isinstance(action.default, str)]


def test_every_number_is_finite_and_bounded(tmp_path):
    """Also the options of future files: no option may lack bounds."""
    parser = build_parser()
    numbers = number_actions(parser)
    assert len(numbers) > 40
    for action in numbers:
        for value in ('nan', 'inf', '1e400', '9' * 40):
            argv = [f'--{action.dest}', *[value] * (action.nargs if isinstance(action.nargs, int) else 1)]
            with pytest.raises(UserError, match=action.dest):
                parser.parse(argv)      # get_args takes 40 times as long


@pytest.mark.parametrize('parser', [build_parser(), build_test_parser('test.py', '')], ids=['train', 'test'])
def test_no_number_may_be_negative(parser):
    """Also ignored options, and those of future files. Launchers give --local_rank -1 for one process."""
    for action in number_actions(parser):
        least = -2 if action.dest == 'local_rank' else -1
        for value in (least, -10 ** 9):
            with pytest.raises(UserError, match=f'{action.dest}.*{value}'):
                flag = action.option_strings[0]
                parser.parse([flag, *[str(value)] * 2] if action.nargs else [f'{flag}={value}'])


@pytest.mark.parametrize('name', [
    'num_experts', 'topk', 'moe_layers', 'moe_heads', 'cnum', 'reduction', 'cmt_depth', 'vocab_size', 'batch_size',
    'num_workers', 'text_length', 'stride_size', 'micro_batch', 'num_epoch'])
def test_counts_have_a_largest_value(tmp_path, name):
    for argv in flag_and_recipe(tmp_path, name, 99999999999):
        with pytest.raises(UserError, match=f'{name}.*at most'):
            get_args(argv)


@pytest.mark.parametrize('name, value, message', [
    ('name', '../../x', 'cannot be empty or hold a /'),
    ('name', '""', 'cannot be empty'),
    ('init_from', 'no.pth', 'there is no file no.pth'),
    ('resume_ckpt_file', 'no.pth', 'is only read with --resume'),
    ('resume', 'true', 'needs --resume_ckpt_file'),
    ('lrscheduler', 'cosin', 'cosin'),
    ('name', 'null', 'must be a single value'),
])
def test_a_recipe_passes_the_checks_of_a_run(tmp_path, name, value, message):
    with pytest.raises(UserError, match=message):
        get_args(['--config_file', write_recipe(tmp_path, f'{name}: {value}\n')])


@pytest.mark.parametrize('name', [
    'name', 'output_dir', 'root_dir', 'pretrain_choice', 'image_cache', 'dataset_name', 'config_file'])
@pytest.mark.parametrize('value, yaml_value', [('a\0b', '"a\\0b"'), ('a\udcff', '"a\\udcff"')])
def test_names_that_no_file_can_have(tmp_path, name, value, yaml_value):
    _, recipe_argv = flag_and_recipe(tmp_path, name, yaml_value)
    for argv in ([f'--{name}', value], recipe_argv):
        with pytest.raises(UserError, match='holds a byte 0 or bytes that are not UTF-8|is not YAML'):
            get_args(argv)


# -- released command lines --------------------------------------------------------------------------------------------

PHP_COMMAND = ('--name php --img_aug --batch_size 64 --loss_names sdm+itc+aux --lr 3e-6 --num_epoch 60 --num_experts 4 '
               '--topk 2 --reduction 8 --moe_layers 4 --moe_heads 8 --moe_lr_factor 2 --transformer_lr_factor 1 '
               '--aux_factor 0.5').split()
SEN_COMMAND = ('--name sen --img_aug --batch_size 128 --loss_names sdm+mae+id+tri --num_epoch 60 --need_MAE '
               '--mask_ratio 0.7 --mae_loss_weight 10 --tri_loss_weight 10 --sampler idrannum --num_instance 2 '
               '--distributed False').split()


@pytest.mark.parametrize('dataset, weight', [
    ('ICFG-PEDES', ''), ('RSTPReid', ''), ('synthpedes', ', itc_loss_weight 5.0 (here 1.0)')])
def test_phps_command_notes_differences_of_its_reference_implementation(dataset, weight):
    """Also the weight, if there is no recipe with it."""
    notes = get_args([*PHP_COMMAND, '--dataset_name', dataset]).config.notes
    assert [note for note in notes if 'implementation of PHP' in note] == [
        f'the reference implementation of PHP trains with php_attention batch (here slots){weight}, test_batch_size 64 '
        '(here 512): give these options to train as it does']


def test_given_options_are_no_difference():
    argv = [*PHP_COMMAND, '--dataset_name', 'RSTPReid', '--php_attention', 'slots', '--test_batch_size', '512',
            '--itc_loss_weight', '5']
    assert not [note for note in get_args(argv).config.notes if 'implementation of PHP' in note]
    assert get_args(['--config_file', os.path.join(ROOT, 'configs/php-rstpreid.yaml')]).config.notes == ()
    # Other losses than its recipe's, but an option that only PHP has:
    ablation = get_args(['--loss_names', 'sdm+aux', '--num_experts', '4']).config.notes
    assert any('implementation of PHP trains with php_attention batch' in note for note in ablation)


def test_a_command_of_several_methods_matches_no_fork():
    args = get_args('--loss_names sdm+detail+mae+aux --pool_ratio 0.2 --mask_ratio 0.7 --num_experts 4'.split())
    assert not any('reference implementation' in note for note in args.config.notes)
    command = '--loss_names sdm+mlm+amm+detail --pool_ratio 0.3 --temperature 0.01 --MLM --img_aug'
    assert list(get_args(command.split()).config.notes) == [
        'the reference implementation of A2TE trains with freeze_conv1 True (here False), alpha 0.5 (here 0.9): give '
        'these options to train as it does']


def test_sens_command_trains_on_its_captions_and_notes_it():
    args = get_args(SEN_COMMAND + ['--dataset', 'RSTPReid'])
    assert (args.dataset_name, args.distributed) == ('RSTPReid', False)
    assert (args.caption_masking, args.mlm_masking, args.caption_filter) == ('inplace', 'noun', 0.2)
    assert not any('without effect' in note for note in args.config.notes)
    assert any(note.startswith('--need_MAE: as in SEN') and 'caption_filter 0.2' in note for note in args.config.notes)
    assert any('the reference implementation of SEN trains with seed 42 (here 1)' in note for note in args.config.notes)
    assert get_args(SEN_COMMAND + ['--caption_filter', '0', '--MLM']).caption_filter == 0
    recipe_of_it = get_args(['--config_file', os.path.join(ROOT, 'configs/sen.yaml'), '--dataset_name', 'RSTPReid'])
    differing = {name for name in vars(args) if getattr(args, name) != getattr(recipe_of_it, name)}
    assert differing == {'seed', 'need_MAE', 'config_file'}


@pytest.mark.parametrize('argv, expected', [
    (['--dataset', 'RSTPReid'], {'dataset_name': 'RSTPReid'}), (['--dataset=RSTPReid'], {'dataset_name': 'RSTPReid'}),
    (['--batch', '3'], {'batch_size': 3}), (['--lr', '1'], {'lr': 1.0}), (['--name', 'x'], {'name': 'x'}),
    (['--distributed', 'False'], {'distributed': False}), (['--distributed=true'], {'distributed': True}),
    (['--distributed', 'True', '--MLM'], {'distributed': True, 'MLM': True}),
    (['--img_aug', 'false', '--lr', '1'], {'img_aug': False, 'lr': 1.0}),
])
def test_spellings_of_released_scripts(argv, expected):
    args = vars(get_args(argv))
    assert {name: args[name] for name in expected} == expected


def test_help_shows_everyday_options_and_the_names_that_they_take():
    text = help_page(build_parser())
    usage, _, rest = text.partition('\n\n')
    assert usage == 'usage: train.py [--config_file RECIPE] [--<option> VALUE ...]'
    titles = ('everyday options', 'losses for --loss_names, joined by +', 'datasets for --dataset_name')
    places = [rest.index(f'\n{title}:') for title in titles]
    assert places == sorted(places)
    options_shown = [line.split()[0] for line in text.splitlines() if line.startswith('  --')]
    assert 20 <= len(options_shown) <= 31 and '--queue_size' not in text and '--loss_names' in options_shown
    assert '  sdm ' in text and '  RSTPReid ' in text and '--help all' in text


def test_help_all_shows_every_option_once_in_groups():
    parser = build_parser()
    text = help_page(parser, 'all')
    groups = ('run', 'data', 'model', 'optimizer and schedule', 'captions', 'without effect')
    places = [text.index(f'\n{group}:') for group in groups]
    assert places == sorted(places) and '\nloss mlm: ' in text and '\nbackbone clip: ' in text
    shown = [line.split()[0].replace('--[no-]', '--') for line in text.splitlines() if line.startswith('  --')]
    assert sorted(shown) == sorted(f'--{name}' if name != 'training' else '--test' for name in parser.actions())
    title, description, *lines = text[text.index('\nwithout effect:'):].strip().splitlines()
    assert all(line.startswith('  --') for line in lines)
    assert len(lines) == len(parser.options_with(options.Effect.IGNORED))


@pytest.mark.parametrize('topic, shown, hidden', [
    ('sdm', '--temperature', '--mlm_loss_weight'), ('mlm', '--cmt_depth', '--num_experts'),
    ('amm', '--attribute_weight', '--num_experts'), ('aptm', '--vocab_file', '--cmt_depth'),
    ('ICFG-PEDES', '--root_dir', '--cmt_depth'), ('CUHK-PEDES', '<root_dir>/CUHK-PEDES/reid_raw.json', '--lr'),
    ('RSTPReid', '200 identities, 1,000 images, 2,000 captions', '--lr')])
def test_help_of_a_loss_a_backbone_or_a_dataset(topic, shown, hidden):
    text = help_page(build_parser(), topic)
    assert shown in text and hidden not in text and topic in text.splitlines()[0]


@pytest.mark.parametrize('flag, known', [
    ('--lerning_rate', '--lr'), ('--epochs', '--num_epoch'), ('--bs', '--batch_size'), ('--workers', '--num_workers'),
    ('--losses', '--loss_names'), ('--resume_from', '--resume'), ('--weight-decay', '--weight_decay'),
    ('--imgsize', '--img_size'), ('--height', '--img_size'), ('--max_len', '--text_length'), ('--ckpt', '--init_from'),
    ('--fp16', '--amp'), ('--min_lr', '--target_lr'), ('--log_interval', '--log_period'), ('--beta1', '--alpha'),
    ('--gradient_accumulation_steps', '--micro_batch'), ('--save_dir', '--output_dir'), ('--optimiser', '--optimizer')])
def test_unknown_flags_suggest_the_meaning(flag, known):
    with pytest.raises(UserError, match=f'unknown flag {flag}; did you mean {known}[?]'):
        get_args([flag, '1'])


@pytest.mark.parametrize('flag, known', [('--batch_size', '--test_batch_size'), ('--ckpt', '--checkpoint'),
                                         ('--dataset', '--dataset_name'), ('--gpu', '--device')])
def test_unknown_flags_of_test_suggest_the_meaning(flag, known):
    with pytest.raises(UserError, match=f'unknown flag {flag}; did you mean {known}[?]'):
        build_test_parser('test.py', '').parse([flag, '1'])


def test_help_of_test_shows_everyday_options():
    parser = build_test_parser('test.py', 'Evaluate.')
    parser.add_argument('--caption', help='caption of your own')      # of a tool
    short, full = help_page(parser), help_page(parser, 'all')
    options_shown = [line.split()[0] for line in short.splitlines() if line.startswith('  --')]
    assert options_shown[0] == '--caption' and '--config_file' in options_shown and len(options_shown) <= 15
    assert '--stride_size' in full and '--stride_size' not in short and '--help all' in short


@pytest.mark.parametrize('recipe, shown', [
    ('icl', ('tal', 'tse', 'aug', '--ccd', 'Qin et al., CVPR 2025')), ('mars', ('mae', 'attribute', '--backbone')),
    ('gadms', ('sdm', 'mlm', 'configs/gadms-webperson.yaml'))])
def test_help_of_a_recipe(recipe, shown):
    text = help_page(build_parser(), recipe)
    assert text.startswith(f'recipe {recipe}\n') and f'python train.py --config_file configs/{recipe}.yaml' in text
    assert all(word in text for word in shown) and max(map(len, text.splitlines())) <= 100


def test_help_of_an_unknown_topic():
    with pytest.raises(UserError, match="unknown help topic 'smd'; did you mean sdm?"):
        get_args(['--help', 'smd'])


def test_help_fits_the_width():
    parser = build_parser()
    pages = [help_page(parser, topic) for topic in ('', 'all', *parser.topics)]
    pages += [help_page(build_test_parser('test.py', 'Test.'), topic) for topic in ('', 'all')]
    assert max(len(line) for page in pages for line in page.splitlines()) <= 100


def test_help_gives_defaults_that_say_something():
    text = ' '.join(build_parser().format_help().split())
    assert '(default: 1)' in text and '(default: )' not in text and '(default: None)' not in text
    test = text[text.index('--test '):text.index('--local_rank')]
    assert 'default' not in test                      # the flag has no value


# -- an option is settings once ----------------------------------------------------------------------------------------

@pytest.fixture
def sharpness(monkeypatch):
    """``sharpness(effect=...)`` declares an option of that name in one call, as a file does."""
    def declare(**settings):
        def add(parser):
            group = parser.add_argument_group('more')
            group.add_argument('--sharpness', type=float, default=1.0, help='sharpness of the images', **settings)
        monkeypatch.setattr(option_declarations, 'CORE_OPTIONS', (*option_declarations.CORE_OPTIONS, add))
    return declare


@pytest.mark.parametrize('settings, changes_grid, changes_on_resume', [
    ({}, True, False), ({'effect': options.Effect.RESULT | options.Effect.CHANGEABLE_ON_RESUME}, True, True),
    ({'effect': options.Effect.NONE}, False, True), ({'effect': options.Effect.RUN}, False, True)])
def test_an_option_is_declared_in_one_place(sharpness, tmp_path, settings, changes_grid, changes_on_resume):
    from run_scripts.ablation.grid import cell_folder_name
    sharpness(**settings)
    changed = get_args(['--sharpness', '2'])
    assert changed.sharpness == get_args(['--config_file', write_recipe(tmp_path, 'sharpness: 2')]).sharpness == 2.0
    with pytest.raises(UserError, match='sharpness'):
        get_args(['--sharpness', 'nan'])
    parser = build_parser()
    assert (cell_folder_name(changed, parser) != cell_folder_name(get_args([]), parser)) is changes_grid
    iotools.save_train_configs(str(tmp_path), get_args([]))
    (tmp_path / 'last.pth').write_bytes(b'')
    argv = ['--resume', '--resume_ckpt_file', str(tmp_path / 'last.pth'), '--sharpness', '2']
    if changes_on_resume:
        assert get_args(argv).sharpness == 2.0
    else:
        with pytest.raises(UserError, match='these options differ: sharpness 2.0 .run: 1.0.'):
            get_args(argv)


def test_micro_batch_affects_results():
    """With --micro_batch, mae draws its patches and PHP its dropout for each micro batch."""
    parser = build_parser()
    assert 'micro_batch' in parser.options_with(options.Effect.RESULT)
    assert {'grad_checkpoint', 'compile', 'num_workers'} <= parser.options_without(options.Effect.RESULT)


# -- options that only the command line may turn on --------------------------------------------------------------------

@pytest.mark.parametrize('value', ['true', '"yes"', '1', 'null'])
def test_a_recipe_cannot_trust_an_archive(tmp_path, value):
    message = 'recipe.yaml, trust_archive: only the command line .* give --trust_archive if you trust'
    with pytest.raises(UserError, match=message):
        get_args(['--config_file', write_recipe(tmp_path, f'trust_archive: {value}')])
    with pytest.raises(UserError, match='only the command line'):
        run_options(write_recipe(tmp_path, f'trust_archive: {value}'))


def test_a_command_line_option_overrides_a_recipe(tmp_path):
    path = write_recipe(tmp_path, 'batch_size: 16\ntrust_archive: false')
    assert get_args(['--config_file', path, '--trust_archive']).trust_archive is True
    assert get_args(['--config_file', path]).trust_archive is False


def test_a_runs_own_record_of_the_flag_does_not_turn_it_on(tmp_path, capsys):
    """As a recipe, on resume and in test.py: a stranger may have written the run's folder."""
    iotools.save_train_configs(str(tmp_path), get_args(['--trust_archive']))
    path = str(tmp_path / 'configs.yaml')
    (tmp_path / 'last.pth').write_bytes(b'')
    assert options.read_yaml(path)['trust_archive'] is True
    assert run_options(path).trust_archive is False and get_args(['--config_file', path]).trust_archive is False
    resume = ['--resume', str(tmp_path)]
    assert get_args(resume).trust_archive is False and get_args([*resume, '--trust_archive']).trust_archive is True
    with pytest.raises(SystemExit):
        get_args(['--trust_archive', '--print_config'])
    assert 'trust_archive' not in capsys.readouterr().out

"""Command lines and configs of reference implementations work as they are, or the error names the command."""
import os

import pytest

from tests.utils.test_published_configs import IRRA
from utils.errors import UserError
from utils.iotools import load_train_configs, save_train_configs
from utils.options import build_test_parser, get_args, parse_test_options, run_options

RDE = ('--noisy_rate {rate} --noisy_file ./noiseindex/RSTPReid_{rate}.npy --name RDE --img_aug --txt_aug '
       '--batch_size 64 --select_ratio 0.3 --tau 0.015 --root_dir data --output_dir run_logs --margin 0.1 '
       '--dataset_name RSTPReid --loss_names {loss}+sr0.3_tau0.015_margin0.1_n{rate} --num_epoch 60')
IRRA_FLAGS = ('--name irra --img_aug --batch_size 64 --MLM --dataset_name CUHK-PEDES --root_dir data --num_epoch 60 '
              '--loss_names ')
COMMANDS = {
    'IRRA': (IRRA_FLAGS + 'sdm+mlm+id', 'sdm+mlm+id'), 'AGM': (IRRA_FLAGS + 'sdm+mlm+id+cmt', 'sdm+mlm+id+cmt'),
    'A2TE': (IRRA_FLAGS + 'sdm+id+amm+detail --pool_ratio 0.3 --attribute_weight 1.0 --stage first',
             'sdm+id+amm+detail'),
    'SEN': ('--img_aug --batch_size 128 --loss_names sdm+mae+id+tri --need_MAE --mask_ratio 0.7 --sampler idrannum '
            '--distributed False --dataset RSTPReid', 'sdm+mae+id+tri'),
    'PHP': ('--img_aug --batch_size 64 --loss_names sdm+itc+aux --lr 3e-6 --num_experts 4 --topk 2 --moe_layers 4',
            'sdm+itc+aux'),
    'RDE': (RDE.format(rate=0.0, loss='TAL'), 'tal+tse'), 'RDE, noise': (RDE.format(rate=0.5, loss='SDM'), 'sdm+tse'),
    'RDE as CONQUER': (RDE.format(rate=0.0, loss='TAL') + ' --ccl_weight 0.5 --rematch_weight 0.5',
                       'tal+tse+ccl+rematch'),
    'FMFA': (IRRA_FLAGS + 'a-sdm+mlm+id+efa', 'a-sdm+mlm+id+efa'),
    'FMFA, older README': (IRRA_FLAGS + 'mlm+id+efa', 'mlm+id+efa'),
    'FMFA, finetune.sh': (IRRA_FLAGS + 'a-sdm+mlm+id+efa --batch_size 128 --finetune {start}', 'a-sdm+mlm+id+efa')}


@pytest.mark.parametrize('method', COMMANDS)
def test_released_commands_parse_as_they_are(method, tmp_path):
    command, losses = COMMANDS[method]
    (tmp_path / 'ham.pth').write_bytes(b'')
    args = get_args(command.format(start=tmp_path / 'ham.pth').split())
    assert args.loss_names == losses and args.ccd is method.startswith('RDE')
    assert args.init_from == (str(tmp_path / 'ham.pth') if 'finetune' in method else '')


@pytest.mark.parametrize('names, losses', [
    ('TAL', 'tal+tse'), ('TRL', 'trl+tse'), ('InfoNCE+sr0.3_n0.2', 'infonce+tse'), ('sr0.3_n0.2+SDM', 'sdm+tse'),
    ('TRL+TAL', 'tal+tse')])
def test_rdes_loss_names(names, losses, tmp_path):
    """On the command line, in a recipe, in a run's configs.yaml, for train.py and for test.py."""
    command_args = get_args(['--loss_names', names])
    (tmp_path / 'recipe.yaml').write_text(f'loss_names: {names}\n')
    recipe_args = get_args(['--config_file', str(tmp_path / 'recipe.yaml')])
    run_args = get_args(['--config_file', rde_config(tmp_path, names)])
    test_args = run_options(rde_config(tmp_path, names))
    for args in (command_args, recipe_args, run_args, test_args):
        assert (args.loss_names, args.ccd) == (losses, True)
        assert any(f"--loss_names '{names}' is RDE's name of {losses} with --ccd" in note for note in args.config.notes)
    assert any('--noisy_rate 0.2 by default' in note for note in command_args.config.notes)
    assert not any('--noisy_rate 0.2' in note for note in run_args.config.notes)       # it says which rate it had
    assert load_train_configs(rde_config(tmp_path, names)).loss_names == losses


@pytest.mark.parametrize('names', ['TAL+aug', 'TAL+sr0.3_tau0.015_margin0.1_n0.0+aug+pre'])
def test_icls_loss_names(names, tmp_path):
    """ICL's names are RDE's with aug, which trains second captions, and pre, which starts from NAM's weights."""
    for args in (get_args(['--loss_names', names]), run_options(rde_config(tmp_path, names))):
        assert (args.loss_names, args.ccd, args.tse_mode) == ('tal+tse+aug', True, 'eval')
        notes = [note for note in args.config.notes if 'ICL' in note]
        assert "is ICL's name of tal+tse+aug with --ccd" in notes[0] and '--tse_mode' not in notes[0]
        assert len(notes) == 1 + names.endswith('+pre')
        assert all('starts from a checkpoint of NAM: give --init_from' in note for note in notes[1:])


@pytest.mark.parametrize('names', ['SDM+id', 'sdm+InfoNCE', 'SDM+aug'])
def test_rdes_loss_names_next_to_ours_are_refused(names):
    message = "is a name of RDE's reference implementation, which reads only .*: give --loss_names"
    with pytest.raises(UserError, match=message):
        get_args(['--loss_names', names])


def test_rdes_other_loss_names_are_ignored(tmp_path):
    assert run_options(rde_config(tmp_path, 'TAL+id+mlm')).loss_names == 'tal+tse'


def write_config(tmp_path, **content):
    path = tmp_path / 'configs.yaml'
    path.write_text(''.join(f'{name}: {value}\n' for name, value in sorted(content.items())))
    return str(path)


def rde_config(tmp_path, losses):
    content = {name: value for name, value in IRRA.items() if name not in ('MLM', 'mlm_loss_weight', 'id_loss_weight')}
    return write_config(tmp_path, **{
        **content, 'loss_names': losses, 'noisy_rate': 0.0, 'noisy_file': "''", 'tau': 0.015, 'margin': 0.1,
        'select_ratio': 0.3, 'txt_aug': 'true'})


def fmfa_config(tmp_path, **changes):
    return write_config(tmp_path, **{
        **IRRA, 'MLM': 'false', 'loss_names': 'a-sdm+mlm+id+efa', 'lr': 5e-6, 'minmax_loss_weight': 1.0,
        'finetune': '/home/somebody/HAM.pth', 'sdm_loss_use_weight': 'true', 'sdm_loss_weight': 1.0, 'nam': 'false',
        'pretrain': "''", **changes})


def test_fmfas_configs_mean_what_its_code_does(tmp_path):
    """One learning rate for all parameters, and masked captions also without --MLM. Unknown keys are noted."""
    path = fmfa_config(tmp_path)
    for args in (get_args(['--config_file', path]), run_options(path)):
        assert (args.lr_rules, args.lr, args.caption_masking, args.init_from) == ('flat', 5e-6, 'inplace', '')
        note, = [note for note in args.config.notes if 'has no option' in note]
        unknown_keys = 'finetune, nam, pretrain, sdm_loss_use_weight, sdm_loss_weight'
        assert note == f'{path}: Pedestal has no option {unknown_keys}: skipped'


def test_a_key_of_a_forks_own_with_any_value(tmp_path):
    path = write_config(tmp_path, **IRRA, use_ema='[1, {a: b}]', wandb='null')
    for args in (get_args(['--config_file', path]), run_options(path)):
        assert f'{path}: Pedestal has no option use_ema, wandb: skipped' in args.config.notes
        assert not hasattr(args, 'wandb')


def test_a_typo_in_our_own_config_is_an_error_to_train_with(tmp_path):
    save_train_configs(str(tmp_path), get_args([]))
    path = str(tmp_path / 'configs.yaml')
    with open(path, 'a', encoding='utf-8') as file:
        file.write('batch_sise: 3\n')
    with pytest.raises(UserError, match="unknown option 'batch_sise'; did you mean batch_size"):
        get_args(['--config_file', path])
    assert list(run_options(path).config.notes) == [f'{path}: Pedestal has no option batch_sise: skipped']


@pytest.mark.parametrize('dataset, test_dataset, numbers, expected', [
    ('CUHK-PEDES', None, '012', 'best0.pth'), ('RSTPReid', None, '012', 'best2.pth'),
    ('CUHK-PEDES', 'ICFG-PEDES', '012', 'best1.pth'), ('RSTPReid', 'synthpedes', '012', 'best2.pth'),
    ('synthpedes', None, '012', 'best0.pth'), ('RSTPReid', None, '0', 'best0.pth')])
def test_the_best_checkpoint_of_an_fmfa_run(tmp_path, dataset, test_dataset, numbers, expected):
    path = fmfa_config(tmp_path, dataset_name=dataset)
    for number in numbers:
        (tmp_path / f'best{number}.pth').write_bytes(b'')
    argv = ['--config_file', path]
    dataset_argv = ['--dataset_name', test_dataset] if test_dataset else []
    args = parse_test_options(build_test_parser('', ''), argv + dataset_argv)
    assert os.path.basename(args.checkpoint) == expected
    expected_dataset = {'best0.pth': 'CUHK-PEDES', 'best1.pth': 'ICFG-PEDES', 'best2.pth': 'RSTPReid'}[expected]
    assert args.eval_dataset == expected_dataset
    assert any(f'{expected} is of the best epoch on {expected_dataset}' in note for note in args.config.notes)
    named = parse_test_options(build_test_parser('', ''), [*argv, '--checkpoint', str(tmp_path / 'best0.pth')])
    assert named.eval_dataset == 'CUHK-PEDES'
    if not test_dataset:
        assert get_args(['--resume', str(tmp_path)]).resume_ckpt_file == str(tmp_path / expected)
    (tmp_path / 'best.pth').write_bytes(b'')
    args = parse_test_options(build_test_parser('', ''), argv)
    assert os.path.basename(args.checkpoint) == 'best.pth' and not args.eval_dataset


OTHERS = [('APTM', ['--task', 'itr_cuhk', '--dist', 'f4', '--checkpoint', 'x.pth'], 'train_file: [a.json]\n', 'aptm'),
          ('APTM', ['--task=itr_pa100k', '--evaluate'], 'vision_config: configs/config_swinB_384.json\n', 'aptm'),
          ('RaSa and MARS', ['--eval_mAP', '--output_dir', 'out'], 'bert_config: a.json\ntrain_file: [a]\n', 'rasa'),
          ('TBPS-CLIP', ['--simplified'], 'experiment: {mvs_image: true}\nschedule: {lr: 0.0001}\n', 'tbps-clip')]


@pytest.mark.parametrize('name, flags, config, recipes', OTHERS)
def test_error_for_another_interface_names_the_command(tmp_path, name, flags, config, recipes):
    message = (f'is an option of the reference implementation of {name}, which has another interface; '
               f'type python train.py --config_file configs/{recipes}.yaml .*test.py')
    path = tmp_path / 'config.yaml'
    path.write_text(config)
    for argv in (flags, ['--config_file', str(path)]):
        with pytest.raises(UserError, match=message):
            get_args(argv)
        with pytest.raises(UserError, match=message):
            parse_test_options(build_test_parser('', ''), argv)


def test_a_forks_config_may_have_such_a_key(tmp_path):
    path = write_config(tmp_path, **IRRA, experiment='mine')
    assert f'{path}: Pedestal has no option experiment: skipped' in run_options(path).config.notes

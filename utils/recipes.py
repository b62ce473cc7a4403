"""Recipes and runs' configs: reading ours and those that the released codebases wrote, and writing ours.

What a file means is decided by what it holds, never by its name.
"""
from dataclasses import dataclass, field

import yaml

from utils.errors import UserError, nearest
from utils.option_types import Effect
from utils.safe_yaml import read_yaml


@dataclass
class Fork:
    """A released codebase, told by the options that it alone has."""
    name: str
    own: set                                          # its options that no other fork has
    losses: str                                       # of its recipe
    decided: dict = field(default_factory=dict)       # what its code did where its config lacks the option
    unsaid: dict = field(default_factory=dict)        # what its command trains with where it does not say otherwise, and ours does not


FORKS = (
    Fork('A2TE', {'attribute_weight', 'pool_ratio'}, 'sdm+id+amm+detail',
         decided={'freeze_conv1': True, 'temperature': 0.01, 'img_aug': True, 'momentum': 0.995, 'alpha': 0.5},
         unsaid={'freeze_conv1': True, 'temperature': 0.01, 'img_aug': True, 'alpha': 0.5}),
    Fork('SEN', {'need_MAE', 'mask_ratio'}, 'sdm+mae+id+tri',
         decided={'sampler': 'idrannum', 'num_instance': 2},
         unsaid={'sampler': 'idrannum', 'num_instance': 2, 'seed': 42}),
    Fork('PHP', {'num_experts', 'moe_layers'}, 'sdm+itc+aux',
         decided={'php_attention': 'batch', 'itc_loss_weight': 5.0, 'batch_size': 64, 'test_batch_size': 64,
                  'transformer_lr_factor': 1.0, 'moe_lr_factor': 1.0},    # the first release has no such factors
         unsaid={'php_attention': 'batch', 'itc_loss_weight': 5.0, 'batch_size': 64, 'test_batch_size': 64}),
    Fork('FMFA', {'minmax_loss_weight', 'sdm_loss_use_weight'}, 'a-sdm+mlm+id+efa',
         decided={'lr_rules': 'flat', 'lr': 5e-6, 'caption_masking': 'inplace'},          # with and without --MLM
         unsaid={'lr_rules': 'flat', 'lr': 5e-6, 'caption_masking': 'inplace'}),
)

@dataclass
class OtherInterface:
    """A released codebase whose command line is not like IRRA's, known by its own flags and keys of its YAML files."""
    name: str
    flags: set
    keys: set
    instead: str     # what to type


OTHER_INTERFACES = (
    OtherInterface('APTM', {'--task', '--epo'}, {'vision_config', 'train_file'},
                   'python train.py --config_file configs/aptm/<dataset>.yaml --pretrain_choice <checkpoint of MALS>, or to '
                   'evaluate python test.py --backbone aptm --checkpoint <file> --dataset_name <dataset> --rerank 128 '
                   '--rerank_score released'),
    OtherInterface('TBPS-CLIP', {'--simplified'}, {'experiment', 'schedule'},
                   'python train.py --config_file configs/tbps-clip/<dataset>.yaml, for the simplified one with --loss_names '
                   'nitc+ritc --no-mvs_image, or to evaluate python test.py --config_file '
                   'configs/tbps-clip/<dataset>.yaml --checkpoint <file>'),
)


def refuse_other_interface(words, where):
    """Raise :class:`UserError` if ``words``, a command line or a YAML file's keys, are of a codebase with another interface."""
    for other in OTHER_INTERFACES:
        its_own = [word for word in words if word.split('=')[0] in other.flags | other.keys]
        if its_own:
            raise UserError(f"{where}: {its_own[0]} is of {other.name}'s released code, whose interface is another; "
                            f'type {other.instead}')


# SEN's dataset for --need_MAE masks and filters every caption, whatever --MLM says.
SEN_CAPTIONS = {'caption_masking': 'inplace', 'mlm_masking': 'noun', 'caption_filter': 0.2}


def with_sen_captions(options):
    """``options`` with what ``need_MAE`` stands for, where they hold it and do not say otherwise."""
    return {**SEN_CAPTIONS, **options} if options.get('need_MAE') is True else options


# The loss names of RDE's code, in the order in which it looks for them.
RDE_LOSSES = ('TAL', 'TRL', 'InfoNCE', 'SDM')


def with_rde_losses(options, losses=()):
    """Replace RDE's loss names in ``options``.

    RDE's code trains the first of :data:`RDE_LOSSES` that ``loss_names`` holds between two ``+``, on both embeddings and with
    pairs divided before each epoch. Everything else in it names the run (``TAL+sr0.3_tau0.015``). If one of our ``losses``
    is beside it, the meaning is open: the options stay as they are, and whoever looks the losses up refuses them.

    >>> with_rde_losses({'loss_names': 'TAL+sr0.3_tau0.015', 'tau': 0.015})
    {'ccd': True, 'loss_names': 'tal+tse', 'tau': 0.015}
    """
    named = str(options.get('loss_names', '')).replace(' ', '').split('+')
    loss = next((name for name in RDE_LOSSES if name in named), None)
    if loss is None or set(named) & set(losses):
        return options
    return {'ccd': True, **options, 'loss_names': f'{loss.lower()}+tse'}


def rde_notes(before, after, where=''):
    """Lines for the log if :func:`with_rde_losses` made ``after`` of the options ``before``, which are from the file ``where``."""
    if after is before:
        return []
    means = after['loss_names'] + (' with --ccd' if after['ccd'] else '')
    defaults = {'tse_mode': '--tse_mode train since October 2024', 'noisy_rate': '--noisy_rate 0.2 by default'}
    others = [text for name, text in defaults.items() if name not in before]
    return [f"{where}--loss_names '{before['loss_names']}' is RDE's name of {means}"
            + (f"; RDE's code has {' and '.join(others)}" if others else '')]


def is_of_a_run(content):
    """Whether a config was written by a run, ours or a released one's: those hold what no recipe says."""
    return bool({'training', 'local_rank', 'batch_fields'} & set(content))


def is_released(content):
    """Whether a config was written by a run of another codebase: ours hold every option."""
    return is_of_a_run(content) and 'caption_masking' not in content


def read_options(path):
    """A config's mapping. Raises :class:`UserError`, also for the YAML file of a codebase with another interface."""
    content = read_yaml(path)
    if not is_of_a_run(content):
        refuse_other_interface(content, path)
    return content


def read_recipe(path, parser):
    """Read a recipe, or the configs.yaml of a run as one, under whatever name.

    Returns:
        ``(options, notes)``: the options with the flags' types, and lines for the log. What describes a run alone (its
        folder, its resumption) is left out, and so are the options that only a released run has: a note names them.

    Raises:
        UserError: a key that is no option, in a recipe or in a configs.yaml of ours; a value that its flag would refuse.
    """
    content = drop_flags(read_options(path), parser, path)
    released, actions = is_released(content), parser.actions()
    options = what_its_fork_meant(content) if is_of_a_run(content) else {}
    of_one_run = parser.having(Effect.RUN | Effect.CALL) | {'batch_fields'} if is_of_a_run(content) else ()
    unknown = unknown_keys(content, parser)
    if unknown and not released:
        raise UserError(f"{path}: unknown option '{unknown[0]}'{nearest(unknown[0], actions)}")
    options.update({name: parser.typed(name, value, path) for name, value in content.items()
                    if name in actions and name not in of_one_run})
    meant = with_rde_losses(options) if released else options
    return with_sen_captions(meant), [*left_out_notes(unknown, path), *rde_notes(options, meant, f'{path}: ')]


def drop_flags(content, parser, path):
    """``content`` without the options that the command line alone decides (:attr:`Effect.FLAG`).

    A run writes its own into its configs.yaml, for the record: they are skipped there.

    Raises:
        UserError: a recipe turns one of them on.
    """
    flags = parser.having(Effect.FLAG)
    turned_on = sorted(name for name in flags & set(content) if content[name] is not False)
    if turned_on and not is_of_a_run(content):
        raise UserError(f'{path}, {turned_on[0]}: only the command line can turn this on; remove the line, and give --{turned_on[0]} '
                        'if you trust where the weights come from')
    return {name: value for name, value in content.items() if name not in flags}


def unknown_keys(content, parser):
    """The keys of a config that are no options, but for ``batch_fields``, which our own runs write."""
    return [name for name in content if name not in parser.actions() and name != 'batch_fields']


def left_out_notes(unknown, path):
    """A line for the log that names the keys of a config which are no options here."""
    return [f"{path}: Pedestal has no option {', '.join(unknown)}: left out"] if unknown else []


def what_its_fork_meant(content):
    """The options that a released configs.yaml's ``content`` lacks and that its code decided otherwise than our defaults do. Our own
    configs hold every option, and are told by ``caption_masking``."""
    if 'caption_masking' in content:
        return {}
    meant = {}
    for fork in FORKS:
        if fork.own & set(content):
            meant.update(fork.decided)
    meant = with_sen_captions({'need_MAE': content.get('need_MAE'), **meant})
    return {name: value for name, value in meant.items() if name not in content and name != 'need_MAE'}


def plain(value):
    """A value as YAML holds it: tuples as lists."""
    return list(value) if isinstance(value, (tuple, list)) else value


def as_dict(args):
    """The options as plain values, without what only describes this call."""
    left_out = ('notes', 'config_file', 'print_config')
    return {name: plain(value) for name, value in sorted(vars(args).items()) if name not in left_out}


def dump(args, parser):
    """The options as a recipe's text."""
    left_out = parser.having(Effect.CALL | Effect.FLAG) | {'batch_fields'}
    options = {name: value for name, value in as_dict(args).items() if name not in left_out}
    return yaml.safe_dump(options, default_flow_style=None, sort_keys=True)

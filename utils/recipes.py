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
)

# SEN's dataset for --need_MAE masks and filters every caption, whatever --MLM says.
SEN_CAPTIONS = {'caption_masking': 'inplace', 'mlm_masking': 'noun', 'caption_filter': 0.2}


def with_sen_captions(options):
    """``options`` with what ``need_MAE`` stands for, where they hold it and do not say otherwise."""
    return {**SEN_CAPTIONS, **options} if options.get('need_MAE') is True else options


def is_of_a_run(content):
    """Whether a config was written by a run, ours or a released one's: those hold what no recipe says."""
    return bool({'training', 'local_rank', 'batch_fields'} & set(content))


def without_flags(content, parser, path):
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


def read_recipe(path, parser):
    """A recipe's options with the flags' types. A key that is no option is an error with the nearest name. Of a run's
    configs.yaml, under whatever name, what describes that run alone (its folder, its resumption) is left out."""
    content = without_flags(read_yaml(path), parser, path)
    actions = parser.actions()
    of_a_run = is_of_a_run(content)
    options = what_its_fork_meant(content) if of_a_run else {}
    left_out = parser.having(Effect.RUN | Effect.CALL) | {'batch_fields'} if of_a_run else ()
    for name, value in content.items():
        if name in left_out:
            continue
        if name not in actions:
            raise UserError(f"{path}: unknown option '{name}'{nearest(name, actions)}")
        options[name] = parser.typed(name, value, path)
    return with_sen_captions(options)


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

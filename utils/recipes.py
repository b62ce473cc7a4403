"""Recipes and configs of runs: read Pedestal's files and those of reference implementations, and write Pedestal's.

The content of a file decides how it is read, not its name. ``configs/<method>.yaml`` is the recipe of a method's paper,
``configs/<method>-<dataset>.yaml`` replaces it on a dataset that needs other values, and another
``configs/<method>-<variant>.yaml`` is a variant of the method.
"""
import os
from dataclasses import dataclass, field

import yaml

from utils.errors import UserError, suggest_name
from utils.option_providers import unread_options
from utils.option_types import Effect
from utils.safe_yaml import read_yaml

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs')
OTHER_FILES = ('zoo.yaml',)      # of configs, which are no recipes
UNREAD_COMMENT = '# options that this run does not read: of other losses, backbones and tunings\n'
BENCHMARKS = ('CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid')     # the datasets of a recipe configs/<method>.yaml


@dataclass
class Fork:
    """A reference implementation that extends IRRA, recognized by options that only it has.

    Attributes:
        name: its name.
        own_options: options that no other fork has.
        losses: ``--loss_names`` of its published command.
        config_defaults: {option: value that its code uses if its configs.yaml lacks the option}.
        command_defaults: {option: value that its command trains with if the option is not given}; ours differ.
    """
    name: str
    own_options: set
    losses: str
    config_defaults: dict = field(default_factory=dict)
    command_defaults: dict = field(default_factory=dict)


PHP_OPTIONS = {'moe_layers', 'moe_heads', 'cnum'}     # that DM-Adapter lacks
FORKS = (
    Fork('A2TE', {'attribute_weight', 'pool_ratio'}, 'sdm+id+amm+detail',
         config_defaults={'freeze_conv1': True, 'temperature': 0.01, 'img_aug': True, 'momentum': 0.995, 'alpha': 0.5},
         command_defaults={'freeze_conv1': True, 'temperature': 0.01, 'img_aug': True, 'alpha': 0.5}),
    Fork('SEN', {'need_MAE', 'mask_ratio'}, 'sdm+mae+id+tri',
         config_defaults={'sampler': 'idrannum', 'num_instance': 2},
         command_defaults={'sampler': 'idrannum', 'num_instance': 2, 'seed': 42}),
    Fork('PHP', {'num_experts', 'moe_layers'}, 'sdm+itc+aux',
         config_defaults={'php_attention': 'batch', 'itc_loss_weight': 5.0, 'batch_size': 64, 'test_batch_size': 64,
                          'transformer_lr_factor': 1.0, 'moe_lr_factor': 1.0},    # not in the first release
         command_defaults={'php_attention': 'batch', 'itc_loss_weight': 5.0, 'batch_size': 64, 'test_batch_size': 64}),
    Fork('FMFA', {'minmax_loss_weight', 'sdm_loss_use_weight'}, 'a-sdm+mlm+id+efa',
         config_defaults={'lr_rules': 'flat', 'lr': 5e-6, 'caption_masking': 'inplace'},    # with and without --MLM
         command_defaults={'lr_rules': 'flat', 'lr': 5e-6, 'caption_masking': 'inplace'}),
)


@dataclass
class OtherInterface:
    """A reference implementation whose command line differs from IRRA's.

    Attributes:
        name: its name.
        flags: flags that only it has.
        keys: keys that only its YAML files have.
        commands: the equivalent commands of Pedestal.
    """
    name: str
    flags: set
    keys: set
    commands: str


OTHER_INTERFACES = (
    OtherInterface('RaSa and MARS', {'--eval_mAP'}, {'bert_config', 'weights'},
                   'python train.py --config_file configs/rasa.yaml (or configs/mars.yaml) --dataset_name <dataset> '
                   '--pretrain_choice ALBEF.pth, or to evaluate python test.py --backbone albef --checkpoint <file> '
                   '--dataset_name <dataset> --rerank 128 --rerank_score itm'),
    OtherInterface('APTM', {'--task', '--epo'}, {'vision_config', 'train_file'},
                   'python train.py --config_file configs/aptm.yaml --dataset_name <dataset> --pretrain_choice '
                   '<checkpoint of MALS>, or to evaluate python test.py --backbone aptm --checkpoint <file> '
                   '--dataset_name <dataset> --rerank 128 --rerank_score released'),
    OtherInterface('TBPS-CLIP', {'--simplified'}, {'experiment', 'schedule'},
                   'python train.py --config_file configs/tbps-clip.yaml --dataset_name <dataset>, for the simplified '
                   'one with --loss_names nitc+ritc --no-mvs_image, or to evaluate python test.py --config_file '
                   'configs/tbps-clip.yaml --dataset_name <dataset> --checkpoint <file>'),
)


def refuse_other_interface(words, source):
    """Raise UserError if words are for a reference implementation with another interface.

    Args:
        words: the words of a command line, or the keys of a YAML file.
        source: the file, or 'the command line', for the error.
    """
    for other in OTHER_INTERFACES:
        matches = [word for word in words if word.split('=')[0] in other.flags | other.keys]
        if matches:
            raise UserError(f'{source}: {matches[0]} is an option of the reference implementation of {other.name}, '
                            f'which has another interface; type {other.commands}')


# SEN's reference implementation masks and filters every caption if --need_MAE is given, with or without --MLM.
SEN_CAPTION_OPTIONS = {'caption_masking': 'inplace', 'mlm_masking': 'noun', 'caption_filter': 0.2}


def apply_need_mae(options):
    """Add the caption options that ``need_MAE`` stands for, unless ``options`` have them."""
    return {**SEN_CAPTION_OPTIONS, **options} if options.get('need_MAE') is True else options


# Loss names of RDE's reference implementation, in the order of its tests.
RDE_LOSS_NAMES = ('TAL', 'TRL', 'InfoNCE', 'SDM')
CONQUER_LOSSES = ('ccl', 'rematch')


def translate_rde_losses(options, own_losses=()):
    """Replace RDE's loss names in ``options``.

    RDE's reference implementation trains the first of ``RDE_LOSS_NAMES`` in ``loss_names``, on both embeddings and
    with a selection of clean pairs. The other parts of ``loss_names`` only name the run (``TAL+sr0.3_tau0.015``). In
    ICL, which builds on RDE, ``TAL+...+aug`` also trains second captions. CONQUER's implementation adds two losses,
    each with an option for its weight.

    Args:
        options: {option: value}.
        own_losses: Pedestal's losses. If ``loss_names`` also holds one of them, the options stay as they are, and the
            check of ``--loss_names`` refuses them.

    Example:
        >>> translate_rde_losses({'loss_names': 'TAL+sr0.3_tau0.015', 'tau': 0.015})
        {'ccd': True, 'loss_names': 'tal+tse', 'tau': 0.015}
        >>> translate_rde_losses({'loss_names': 'TAL+aug+pre'})
        {'ccd': True, 'loss_names': 'tal+tse+aug'}
    """
    names = str(options.get('loss_names', '')).replace(' ', '').split('+')
    loss = next((name for name in RDE_LOSS_NAMES if name in names), None)
    is_icl = 'aug' in names
    if loss is None or set(names) & set(own_losses) - {'aug'} or is_icl and loss != 'TAL':
        return options
    added = [name for name in CONQUER_LOSSES if f'{name}_weight' in options] + ['aug'] * is_icl
    return {'ccd': True, **options, 'loss_names': '+'.join([loss.lower(), 'tse', *added])}


def rde_notes(before, after, prefix=''):
    """Lines for the log about a translation of RDE's loss names.

    Args:
        before: the options.
        after: the result of :func:`translate_rde_losses`.
        prefix: the start of the line, such as the file.
    """
    if after is before:
        return []
    meaning = after['loss_names'] + (' with --ccd' if after['ccd'] else '')
    rde_defaults = {'tse_mode': '--tse_mode train since October 2024', 'noisy_rate': '--noisy_rate 0.2 by default'}
    method = 'ICL' if after['loss_names'].endswith('+aug') else 'RDE'
    if method == 'ICL':
        del rde_defaults['tse_mode']    # ICL trains in evaluation mode, as --tse_mode eval does
    missing = [text for name, text in rde_defaults.items() if name not in before]
    notes = [f"{prefix}--loss_names '{before['loss_names']}' is {method}'s name of {meaning}"
             + (f"; {method}'s reference implementation has {' and '.join(missing)}" if missing else '')]
    if method == 'ICL' and '+pre' in str(before['loss_names']):
        notes.append(f"{prefix}ICL's pre starts from a checkpoint of NAM: give --init_from <file>")
    return notes


def is_run_config(content):
    """Whether a run wrote this config: Pedestal's or a reference implementation's. A recipe has none of these keys."""
    return bool({'training', 'local_rank', 'batch_fields'} & set(content))


def is_reference_config(content):
    """Whether a run of a reference implementation wrote this config. Pedestal's runs write every option."""
    return is_run_config(content) and 'caption_masking' not in content


def recipe_names(folders=('', 'synthpedes')):
    """The names of the recipes in folders of configs, sorted, such as 'irra' and 'synthpedes/quickstart'."""
    return sorted(f'{folder}/{name}'.removeprefix('/').removesuffix('.yaml') for folder in folders
                  for name in os.listdir(os.path.join(CONFIGS, folder))
                  if name.endswith('.yaml') and name not in OTHER_FILES)


def find_recipes(dataset_name):
    """Find the recipes of all methods for a dataset.

    Returns:
        The paths, sorted by method. A method without a recipe for the dataset is left out.

    Example:
        >>> [os.path.basename(path) for path in find_recipes('RSTPReid')][:3]
        ['a2te-rstpreid.yaml', 'agm.yaml', 'aptm.yaml']
    """
    stems = recipe_names([''])
    paths = []
    for method in stems:
        if any(method.startswith(f'{other}-') for other in stems):
            continue    # a variant of another method
        own = f'{method}-{dataset_name.lower()}'
        if own in stems or dataset_name in BENCHMARKS:
            paths.append(os.path.join(CONFIGS, f'{own if own in stems else method}.yaml'))
    return paths


def find_recipe(name):
    """Find the file of ``--config_file``: the file itself, or Pedestal's recipe of this name.

    Args:
        name: a path, or a recipe's name with or without ``configs/`` and ``.yaml``.

    Returns:
        A path; ``name`` if there is neither.

    Example:
        >>> os.path.relpath(find_recipe('irra'), CONFIGS), find_recipe('none.yaml')
        ('irra.yaml', 'none.yaml')
    """
    recipe = recipe_name(name)
    return name if os.path.isfile(name) or recipe not in recipe_names() else os.path.join(CONFIGS, f'{recipe}.yaml')


def recipe_name(path):
    """Remove ``configs/`` and ``.yaml`` from a path."""
    return os.fspath(path).replace(os.sep, '/').removesuffix('.yaml').removeprefix('configs/')


def moved_recipe(path):
    """Find today's recipe for a former ``configs/<method>/<dataset>.yaml`` or ``<dataset>-<variant>.yaml``.

    Returns:
        The options that name it, such as '--config_file configs/sen-xl.yaml --dataset_name RSTPReid', or None.
    """
    folder, stem = os.path.split(os.path.splitext(path)[0])
    configs, method = os.path.split(folder)
    if os.path.basename(os.path.abspath(configs)) != 'configs':
        return None
    candidates = {f'{method}-{stem.removeprefix("pretrain-")}': ''}
    for dataset in BENCHMARKS:
        if stem.startswith(dataset.lower()):
            candidates[method + stem.removeprefix(dataset.lower())] = f' --dataset_name {dataset}'
    for name, dataset_option in candidates.items():
        recipe = os.path.join(configs, f'{name}.yaml')
        if os.path.isfile(recipe):
            return f'--config_file {recipe}{dataset_option}'
    return None


def suggest_recipe(path):
    """The end of an error for a missing config: the recipe with the closest name, if one is close.

    Example:
        >>> suggest_recipe('irra.yml'), suggest_recipe('quickstart')
        ('; did you mean irra?', '; did you mean synthpedes/quickstart?')
    """
    name = recipe_name(path).removesuffix('.yml')
    recipes = recipe_names()
    suggestion = suggest_name(name, [recipe for recipe in recipes if recipe.count('/') == name.count('/')])
    if name in recipes or not suggestion.startswith('; did'):
        closest = next((recipe for recipe in recipes if recipe.rpartition('/')[2] == name), None)
        return f'; did you mean {closest}?' if closest else ''
    return suggestion


def read_options(path):
    """Read a recipe or a run's config as {key: value}.

    Args:
        path: the file, or the name of a recipe (:func:`find_recipe`).

    Raises:
        UserError: no YAML mapping, a file of a reference implementation with another interface, or the former path of
            a recipe.
    """
    path = find_recipe(path)
    if not os.path.exists(path):
        command = moved_recipe(path)
        advice = f': the recipe has moved; give {command}' if command else suggest_recipe(path)
        raise UserError(f'no config file {path}{advice}')
    content = read_yaml(path)
    if not is_run_config(content):
        refuse_other_interface(content, path)
    return content


def read_recipe(path, parser):
    """Read a recipe, or a run's configs.yaml as a recipe.

    A run's folder and its resumption are skipped, and so are the options that only a reference implementation has.

    Args:
        path: the YAML file.
        parser: train.py's parser.

    Returns:
        ``({option: value with the flag's type}, lines for the log)``.

    Raises:
        UserError: an unknown key in a recipe or in Pedestal's own configs.yaml, or a value that the flag refuses.
    """
    content = drop_command_line_options(read_options(path), parser, path)
    is_reference, actions = is_reference_config(content), parser.actions()
    options, skipped = {}, set()
    if is_run_config(content):
        options = reference_defaults(content)
        skipped = parser.options_with(Effect.RUN | Effect.INVOCATION) | {'batch_fields'}
    unknown_keys = find_unknown_keys(content, parser)
    if unknown_keys and not is_reference:
        raise UserError(f"{path}: unknown option '{unknown_keys[0]}'{parser.suggest_option(unknown_keys[0])}")
    options.update({name: parser.convert_config_value(name, value, path) for name, value in content.items()
                    if name in actions and name not in skipped})
    translated = translate_rde_losses(options) if is_reference else options
    notes = [*unknown_key_notes(unknown_keys, path), *rde_notes(options, translated, f'{path}: ')]
    return apply_need_mae(translated), notes


def drop_command_line_options(content, parser, path):
    """Remove the options that only the command line may turn on (``Effect.COMMAND_LINE_ONLY``).

    A run's configs.yaml records them; they are skipped there.

    Raises:
        UserError: a recipe turns one of them on.
    """
    actions = parser.actions()
    names = {name for name in content if name in actions and actions[name].effect & Effect.COMMAND_LINE_ONLY}
    turned_on = sorted(name for name in names if content[name] is not False)
    if turned_on and not is_run_config(content):
        raise UserError(f'{path}, {turned_on[0]}: only the command line can turn this on; remove the line, and give '
                        f'--{turned_on[0]} if you trust the source of the weights')
    return {name: value for name, value in content.items() if name not in names}


def find_unknown_keys(content, parser):
    """The keys of a config that are no options. ``batch_fields`` is known, because Pedestal's runs write it."""
    known = {*parser.actions(), 'batch_fields'}
    return [name for name in content if name not in known]


def unknown_key_notes(unknown_keys, path):
    """A line for the log that names the unknown keys of a config."""
    return [f"{path}: Pedestal has no option {', '.join(unknown_keys)}: skipped"] if unknown_keys else []


def reference_tuning(content):
    """The tuning of a reference implementation's configs.yaml; '' if it trains all parameters.

    UP-Person and DM-Adapter have no option for it. DM-Adapter's options for its experts are also PHP's, which has more.

    Example:
        >>> reference_tuning({'depth_lora': 12, 'depth_prefix': 12}), reference_tuning({'num_experts': 6, 'topk': 2})
        ('up-person', 'dm-adapter')
        >>> reference_tuning({'num_experts': 6, 'topk': 2, 'moe_layers': 6, 'cnum': 9})
        ''
    """
    if {'depth_lora', 'depth_prefix'} <= set(content):
        return 'up-person'
    return 'dm-adapter' if {'num_experts', 'topk'} <= set(content) and not PHP_OPTIONS & set(content) else ''


def reference_defaults(content):
    """The missing options of a reference implementation's configs.yaml whose defaults there differ from Pedestal's.

    Args:
        content: the configs.yaml. Pedestal's own, which has ``caption_masking``, gives {}.

    Returns:
        {option: value}.
    """
    if 'caption_masking' in content:
        return {}
    tuning, defaults = reference_tuning(content), {}
    if tuning:
        defaults['tuning'] = tuning
    for fork in () if tuning else FORKS:
        if fork.own_options & set(content):
            defaults.update(fork.config_defaults)
    defaults = apply_need_mae({'need_MAE': content.get('need_MAE'), **defaults})
    return {name: value for name, value in defaults.items() if name not in content and name != 'need_MAE'}


def to_plain_value(value):
    """A value as YAML holds it: tuples as lists."""
    return list(value) if isinstance(value, (tuple, list)) else value


def format_recipe(args, parser):
    """The options as the text of a recipe."""
    skipped = parser.options_with(Effect.INVOCATION | Effect.COMMAND_LINE_ONLY)
    options = {name: to_plain_value(value) for name, value in vars(args).items() if name not in skipped}
    return format_options(options, options_without_effect(args, parser))


def options_without_effect(args, parser):
    """The names of the options that a run does not read, or that nothing ever reads."""
    return unread_options(args, parser) | parser.options_with(Effect.IGNORED)


def format_options(options, unread):
    """The text of a YAML file of options: those that the run reads first, and the others below a comment.

    Args:
        options: ``{option: plain value}``.
        unread: the names of the options that the run does not read (:func:`options_without_effect`).

    Example:
        >>> print(format_options({'lr': 1e-05, 'tau': 0.015}, {'tau'}), end='')
        lr: 1.0e-05
        # options that this run does not read: of other losses, backbones and tunings
        tau: 0.015
    """
    used, others = ({name: value for name, value in options.items() if (name in unread) == is_unread}
                    for is_unread in (False, True))
    return dump_lines(used) + (UNREAD_COMMENT + dump_lines(others) if others else '')


def dump_lines(options):
    """The text of options with one line for each, also for a list."""
    has_lists = any(isinstance(value, (list, dict)) for value in options.values())
    return yaml.safe_dump(options, default_flow_style=None if has_lists else False, sort_keys=True)

"""Complete options, and the values that follow from them.

``vars(args)`` of complete options (:class:`Options`) has every option and nothing else. ``args.config`` has what
follows from them (:class:`RunConfig`). After an entry point, all code reads both as attributes, without defaults.
"""
import argparse
import functools
from dataclasses import dataclass, replace

from utils.errors import UserError
from utils.option_declarations import build_parser, build_test_parser
from utils.option_providers import option_providers
from utils.option_types import split_dataset_path
from utils.recipes import to_plain_value
from utils.rerank_options import read_rerank_settings


@dataclass(frozen=True)
class DataConfig:
    """The derived values of the data.

    Attributes:
        batch_fields: names of the batch's fields that the active heads read, sorted.
        trained_on: ``--dataset_name`` of the training, which an evaluation may replace; None for a pretrained CLIP
            without training.
        further_datasets: names of the datasets that test.py evaluates after ``--dataset_name``, if the run trained on
            several.
    """
    batch_fields: tuple
    trained_on: str
    further_datasets: tuple


@dataclass(frozen=True)
class ModelConfig:
    """The derived values of the model.

    Attributes:
        weights: the file or the name that the encoders' weights come from.
    """
    weights: str


@dataclass(frozen=True)
class RunConfig:
    """The derived values of a run, built by :func:`build_run_config` and never changed.

    Attributes:
        data: a :class:`DataConfig`.
        model: a :class:`ModelConfig`.
        notes: lines for the start of the log, from the code that read the options.
    """
    data: DataConfig
    model: ModelConfig
    notes: tuple


class Options(argparse.Namespace):
    """Complete options. :func:`complete` and the functions that read options return them.

    Attributes:
        config: the :class:`RunConfig` that follows from them. It is not in ``vars``.
    """
    __slots__ = ('config',)


def build_run_config(args, notes=(), **evaluation):
    """Derive the :class:`RunConfig` of complete options.

    Args:
        args: every option, by name.
        notes: lines for the log.
        evaluation: ``trained_on`` and ``further_datasets``, which only the code that reads a trained run knows.
    """
    fields = {field for provider in option_providers() for field in provider.batch_fields(args)}
    data = DataConfig(**{'batch_fields': tuple(sorted(fields)), 'trained_on': args.dataset_name,
                         'further_datasets': (), **evaluation})
    return RunConfig(data, ModelConfig(weights_source(args)), tuple(notes))


def weights_source(args):
    """Return the file or the name that the encoders' weights come from."""
    if not args.training:
        return args.checkpoint or args.pretrain_choice
    return args.resume_ckpt_file if args.resume else args.init_from or args.pretrain_choice


def complete(args, defaults=None):
    """Complete the options of a script: the entry points call this.

    Missing options get their defaults, and those that depend on others follow from them.

    Args:
        args: an object with options as attributes. It is not changed.
        defaults: ``defaults_in_code`` of train.py's parser, if the caller has one; else a parser is built for them.

    Returns:
        :class:`Options`. If ``args`` are already complete, only their ``config`` is derived again.

    Raises:
        UserError: options contradict each other.
    """
    if isinstance(args, Options):
        return replace_options(args)
    options = {**(defaults or build_parser().defaults_in_code), **vars(args)}
    if not options['training']:
        options = {**evaluation_defaults(), **options}
    options.pop('batch_fields', None)      # a configs.yaml records them
    args = Options(**options)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.img_size, args.milestones = tuple(args.img_size), tuple(args.milestones)
    args.freeze = tuple(args.freeze) if args.freeze else None
    if args.caption_masking is None:
        args.caption_masking = 'inplace' if args.MLM else 'clean'
    total = args.masked_token_rate + args.masked_token_unchanged_rate
    if total > 1:
        raise UserError('--masked_token_rate and --masked_token_unchanged_rate are fractions of the same tokens: they '
                        f'add up to {total:g}, and must not exceed 1')
    if args.training:
        read_rerank_settings(args, '--val_rerank')      # raise for options of another method
    for provider in option_providers():
        provider.validate_options(args)
    args.config = build_run_config(args)
    return args


@functools.cache
def evaluation_defaults():
    """The defaults of the options that only an evaluation has: {option: default}."""
    return {name: action.default for name, action in build_test_parser('', '').actions().items()}


def replace_options(args, **changes):
    """Copy complete options with changes, and derive their ``config`` again. The options are not validated again."""
    replaced, data = Options(**{**vars(args), **changes}), args.config.data
    evaluation = {} if args.training else {'trained_on': data.trained_on, 'further_datasets': data.further_datasets}
    replaced.config = build_run_config(replaced, args.config.notes, **evaluation)
    return replaced


def with_notes(args, notes):
    """Copy complete options with other lines for the log."""
    replaced = Options(**vars(args))
    replaced.config = replace(args.config, notes=tuple(notes))
    return replaced


def as_dict(args):
    """The options as plain values, as result files record them, with derived values that their readers know.

    Options that only describe this call of the program are missing.
    """
    values = dict(vars(args))
    if isinstance(args, Options):
        data = vars(args.config.data)
        values.update(data if not args.training else {'batch_fields': data['batch_fields']})
    skipped = ('config_file', 'print_config', 'dry_run')
    return {name: to_plain_value(value) for name, value in sorted(values.items()) if name not in skipped}

"""Read the options of an evaluation: a trained run, a published checkpoint, or a pretrained CLIP."""
import argparse
import os
import sys

from utils.errors import UserError
from utils.option_declarations import build_parser
from utils.option_providers import option_providers
from utils.option_types import split_dataset_path
from utils.paths import VOCABULARY_COPIES
from utils.recipes import (drop_command_line_options, find_unknown_keys, is_run_config, rde_notes, read_options,
                           reference_defaults, refuse_other_interface, translate_rde_losses, unknown_key_notes)
from utils.rerank_options import read_rerank_settings
from utils.run_aliases import find_run_config
from utils.run_config import Options, build_run_config, complete, evaluation_defaults, with_notes


def run_options(path):
    """Read the options of a run from its configs.yaml, Pedestal's or a reference implementation's.

    Missing options get the values that the reference implementation used.

    Returns:
        :class:`~utils.run_config.Options`. ``config.notes`` are lines for the log, for example on unknown keys, which
        are skipped.
    """
    parser = build_parser()
    actions = parser.actions()
    content = drop_command_line_options(read_options(path), parser, path)
    translated = translate_rde_losses(content)
    options = {**parser.defaults_in_code, **reference_defaults(translated)}
    options.update({name: parser.convert_config_value(name, value, path) for name, value in translated.items()
                    if name in actions})
    return with_notes(complete(argparse.Namespace(**options)),
                      [*unknown_key_notes(find_unknown_keys(translated, parser), path),
                       *rde_notes(content, translated, f'{path}: ')])


# Options of a pretrained CLIP without a run. A run's configs.yaml has its own values.
UNTRAINED_OPTIONS = ('backbone', 'pretrain_choice', 'img_size', 'stride_size', 'text_length', 'activation',
                     'output_dir', 'trust_archive')


def parse_test_options(parser, argv=None):
    """Read the options of an evaluation from the command line and from the configs.yaml of ``--config_file``.

    Args:
        parser: the result of :func:`build_test_parser`, perhaps with more options.
        argv: words of the command line, by default the program's own.

    Returns:
        :class:`~utils.run_config.Options`. ``checkpoint`` is the file to evaluate, or None for a pretrained CLIP.

    Raises:
        UserError: an unknown option, an invalid value, or a missing run or checkpoint.
    """
    argv = sys.argv[1:] if argv is None else argv
    refuse_other_interface(argv, 'the command line')
    flags = argparse.Namespace(**{**evaluation_defaults(), **vars(parser.parse(argv))})
    read_rerank_settings(flags)     # raise for options of another method
    if flags.config_file:
        flags.config_file = find_run_config(flags.config_file)
        return trained_run_options(flags)
    if flags.backbone and flags.checkpoint:
        return published_checkpoint_options(flags)
    return pretrained_model_options(flags)


def trained_run_options(flags):
    """The options of a run's configs.yaml, with those that the command line gives instead."""
    for name in UNTRAINED_OPTIONS:
        if getattr(flags, name) is not None:
            raise UserError(f'--{name} is in the configs.yaml of --config_file: remove --{name}, or remove '
                            '--config_file to evaluate a pretrained CLIP without training')
    run = run_options(flags.config_file)
    options = override_options({**vars(run), 'training': False}, flags)
    # If a run trained on several datasets, the first is evaluated here, and test.py continues with the others.
    name, options['root_dir'] = split_dataset_path(options['dataset_name'], options['root_dir'])
    options['dataset_name'], *further_datasets = name.split('+')
    options['image_cache'] = flags.image_cache or ''   # the run's folder may exist only on another machine
    if flags.dataset_name and flags.columns is None and not os.path.splitext(flags.dataset_name)[1]:
        options['columns'] = None       # those of the run are of its table
    checkpoint = flags.checkpoint or find_checkpoint(flags.config_file, options, run.dataset_name)
    copies = [os.path.join(folder, name) for folder in (options['output_dir'], os.path.dirname(checkpoint))
              for name in VOCABULARY_COPIES]
    if flags.vocab_file is None and any(map(os.path.exists, copies)):
        options['vocab_file'] = ''      # the backbone finds the run's copy; the file may have moved or changed
    notes, chosen_by = run.config.notes, FMFA_CHECKPOINTS.get(os.path.basename(checkpoint))
    if chosen_by:
        options['eval_dataset'], notes = chosen_by, [*notes, checkpoint_note(checkpoint, chosen_by)]
    # A recipe that names no dataset is for the dataset of the command line.
    names_dataset = 'dataset_name' in read_options(flags.config_file)
    trained_on = run.dataset_name if names_dataset else flags.dataset_name or run.dataset_name
    return evaluation_options({**options, 'checkpoint': checkpoint}, notes, trained_on=trained_on,
                              further_datasets=tuple(further_datasets))


def override_options(options, flags):
    """Add the options that the command line gives, and those that ``options`` lack."""
    return {**options, **{name: value for name, value in vars(flags).items()
                          if value is not None or name not in options}}


def evaluation_options(options, notes=(), **evaluation):
    """The :class:`~utils.run_config.Options` of ``options``, which are complete and valid."""
    args = Options(**options)
    args.config = build_run_config(args, notes, **evaluation)
    return args


def published_checkpoint_options(flags):
    """The options of a published checkpoint that has no configs.yaml, by its backbone."""
    if not os.path.isfile(flags.checkpoint):
        raise UserError(f'--checkpoint: there is no file {flags.checkpoint}')
    given = {name: value for name, value in vars(flags).items() if value is not None}
    options = (provider.published_options(flags.backbone, flags.checkpoint) for provider in option_providers())
    published = next(filter(None, options))
    defaults = build_parser().defaults_in_code
    args = complete(argparse.Namespace(**{**defaults, **published, 'training': False, **given}))
    # Flags of test.py that are not given, such as those of the heads' reports, have no default in a training run.
    options = {**vars(flags), **vars(args), 'output_dir': os.path.dirname(flags.checkpoint),
               'image_cache': flags.image_cache or ''}
    return evaluation_options(options)


def pretrained_model_options(flags):
    """The options of a pretrained CLIP without training: its embeddings, without a head."""
    if not flags.pretrain_choice:
        raise UserError('no model: give a run with --config_file <run folder>/configs.yaml, or a pretrained CLIP with '
                        '--pretrain_choice')
    if flags.checkpoint:
        raise UserError("--checkpoint needs --config_file, its run's configs.yaml; give weights without a run with "
                        '--pretrain_choice')
    defaults = {**build_parser().defaults_in_code, 'loss_names': 'itc', 'training': False}
    options = override_options(vars(complete(argparse.Namespace(**defaults))), flags)
    name, root = split_dataset_path(options['dataset_name'], options['root_dir'])
    # stride_size None: the patch's size, which the weights have
    return evaluation_options({**options, 'dataset_name': name, 'root_dir': root, 'checkpoint': None,
                               'img_size': tuple(options['img_size']), 'stride_size': flags.stride_size},
                              trained_on=None)


# FMFA's reference implementation evaluates a run on three datasets and keeps the best epoch of each.
FMFA_CHECKPOINTS = {'best0.pth': 'CUHK-PEDES', 'best1.pth': 'ICFG-PEDES', 'best2.pth': 'RSTPReid'}


def find_best_checkpoint(folders, datasets):
    """Find a run's best checkpoint: best.pth, or one of the three that FMFA's reference implementation keeps.

    Args:
        folders: folders to search, in this order.
        datasets: dataset names, the preferred one first. They select among FMFA's three checkpoints. If none of them
            fits, best0.pth is selected, as in FMFA's own test.py.

    Returns:
        A path, or None.
    """
    names = [name for dataset in datasets for name in FMFA_CHECKPOINTS if FMFA_CHECKPOINTS[name] == dataset]
    paths = (os.path.join(folder, name) for folder in folders for name in ('best.pth', *names, *FMFA_CHECKPOINTS))
    return next((path for path in paths if os.path.isfile(path)), None)


def find_checkpoint(config_file, options, trained_on):
    """Find the best checkpoint next to a configs.yaml, or in the folder that it names.

    Args:
        config_file: the configs.yaml.
        options: ``{option: value}`` of the evaluation.
        trained_on: ``--dataset_name`` of the run.

    Raises:
        UserError: there is none.
    """
    folders = [os.path.dirname(config_file), options['output_dir']]
    checkpoint = find_best_checkpoint(folders, [options['dataset_name'], trained_on])
    if checkpoint is None:
        paths = dict.fromkeys(os.path.abspath(os.path.join(folder, 'best.pth')) for folder in folders)
        last = os.path.join(folders[0], 'last.pth')
        other = f' (the run has only {last})' if os.path.isfile(last) else ''
        if not is_run_config(read_options(config_file)):
            other += f' ({config_file} is a recipe and not the configs.yaml of a run)'
        raise UserError(f"no best.pth: there is no {' and no '.join(paths)}{other}; give a checkpoint with "
                        '--checkpoint')
    return checkpoint


def checkpoint_note(checkpoint, dataset):
    """A line for the log: which dataset chose a checkpoint of FMFA's reference implementation."""
    checkpoints = ', '.join(f'{name}: {its_dataset}' for name, its_dataset in FMFA_CHECKPOINTS.items())
    return (f"{checkpoint} is of the best epoch on {dataset}: FMFA's reference implementation keeps the best epoch on "
            f'each of three datasets ({checkpoints}); --checkpoint chooses another')

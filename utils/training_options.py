"""Read the options of a training run: the command line, a recipe, and the run that is resumed."""
import argparse
import os
import sys

from utils.errors import UserError
from utils.evaluation_options import find_best_checkpoint
from utils.option_declarations import build_parser
from utils.option_notes import changed_values, option_notes
from utils.option_providers import option_providers
from utils.option_types import Effect
from utils.recipes import (apply_need_mae, format_recipe, rde_notes, read_recipe, refuse_other_interface,
                           translate_rde_losses)
from utils.run_aliases import find_run_folder, suggest_run
from utils.run_config import complete, with_notes
from utils.safe_yaml import read_yaml


def get_args(argv=None):
    """Read the options of a training run from the command line and its recipe.

    ``--help`` and ``--print_config`` print and exit.

    Args:
        argv: words of the command line, by default the program's own.

    Returns:
        :class:`~utils.run_config.Options`, an ``argparse.Namespace``. ``config.notes`` are lines for the log.

    Raises:
        UserError: an unknown option, an invalid value, or options that contradict each other.

    Example:
        >>> args = get_args(['--loss_names', 'sdm+id', '--img_size', '256', '128'])
        >>> args.img_size, args.lr, args.caption_masking
        ((256, 128), 1e-05, 'clean')
    """
    argv = expand_resume_folder(list(sys.argv[1:] if argv is None else argv))
    refuse_other_interface(argv, 'the command line')
    parser = build_parser()
    parsed = parser.parse(argv)
    flag_names = parser.given_options(argv)
    recipe, notes = read_recipe(parsed.config_file, parser) if parsed.config_file else ({}, [])
    recipe, recipe_notes = translate_losses(recipe, f'{parsed.config_file}: ')
    flags, flag_notes = translate_losses(apply_need_mae({name: getattr(parsed, name) for name in flag_names}))
    chosen = {**recipe, **flags}
    for name, find_checkpoint in (('resume_ckpt_file', find_resume_checkpoint), ('init_from', find_initial_checkpoint)):
        path = chosen.get(name)
        if path and not os.path.isfile(path) and (folder := find_run_folder(path)):
            chosen[name] = find_checkpoint(folder)
    check_run_options(argparse.Namespace(**{**parser.defaults_in_code, **chosen}))
    resumed, resume_notes = {}, []
    if chosen.get('resume'):
        resumed, resume_notes = read_resumed_options(chosen['resume_ckpt_file'], parser)
    settings = {**parser.defaults_in_code, **resumed, **chosen}
    if 'MLM' in flag_names and 'caption_masking' not in flags:
        settings['caption_masking'] = None  # --MLM decides it, also if the recipe holds all options
    args = complete(argparse.Namespace(**settings), parser.defaults_in_code)
    notes = [*notes, *recipe_notes, *flag_notes, *resume_notes,
             *option_notes(args, parser, flag_names, {**resumed, **chosen})]
    if resumed:
        resumed_args = complete(argparse.Namespace(**resumed), parser.defaults_in_code)
        refuse_changes(args, resumed_args, parser)
        notes += [f'resumed with another {name}: {before} -> {after}' for name, before, after
                  in changed_values(resumed_args, args, parser.options_with(Effect.CHANGEABLE_ON_RESUME))]
    if args.print_config:
        print(format_recipe(args, parser), end='')
        sys.exit(0)
    return with_notes(args, notes)


def translate_losses(options, prefix=''):
    """Replace RDE's loss names: ``(options, lines for the log)``."""
    known = {name for provider in option_providers() for name in provider.loss_names()}
    translated = translate_rde_losses(options, known)
    return translated, rde_notes(options, translated, prefix)


def expand_resume_folder(argv):
    """Replace ``--resume <run's folder>`` by ``--resume --resume_ckpt_file <run's folder>``."""
    words = []
    for word in argv:
        if word.startswith('--resume='):
            word, words = word[len('--resume='):], [*words, '--resume']
        is_path = not word.startswith('-') and word.lower() not in ('true', 'false')
        words += ['--resume_ckpt_file', word] if words[-1:] == ['--resume'] and is_path else [word]
    return words


def find_resume_checkpoint(folder):
    """The checkpoint to resume in a run's folder: last.pth, or the best one of a reference implementation's run."""
    last, config = (os.path.join(folder, name) for name in ('last.pth', 'configs.yaml'))
    trained_on = read_yaml(config).get('dataset_name') if os.path.exists(config) else None
    return last if os.path.exists(last) else find_best_checkpoint([folder], [trained_on]) or last


def find_initial_checkpoint(folder):
    """The checkpoint of a run's folder that initializes a new run: best.pth."""
    return os.path.join(folder, 'best.pth')


def check_run_options(args):
    """Check files and names before anything is created.

    Raises:
        UserError: a file is missing, or options contradict each other.
    """
    if args.resume and args.init_from:
        raise UserError('--init_from starts a new run, and --resume resumes one: give only one of them')
    if args.resume_ckpt_file and not args.resume:
        raise UserError('--resume_ckpt_file is only read with --resume: add --resume')
    if args.resume and not args.resume_ckpt_file:
        raise UserError("--resume needs --resume_ckpt_file, the last.pth of the run, or --resume <run's folder>")
    for name in ('resume_ckpt_file', 'init_from'):
        path = getattr(args, name)
        if path and not os.path.isfile(path):
            folder = os.path.dirname(path)
            is_run = not os.path.isdir(folder) or os.path.isfile(os.path.join(folder, 'configs.yaml'))
            raise UserError(f"--{name}: there is no file {path}{'' if is_run else suggest_run(folder)}")
    if os.path.basename(args.name) != args.name or not args.name:
        raise UserError(f"--name '{args.name}' becomes a part of a folder's name: it cannot be empty or hold a /")


def refuse_changes(args, resumed_args, parser):
    """Raise UserError if the command changes an option of the resumed run that affects its result."""
    changeable = Effect.RUN | Effect.INVOCATION | Effect.CHANGEABLE_ON_RESUME
    fixed = parser.options_with(Effect.RESULT) & parser.options_without(changeable)
    changed = [f'{name} {new} (run: {old})' for name, old, new in changed_values(resumed_args, args, fixed)]
    if changed:
        raise UserError(f"--resume keeps a run's options, and these options differ: {', '.join(changed)}; remove them, "
                        'or start a new run with --init_from')


def read_resumed_options(checkpoint, parser):
    """Read the configs.yaml next to a checkpoint with :func:`~utils.recipes.read_recipe`; ``({}, [])`` without one."""
    path = os.path.join(os.path.dirname(checkpoint), 'configs.yaml')
    return read_recipe(path, parser) if os.path.exists(path) else ({}, [])

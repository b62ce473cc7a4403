"""Notes on a training run's options, for the start of its log."""
import argparse
import os

from utils import recipes
from utils.errors import UserError
from utils.option_providers import option_providers, unread_options
from utils.option_types import Effect
from utils.recipes import FORKS, find_recipes, read_recipe, to_plain_value
from utils.run_config import complete


def option_notes(args, parser, flag_names, chosen):
    """Lines for the start of the log.

    They name options that nothing reads, options that a reference implementation sets differently, and differences from
    the method's published recipe.

    Args:
        args: the completed options.
        parser: train.py's parser.
        flag_names: the options on the command line.
        chosen: {option: value} of the command line, the recipe and the resumed run.
    """
    defaults = parser.defaults_in_code
    notes = [line for provider in option_providers() for line in provider.log_notes(args)]
    changed = flag_names | {name for name, value in chosen.items()
                            if to_plain_value(value) != to_plain_value(defaults[name])}
    unread = unread_options(args, parser)
    if changed & unread:
        names = ', '.join(f'--{name}' for name in sorted(changed & unread))
        notes.append(f'no active head reads {names} (--loss_names {args.loss_names}, --tuning {args.tuning})')
    ignored = sorted(name for name in changed & parser.options_with(Effect.IGNORED)
                     if getattr(args, name) != defaults[name])
    if ignored:
        notes.append(f"without effect: {', '.join('--' + name for name in ignored)}")
    if args.need_MAE and 'need_MAE' in flag_names:
        values = ', '.join(f'{name} {getattr(args, name)}' for name in recipes.SEN_CAPTION_OPTIONS)
        notes.append(f'--need_MAE: as in SEN, captions are filtered and masked in place: {values}')
    path, differences = recipe_differences(args, parser)
    fork = find_fork(args, changed - unread)
    fork_differences = [f'{name} {value} (here {getattr(args, name)})'
                        for name, value in (fork.command_defaults if fork else {}).items()
                        if name not in {*chosen, *unread, *differences} and getattr(args, name) != value]
    if fork_differences:
        notes.append(f"the reference implementation of {fork.name} trains with {', '.join(fork_differences)}: give "
                     'these options to train as it does')
    if differences:
        notes.append(f"differs from {path}: {', '.join(differences.values())}")
    return notes


def find_fork(args, changed):
    """Find the reference implementation whose command this may be, by its losses or by its own options.

    Args:
        args: the completed options.
        changed: the options that differ from their defaults.

    Returns:
        A :class:`~utils.recipes.Fork`, or None if there is none or more than one.
    """
    if args.tuning != 'none':
        return None     # none of them has a tuning, and DM-Adapter has options and a loss with names of PHP
    by_losses = [fork for fork in FORKS
                 if method_keys(args) == method_keys(argparse.Namespace(**{**vars(args), 'loss_names': fork.losses}))]
    candidates = by_losses or [fork for fork in FORKS if fork.own_options & changed]
    return candidates[0] if len(candidates) == 1 else None


def method_keys(args):
    """The :meth:`~OptionProvider.method_key` of all providers."""
    return [provider.method_key(args) for provider in option_providers()]


def recipe_differences(args, parser):
    """Compare a run with the published recipe that has its losses and its dataset; with the nearest of several.

    Returns:
        ``(path below the repository, {option: the difference in words})``; ``(None, {})`` without one.
    """
    # method_keys compares the losses; MLM and need_MAE are compared by the options that they stand for.
    compared = (parser.options_with(Effect.RESULT)
                & parser.options_without(Effect.RUN | Effect.INVOCATION | Effect.NOT_IN_RECIPE)
                - {'loss_names', 'MLM', 'need_MAE'})
    candidates = []
    for path in find_recipes(args.dataset_name):
        try:
            recipe = argparse.Namespace(**{**parser.defaults_in_code, **read_recipe(path, parser)[0],
                                           'dataset_name': args.dataset_name})
        except UserError:   # the head that brings its options is broken
            continue
        if method_keys(recipe) != method_keys(args):
            continue
        complete_recipe = complete(recipe, parser.defaults_in_code)
        differences = {name: f"{name} {new} (recipe {'without it' if old is None else old})"
                       for name, old, new in changed_values(complete_recipe, args, compared)}
        candidates.append((f'configs/{os.path.basename(path)}', differences))
    return min(candidates, key=lambda candidate: len(candidate[1]), default=(None, {}))


def changed_values(before, after, names):
    """(option, plain value before, plain value after) of the options among ``names`` whose values differ."""
    for name in sorted(name for name in vars(before) if name in names):
        old, new = to_plain_value(getattr(before, name)), to_plain_value(getattr(after, name))
        if old != new:
            yield name, old, new

"""The argument parser of all programs: argparse plus effects of options, readable errors and IRRA's forms of flags."""
import argparse
import os

from utils.commands import program_name
from utils.errors import UserError, suggest_name
from utils.help_pages import ShowHelp, full_page
from utils.option_types import Effect, add_bounds, shorten, valid_text
from utils.run_aliases import alias_names


class EffectMixin:
    """Adds the setting ``effect`` (:class:`~utils.option_types.Effect`) to argparse's ``add_argument``.

    An option in ``excluded_options`` is not added.
    """
    excluded_options = ()

    def add_argument(self, *flags, effect=Effect.RESULT, **settings):
        if flags[0].removeprefix('--') in self.excluded_options:
            return None
        if 'type' in settings:
            settings['type'] = add_bounds(settings['type'], flags[0])
        action = super().add_argument(*flags, **settings)
        action.effect = effect
        return action


class OptionGroup(EffectMixin, argparse._ArgumentGroup):
    pass


# {flag: flags of other programs with the same meaning}, for the error for an unknown flag.
FOREIGN_FLAGS = {
    '--lr': ('learning_rate', 'base_lr', 'initial_lr'), '--target_lr': ('min_lr', 'lr_min', 'eta_min'),
    '--weight_decay': ('wd', 'l2'), '--alpha': ('beta1', 'adam_beta1', 'betas'), '--beta': ('beta2', 'adam_beta2'),
    '--lrscheduler': ('scheduler', 'lr_scheduler', 'lr_policy'), '--gamma': ('lr_decay', 'decay_rate'),
    '--num_epoch': ('epochs', 'max_epochs', 'n_epochs'), '--batch_size': ('bs', 'train_batch_size'),
    '--test_batch_size': ('batch_size', 'bs', 'test_bs'),
    '--micro_batch': ('accum_steps', 'gradient_accumulation_steps'),
    '--clip_grad_norm': ('grad_clip', 'max_grad_norm', 'clip_grad', 'gradient_clip_val'),
    '--early_stop': ('early_stopping',),
    '--freeze': ('freeze_layers', 'frozen_layers', 'freeze_params'),
    '--grad_checkpoint': ('gradient_checkpointing', 'grad_ckpt'), '--num_workers': ('workers',),
    '--dataset_name': ('dataset',), '--root_dir': ('data_root', 'data_dir', 'data_path', 'data'),
    '--val_dataset': ('val_set', 'val_split'), '--img_size': ('image_size', 'height', 'width', 'resolution'),
    '--text_length': ('max_length', 'max_len', 'context_length'), '--img_aug': ('augment', 'augmentation'),
    '--text_dropout': ('dropout',), '--loss_names': ('losses', 'criterion'),
    '--pretrain_choice': ('model', 'arch', 'pretrained', 'weights'), '--backbone': ('backbone_name',),
    '--config_file': ('config', 'cfg'), '--name': ('exp_name', 'run_name', 'experiment'),
    '--output_dir': ('save_dir', 'log_dir', 'logdir'), '--resume': ('resume_from', 'resume_checkpoint'),
    '--checkpoint': ('ckpt', 'load', 'load_from', 'resume', 'weight_file'),
    '--init_from': ('checkpoint', 'ckpt', 'load_from'), '--log_period': ('log_interval', 'log_freq', 'print_freq'),
    '--save_period': ('save_interval', 'save_freq'), '--eval_period': ('eval_interval', 'eval_freq', 'val_interval'),
    '--device': ('gpu', 'gpus', 'gpu_id', 'cuda'), '--amp': ('precision', 'mixed_precision', 'fp16', 'bf16'),
    '--seed': ('random_seed', 'manual_seed'), '--test': ('evaluate', 'eval_only'),
}


class Parser(EffectMixin, argparse.ArgumentParser):
    """An argparse parser that raises :class:`~utils.errors.UserError` and suggests the nearest known flag.

    It accepts the command lines of reference implementations: ``--flag True`` and ``--flag False`` for a boolean
    option, and abbreviated flags (``--dataset``) if only one flag begins like this.

    Args:
        abbreviations: whether flags may be abbreviated.
        excluded_options: names of options of a shared declaration that the program does not read, and so does not have.
        settings: settings of ``argparse.ArgumentParser``.

    Attributes:
        everyday_options: names of the options that ``--help`` shows, in this order. Empty: it shows all.
        advanced_options: names of the options that only ``--help all`` shows.
        catalogs: {title: {name: description}} of names that options accept, for ``--help``.
        completions: {option: names that it joins by +}, for shell completion.
        run_options: names of the options that take a run or its name (:mod:`utils.run_aliases`), for the same.
        topics: {name: :class:`~utils.help_pages.Topic`} that ``--help <name>`` explains.
        unabbreviated_flags: flags that must be written in full, so that abbreviations of published commands are unique.
        readers: {option: classes that read it, such as heads}. Options that are not here are read by all.
        defaults_in_code: {option: default before a recipe changes it}.
    """

    def __init__(self, abbreviations=False, excluded_options=(), **settings):
        self.abbreviations, self.excluded_options = abbreviations, frozenset(excluded_options)
        if settings.get('prog'):
            settings['prog'] = program_name(settings['prog'])
        super().__init__(allow_abbrev=False, add_help=False, **settings)
        self.everyday_options, self.advanced_options = (), set()
        self.catalogs, self.completions, self.topics, self.run_options = {}, {}, {}, set()
        self.unabbreviated_flags, self.readers, self.defaults_in_code = set(), {}, {}
        self.add_argument('-h', '--help', nargs='?', const='', default=argparse.SUPPRESS, action=ShowHelp,
                          metavar='TOPIC', help='help page')

    def add_argument_group(self, *args, **settings):
        group = OptionGroup(self, *args, **settings)
        group.excluded_options = self.excluded_options
        self._action_groups.append(group)
        return group

    def parse(self, argv):
        """Parse a command line.

        Args:
            argv: words of the command line, without the program.

        Returns:
            An ``argparse.Namespace``.

        Raises:
            UserError: an unknown flag, a missing or invalid value.
        """
        if '_ARGCOMPLETE' in os.environ:    # set by the shell, if argcomplete is installed
            self.print_completions()
        words = self.expand_words(argv)
        for word in words:  # before argparse, which reports missing options first
            flag, _, value = word.partition('=')
            if word.startswith('--') and flag not in self._option_string_actions:
                raise UserError(f'unknown flag {flag}{self.suggest_flag(flag)}')
            if value == '--':  # argparse would read an empty list
                raise UserError(f"{flag} needs a value, not '--'")
        args, extra = self.parse_known_args(words)
        if extra:
            raise UserError(f"'{extra[0]}' follows no flag: give each value after its --flag, "
                            'and quote a value that holds spaces')
        return args

    def suggest_flag(self, flag):
        """The end of an error for an unknown flag."""
        if flag.removeprefix('--') in self.excluded_options:
            return f"; {program_name('test.py')} has it, but {self.prog} does not read it: remove {flag}"
        return (suggest_name(flag, self._option_string_actions, self.foreign_flags())
                or '; --help all lists all flags')

    def foreign_flags(self):
        """{flag of other programs: flag of this parser with the same meaning}."""
        foreign = {}
        for flag, names in FOREIGN_FLAGS.items():
            if flag in self._option_string_actions:
                foreign.update({f'--{name}': flag for name in names if f'--{name}' not in foreign})
        return foreign

    def suggest_option(self, name):
        """The end of an error for an unknown option of a YAML file: ``'; did you mean x?'``, or an empty text."""
        foreign = {other[2:]: flag[2:] for other, flag in self.foreign_flags().items()}
        return suggest_name(name, self.actions(), foreign)

    def print_completions(self):
        """Print completions of the command line for the shell, and exit."""
        import argcomplete
        for name, known in self.completions.items():
            self.actions()[name].completer = completer_of_joined_names(known)
        for name in self.run_options & set(self.actions()):
            self.actions()[name].completer = complete_run
        argcomplete.autocomplete(self, always_complete_options='long')

    def format_help(self):
        return full_page(self) + '\n'

    def error(self, message):
        raise UserError(message)

    def _check_value(self, action, value):
        """Override argparse's check of ``choices``, to suggest the nearest choice."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, invalid_choice_message(value, action.choices))

    def actions(self):
        """{option: argparse action}."""
        return {action.dest: action for action in self._actions if action.dest != 'help'}

    def options_with(self, effect):
        """The names of the options that have any of the effects."""
        return {name for name, action in self.actions().items() if action.effect & effect}

    def options_without(self, effect):
        """The names of the options that have none of the effects."""
        return set(self.actions()) - self.options_with(effect)

    def given_options(self, argv):
        """The names of the options on a command line."""
        flags = {word.split('=')[0] for word in self.expand_words(argv)}
        return {action.dest for flag, action in self._option_string_actions.items() if flag in flags}

    def expand_words(self, argv):
        """Return the words of a command line with full flags, and ``--no-flag`` instead of ``--flag False``."""
        words = []
        for word in map(checked_word, argv):
            flag, equals, value = word.partition('=')
            if word.startswith('--'):
                flag = self.expand_flag(flag)
                words.append(equals and self.boolean_flag(flag, value) or flag + equals + value)
            elif words and self.boolean_flag(words[-1], word):
                words[-1] = self.boolean_flag(words[-1], word)
            else:
                words.append(word)
        return words

    def expand_flag(self, flag):
        """Return the only flag that begins with ``flag``; ``flag`` itself if it is a flag, or if none begins with it.

        Raises:
            UserError: several flags begin with it.
        """
        if not self.abbreviations:
            return flag
        excluded = self.unabbreviated_flags - {flag}
        matches = sorted(name for name in self._option_string_actions if name.startswith(flag) and name not in excluded)
        if flag in matches or not matches or flag == '--':
            return flag
        if len(matches) > 1:
            raise UserError(f"unknown flag {flag}, which could be {' or '.join(matches[:5])}: write it in full")
        return matches[0]

    def boolean_flag(self, flag, value):
        """Return ``--flag`` or ``--no-flag`` for a boolean option with the value true or false; else None."""
        action = self._option_string_actions.get(flag)
        is_boolean = isinstance(action, argparse.BooleanOptionalAction) and not flag.startswith('--no-')
        if not is_boolean or value.lower() not in ('true', 'false'):
            return None
        return action.option_strings[value.lower() == 'false']

    def convert_config_value(self, name, value, path):
        """Convert a value from a YAML file as the option's flag does, with the same type and bounds.

        Args:
            name: the option.
            value: the value in the file.
            path: the file, for the error.

        Raises:
            UserError: the flag does not accept this value.
        """
        try:
            return convert_as_flag(self.actions()[name], value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise UserError(f'{path}, {name}: {error}') from None


def checked_word(word):
    """Return a word of the command line. Raises :class:`~utils.errors.UserError` if it holds invalid characters."""
    try:
        return valid_text(word)
    except argparse.ArgumentTypeError as error:
        raise UserError(f'the command line: {error}') from None


def invalid_choice_message(value, choices):
    """The error for a value that is not among an option's choices."""
    suggestion = suggest_name(value, choices)
    listed = '' if suggestion.startswith('; known') else f'; known: {", ".join(map(str, choices))}'
    return f"invalid choice: '{shorten(value)}'{suggestion}{listed}"


def convert_as_flag(action, value):
    """Convert a value from a YAML file as the flag of an argparse action does.

    Raises:
        argparse.ArgumentTypeError: the flag does not accept this value.
        ValueError: as above.
    """
    if value is None and action.default is None:
        return None
    if isinstance(action, argparse.BooleanOptionalAction) or action.const in (True, False):
        if not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"'{shorten(value)}' must be true or false")
        return value
    if action.nargs not in (None, '?'):
        values = list(value) if isinstance(value, (list, tuple)) else str(value).split()
        if isinstance(action.nargs, int) and len(values) != action.nargs or not values:
            count, kind = action.nargs if isinstance(action.nargs, int) else 'one or more', action.type and 'numbers'
            raise argparse.ArgumentTypeError(f"'{shorten(value)}' must be {count} {kind or 'texts'}")
        values = tuple((action.type or valid_text)(str(item)) for item in values)
        unknown = next((item for item in values if action.choices and item not in action.choices), None)
        if unknown is not None:
            raise argparse.ArgumentTypeError(invalid_choice_message(unknown, action.choices))
        return values
    if value is None or isinstance(value, (list, tuple, dict, bool)):
        raise argparse.ArgumentTypeError(f"'{shorten(value)}' must be a single value")
    text = valid_text(str(value))
    value = action.type(text) if action.type else text
    if action.choices and value not in action.choices:
        raise argparse.ArgumentTypeError(invalid_choice_message(value, action.choices))
    return value


def completer_of_joined_names(known):
    """Create a completer for argcomplete: it completes the name after the last + of a value."""
    def complete(prefix, **unused):
        before, plus, _ = prefix.rpartition('+')
        return [before + plus + name for name in sorted(known)]
    return complete


def complete_run(prefix, **unused):
    """Complete a run for argcomplete: a name of a run below logs, or a path."""
    from argcomplete.completers import FilesCompleter
    return [name for name in alias_names() if name.startswith(prefix)] + list(FilesCompleter()(prefix))


def split_at_dashes(argv):
    """Return the words before and after the first ``--``: a tool's own options, and those of the program it starts."""
    index = argv.index('--') if '--' in argv else len(argv)
    return argv[:index], argv[index + 1:]

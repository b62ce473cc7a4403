"""argparse as every program here uses it: errors are sentences, and each option says what depends on it."""
import argparse
import os

from utils.errors import UserError, nearest
from utils.help_pages import ShowHelp, full_page
from utils.option_types import Effect, legible, shortened, with_bounds


class Declaring:
    """Adds to argparse's ``add_argument`` what an option changes, :class:`~utils.option_types.Effect`."""

    def add_argument(self, *flags, effect=Effect.RESULT, **settings):
        if 'type' in settings:
            settings['type'] = with_bounds(settings['type'], flags[0])
        action = super().add_argument(*flags, **settings)
        action.effect = effect
        return action


class Group(Declaring, argparse._ArgumentGroup):
    pass


# What other programs call some flags.
ELSEWHERE = {'--learning_rate': '--lr', '--wd': '--weight_decay', '--bs': '--batch_size', '--dataset': '--dataset_name',
             '--gpu': '--device', '--gpus': '--device', '--model': '--pretrain_choice', '--precision': '--amp', '--epochs': '--num_epoch',
             '--workers': '--num_workers', '--losses': '--loss_names', '--pretrained': '--pretrain_choice', '--scheduler': '--lrscheduler',
             '--data_root': '--root_dir', '--data_dir': '--root_dir', '--config': '--config_file', '--cfg': '--config_file'}


class Parser(Declaring, argparse.ArgumentParser):
    """An argparse parser whose errors are sentences with the nearest known flag.

    It reads what the released command lines hold: ``--flag True`` or ``--flag False`` for a flag that takes no value, and with
    ``abbreviations`` flags that are cut short (``--dataset``), where only one can be meant.
    """

    def __init__(self, abbreviations=False, **settings):
        self.abbreviations = abbreviations
        super().__init__(allow_abbrev=False, add_help=False, **settings)
        self.everyday = ()            # the options that --help shows; none: all
        self.catalogs = {}            # {title: {name: what it is}} of names that options take, for --help
        self.completions = {}         # {option: the names that it joins by +}, for the shell
        self.topics = {}              # {name: Topic} that --help <name> explains
        self.add_argument('-h', '--help', nargs='?', const='', default=argparse.SUPPRESS, action=ShowHelp, metavar='TOPIC',
                          help='show this page')
        self.uncut = set()            # flags that released command lines, which cut flags short, cannot mean
        self.readers = {}             # option -> what reads it, such as heads; options that aren't here are read by all
        self.defaults_in_code = {}    # option -> default before a recipe changes it

    def add_argument_group(self, *args, **settings):
        group = Group(self, *args, **settings)
        self._action_groups.append(group)
        return group

    def parse(self, argv):
        if '_ARGCOMPLETE' in os.environ:    # the shell asks what may follow: pip install argcomplete
            self.complete()
        words = self.in_full(argv)
        for word in words:  # before argparse, which would first ask for what is missing
            flag, _, value = word.partition('=')
            if word.startswith('--') and flag not in self._option_string_actions:
                raise UserError(f'unknown flag {flag}{nearest(flag, self._option_string_actions, ELSEWHERE)}')
            if value == '--':  # argparse would make an empty list of it
                raise UserError(f"{flag} needs a value, and '--' is none")
        args, extra = self.parse_known_args(words)
        if extra:
            raise UserError(f"'{extra[0]}' belongs to no flag")
        return args

    def complete(self):
        """Print what may follow on the command line, for the shell, and exit."""
        import argcomplete
        for name, known in self.completions.items():
            self.actions()[name].completer = joined_names(known)
        argcomplete.autocomplete(self, always_complete_options='long')

    def format_help(self):
        return full_page(self) + '\n'

    def error(self, message):
        raise UserError(message)

    def actions(self):
        """{option: argparse action}"""
        return {action.dest: action for action in self._actions if action.dest != 'help'}

    def having(self, effect):
        """The options whose effect has a part of ``effect``."""
        return {name for name, action in self.actions().items() if action.effect & effect}

    def without(self, effect):
        """The options whose effect has no part of ``effect``."""
        return set(self.actions()) - self.having(effect)

    def given(self, argv):
        """The options that are on the command line."""
        flags = {word.split('=')[0] for word in self.in_full(argv)}
        return {action.dest for flag, action in self._option_string_actions.items() if flag in flags}

    def in_full(self, argv):
        """``argv`` with flags that are cut short written out, and ``--flag False`` as ``--no-flag``."""
        words = []
        for word in map(self.checked, argv):
            flag, equals, value = word.partition('=')
            if word.startswith('--'):
                flag = self.flag_meant(flag)
                words.append(equals and self.switched(flag, value) or flag + equals + value)
            elif words and self.switched(words[-1], word):
                words[-1] = self.switched(words[-1], word)
            else:
                words.append(word)
        return words

    def checked(self, word):
        try:
            return legible(word)
        except argparse.ArgumentTypeError as error:
            raise UserError(f'the command line: {error}') from None

    def flag_meant(self, flag):
        """The one flag that begins with ``flag``; ``flag`` itself where it is one or none does."""
        if not self.abbreviations:
            return flag
        begin_so = sorted(name for name in self._option_string_actions if name.startswith(flag) and name not in self.uncut - {flag})
        if flag in begin_so or not begin_so or flag == '--':
            return flag
        if len(begin_so) > 1:
            raise UserError(f"unknown flag {flag}, which could be {' or '.join(begin_so[:5])}: write it in full")
        return begin_so[0]

    def switched(self, flag, value):
        """--flag or --no-flag for a yes/no ``flag`` with the ``value`` true or false; None for any other."""
        action = self._option_string_actions.get(flag)
        if not isinstance(action, argparse.BooleanOptionalAction) or flag.startswith('--no-') or value.lower() not in ('true', 'false'):
            return None
        return action.option_strings[value.lower() == 'false']

    def typed(self, name, value, where):
        """A config's value of the option ``name`` as its flag would have read it: the same type, the same bounds. ``where``: the file,
        for the message of the :class:`UserError`."""
        try:
            return read_as_flag(self.actions()[name], value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise UserError(f'{where}, {name}: {error}') from None


def read_as_flag(action, value):
    if value is None and action.default is None:
        return None
    if isinstance(action, argparse.BooleanOptionalAction) or action.const in (True, False):
        if not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"'{shortened(value)}' must be true or false")
        return value
    if action.nargs not in (None, '?'):
        values = list(value) if isinstance(value, (list, tuple)) else str(value).split()
        if isinstance(action.nargs, int) and len(values) != action.nargs or not values:
            raise argparse.ArgumentTypeError(f"'{shortened(value)}' must be {action.nargs} numbers")
        return tuple(action.type(str(item)) for item in values)
    if value is None or isinstance(value, (list, tuple, dict, bool)):
        raise argparse.ArgumentTypeError(f"'{shortened(value)}' must be a single value")
    text = legible(str(value))
    value = action.type(text) if action.type else text
    if action.choices and value not in action.choices:
        raise argparse.ArgumentTypeError(f"'{shortened(value)}' must be one of {', '.join(action.choices)}")
    return value


def joined_names(known):
    """A function for argcomplete: the ``known`` names after the last + of what is typed."""
    def complete(prefix, **unused):
        before, plus, _ = prefix.rpartition('+')
        return [before + plus + name for name in sorted(known)]
    return complete

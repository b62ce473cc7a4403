"""The pages of ``--help``: everyday options, ``--help all``, and ``--help <loss, backbone, dataset, recipe, ...>``."""
import argparse
import inspect
import itertools
import os
import re
import textwrap
from typing import NamedTuple

from utils.commands import rename_commands
from utils.errors import unknown_name_error
from utils.option_types import Effect
from utils.recipes import CONFIGS, recipe_names
from utils.safe_yaml import read_yaml

WIDTH, INDENT, TEXT_COLUMN = 100, 2, 30     # characters of a line, before an option, and before its text


class Topic(NamedTuple):
    """A name that ``--help <name>`` explains.

    Attributes:
        kind: 'loss', 'backbone', 'tuning', 'dataset' or 'recipe'.
        text: the explanation: paragraphs, separated by empty lines.
        options: the names of the options that it reads.
        facts: {title: text}, printed between the explanation and the options.
    """
    kind: str
    text: str
    options: frozenset
    facts: dict = {}


class ShowHelp(argparse.Action):
    """Print a page and exit with status 0."""

    def __call__(self, parser, namespace, topic, option_string=None):
        print(rename_commands(help_page(parser, topic)))
        parser.exit()


def help_page(parser, topic=''):
    """The text of ``--help`` or ``--help topic``.

    Raises:
        UserError: an unknown topic.
    """
    if topic in (None, ''):
        return short_page(parser) if parser.everyday_options else full_page(parser)
    if topic == 'all':
        return full_page(parser)
    recipes = recipe_names() if parser.topics else []
    if topic in parser.topics:
        return topic_page(topic, parser.topics[topic], parser)
    if topic in recipes:
        return topic_page(topic, recipe_topic(topic, parser), parser)
    raise unknown_name_error('help topic', topic, ['all', *parser.topics, *recipes])


def short_page(parser):
    """The page of ``--help``: a program's own options, everyday options, and the names that some options accept."""
    actions = parser.actions()
    everyday = [actions[name] for name in parser.everyday_options if name in actions]
    shared = parser.advanced_options.union(parser.everyday_options)
    program_sections, group_sections = [], []
    for group in parser._action_groups:
        group_options = [action for action in group_actions(group) if action.dest not in shared]
        is_default_group = group in (parser._positionals, parser._optionals)
        sections = program_sections if is_default_group else group_sections
        sections += [format_section(group_title(group), group_options)] if group_options else []
    catalogs = [format_list(title, names) for title, names in parser.catalogs.items()]
    more = {'--help all': 'all options, grouped by what reads them'}
    if parser.topics:
        example = 'sdm' if 'sdm' in parser.topics else next(iter(parser.topics))
        more[f'--help {example}'] = 'the options of one loss, backbone, tuning, dataset or recipe'
    return '\n\n'.join([format_heading(parser), *program_sections, format_section('everyday options', everyday),
                        *group_sections, *catalogs, format_list('more', more)])


def full_page(parser):
    """The page of ``--help all``: every option, in its group."""
    groups = [group for group in parser._action_groups if group_actions(group)]
    sections = [format_section(group_title(group), group_actions(group), group.description) for group in groups]
    return '\n\n'.join([format_heading(parser), *sections])


def topic_page(name, topic, parser):
    """The page of ``--help name``: a loss, a backbone or a dataset, and the options that it reads."""
    actions = [action for option, action in parser.actions().items() if option in topic.options]
    sections = [f'{topic.kind} {name}', format_docstring(topic.text)]
    sections += [format_list(title, facts) for title, facts in topic.facts.items()]
    if topic.kind != 'recipe':
        title = f'options that {name} reads'
        sections.append(format_section(title, actions) if actions else f'{name} reads no options of its own.')
    return '\n\n'.join(filter(None, sections))


def recipe_topic(name, parser):
    """The :class:`Topic` of a recipe: the comment at its start, its losses and its options."""
    path = os.path.join(CONFIGS, f'{name}.yaml')
    options = read_yaml(path)
    with open(path, encoding='utf-8') as file:
        comment = [line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith('#'), file)]
    known = {loss: text for losses in parser.catalogs.values() for loss, text in losses.items()}
    losses = {loss: known.get(loss, '') for loss in str(options.get('loss_names', '')).split('+')}
    values = {f'--{option}': ' '.join(map(str, value)) if isinstance(value, list) else str(value)
              for option, value in options.items()}
    return Topic('recipe', ' '.join(comment), frozenset(), {
        'command': {f'python train.py --config_file configs/{name}.yaml': 'an option after it replaces that of the '
                                                                          'recipe'},
        'losses (--help <loss> explains them)': losses, 'options of the recipe': values})


def group_actions(group):
    return [action for action in group._group_actions if action.dest != 'help']


def group_title(group):
    """The title of an option group; argparse's own titles differ between versions of Python."""
    titles = {'options': 'options', 'optional arguments': 'options', 'positional arguments': 'arguments'}
    return titles.get(group.title, group.title)


def format_heading(parser):
    """The usage and the description of a program."""
    usage = ' '.join(parser.format_usage().split())
    return '\n\n'.join(filter(None, [wrap(usage), format_docstring(parser.description or '')]))


def format_docstring(text):
    """The paragraphs of a docstring without markup, wrapped; indented paragraphs keep their lines."""
    paragraphs = without_markup(inspect.cleandoc(text)).replace('::\n', ':\n').split('\n\n')
    return '\n\n'.join(paragraph.rstrip() if paragraph.startswith(' ') else wrap(paragraph) for paragraph in paragraphs)


def format_section(title, actions, description=None):
    """A title and a line for each option."""
    lines = [wrap(f'{title}:')] + ([wrap(description, INDENT)] if description else [])
    return '\n'.join(lines + [format_entry(format_invocation(action), format_help_text(action)) for action in actions])


def format_list(title, entries):
    """A title and a line for each entry of {name: text}."""
    return '\n'.join([f'{title}:', *(format_entry(name, text) for name, text in entries.items())])


def format_invocation(action):
    """How to write an option: ``--lr LR``, ``--[no-]img_aug``, ``--img_size HEIGHT WIDTH``."""
    if not action.option_strings:
        return action.metavar or action.dest
    flag = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return f'--[no-]{flag[2:]}'
    if action.nargs == 0:
        return flag
    if isinstance(action.metavar, tuple):
        return f"{flag} {' '.join(action.metavar)}"
    number = {'int': 'N', 'float': 'X'}.get(getattr(action.type, '__name__', ''))
    value = action.metavar or number or action.dest.split('_')[-1].upper()
    if action.choices and len(flag) + len(format_choices(action.choices)) < TEXT_COLUMN + 20:
        value = format_choices(action.choices)
    return flag + {'?': f' [{value}]', '+': f' {value} ...', '*': f' [{value} ...]'}.get(action.nargs, f' {value}')


def format_choices(choices):
    return f"{{{','.join(map(str, choices))}}}"


def format_help_text(action):
    """An option's help with its choices and its default."""
    if action.effect & Effect.IGNORED:
        return action.help
    text = (action.help or '') % vars(action)
    if action.choices and '{' not in format_invocation(action):
        text += f"; one of {', '.join(map(str, action.choices))}"
    default = format_default(action)
    if not default or '(default' in text:
        return text
    if re.search(r' \([A-Z][^()]{0,30}\)$', text):     # a remark, such as the paper's value
        return f'{text[:-1]}; default: {default})'
    return f'{text} (default: {default})'


def format_default(action):
    """A default as a user types it; empty if there is none."""
    default, is_boolean = action.default, isinstance(action, argparse.BooleanOptionalAction)
    if default in (None, '', argparse.SUPPRESS) or action.nargs == 0 and not is_boolean:
        return ''
    if isinstance(default, bool):
        return 'on' if default else 'off'
    return ' '.join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def format_entry(name, text):
    """A name and its text in two columns."""
    text_lines = textwrap.wrap(' '.join(text.split()), WIDTH - TEXT_COLUMN, break_long_words=False,
                               break_on_hyphens=False) or ['']
    name_column = ' ' * INDENT + name
    if len(name_column) >= TEXT_COLUMN:
        return '\n'.join([name_column, *(' ' * TEXT_COLUMN + line for line in text_lines)])
    first_line = name_column.ljust(TEXT_COLUMN) + text_lines[0]
    return '\n'.join([first_line, *(' ' * TEXT_COLUMN + line for line in text_lines[1:])]).rstrip()


def wrap(text, indent=0):
    """A paragraph in lines of at most ``WIDTH`` characters."""
    return textwrap.fill(' '.join(text.split()), WIDTH, initial_indent=' ' * indent, subsequent_indent=' ' * indent,
                         break_long_words=False, break_on_hyphens=False)


def first_sentence(documented):
    """The first sentence of a docstring, without its full stop: a line of a catalog."""
    text = ' '.join(without_markup(own_docstring(documented).split('\n\n')[0]).split())
    return text.split('. ')[0].rstrip('.')


def without_markup(text):
    """Remove the markup of docstrings.

    Example:
        >>> without_markup('``python -m datasets.check`` calls :func:`~utils.iotools.read_image`')
        'python -m datasets.check calls read_image'
    """
    text = re.sub(r':\w+:`(?:~[\w.]*\.)?([^`]*)`', r'\1', text)
    return re.sub(r'``([^`]*)``', r'\1', text)


def own_docstring(cls):
    """A class's docstring; empty if it only inherits one."""
    return inspect.cleandoc(vars(cls).get('__doc__') or '')

"""The pages of ``--help``: everyday options, ``--help all``, and ``--help <loss, backbone or dataset>``."""
import argparse
import inspect
import textwrap
from typing import NamedTuple

from utils.errors import unknown
from utils.option_types import Effect

WIDTH, INDENT, COLUMN = 100, 2, 30     # letters of a line, before an option, and before its text


class Topic(NamedTuple):
    """What ``--help <name>`` explains.

    Attributes:
        kind: 'loss', 'backbone' or 'dataset'.
        text: what it is, in sentences.
        options: the names of the options that it reads.
    """
    kind: str
    text: str
    options: frozenset


class ShowHelp(argparse.Action):
    """Print a page and exit with status 0."""

    def __call__(self, parser, namespace, topic, option_string=None):
        print(help_page(parser, topic))
        parser.exit()


def help_page(parser, topic=''):
    """The text of ``--help`` or ``--help topic``. Raises :class:`~utils.errors.UserError` if nothing is called so."""
    if topic in (None, ''):
        return short_page(parser) if parser.everyday else full_page(parser)
    if topic == 'all':
        return full_page(parser)
    if topic not in parser.topics:
        raise unknown('help topic', topic, ['all', *parser.topics])
    return topic_page(parser, topic)


def short_page(parser):
    """Options of everyday use, and the names that some of them take."""
    actions = parser.actions()
    parts = [heading(parser), section('everyday options', [actions[name] for name in parser.everyday if name in actions])]
    for title, names in parser.catalogs.items():
        parts.append('\n'.join([f'{title}:', *(entry(name, text) for name, text in names.items())]))
    more = {'--help all': 'every option, grouped by what reads it'}
    if parser.topics:
        example = next(iter(parser.topics))
        more[f'--help {example}'] = 'the options of one loss, backbone or dataset'
    parts.append('\n'.join(['more:', *(entry(name, text) for name, text in more.items())]))
    return '\n\n'.join(parts)


def full_page(parser):
    """Every option, in its group."""
    groups = [group for group in parser._action_groups if [a for a in group._group_actions if a.dest != 'help']]
    return '\n\n'.join([heading(parser), *(section(title_of(group), group._group_actions, group.description) for group in groups)])


def topic_page(parser, name):
    """What a loss, a backbone or a dataset is, and the options that it reads."""
    topic = parser.topics[name]
    actions = [action for option, action in parser.actions().items() if option in topic.options]
    parts = [f'{topic.kind} {name}', fill(topic.text)]
    parts.append(section(f'options that {name} reads', actions) if actions else f'{name} reads no options of its own.')
    return '\n\n'.join(parts)


def heading(parser):
    usage = ' '.join(parser.format_usage().split())
    return '\n\n'.join(filter(None, [fill(usage), fill(parser.description or '')]))


def title_of(group):
    return {'options': 'options', 'optional arguments': 'options', 'positional arguments': 'arguments'}.get(group.title, group.title)


def section(title, actions, description=None):
    """A title and a line for each option."""
    lines = [fill(f'{title}:')] + ([fill(description, INDENT)] if description else [])
    return '\n'.join(lines + [entry(invocation(action), text_of(action)) for action in actions if action.dest != 'help'])


def invocation(action):
    """How an option is written: ``--lr LR``, ``--[no-]img_aug``, ``--img_size HEIGHT WIDTH``."""
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
    if action.choices and len(flag) + len(listed(action.choices)) < COLUMN + 20:
        value = listed(action.choices)
    return flag + {'?': f' [{value}]', '+': f' {value} ...', '*': f' [{value} ...]'}.get(action.nargs, f' {value}')


def listed(choices):
    return f"{{{','.join(map(str, choices))}}}"


def text_of(action):
    """An option's help with its choices and its default."""
    if action.effect & Effect.UNREAD:
        return action.help
    text = (action.help or '') % vars(action)
    if action.choices and '{' not in invocation(action):
        text += f"; one of {', '.join(map(str, action.choices))}"
    default = default_of(action)
    return f'{text} (default: {default})' if default and 'default' not in text else text


def default_of(action):
    """A default as a user would type it; empty if there is none to name."""
    default = action.default
    if default in (None, '', argparse.SUPPRESS) or action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
        return ''
    if isinstance(default, bool):
        return 'on' if default else 'off'
    return ' '.join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def entry(name, text):
    """A name and its text in two columns."""
    lines = textwrap.wrap(' '.join(text.split()), WIDTH - COLUMN, break_long_words=False, break_on_hyphens=False) or ['']
    first = ' ' * INDENT + name
    if len(first) >= COLUMN:
        return '\n'.join([first, *(' ' * COLUMN + line for line in lines)])
    return '\n'.join([first.ljust(COLUMN) + lines[0], *(' ' * COLUMN + line for line in lines[1:])]).rstrip()


def fill(text, indent=0):
    return textwrap.fill(' '.join(text.split()), WIDTH, initial_indent=' ' * indent, subsequent_indent=' ' * indent,
                         break_long_words=False, break_on_hyphens=False)


def first_sentence(documented):
    """The first sentence of a docstring, without its full stop: a line of a catalog."""
    text = ' '.join(own_docstring(documented).split('\n\n')[0].split())
    return text.split('. ')[0].rstrip('.')


def own_docstring(cls):
    """A class's docstring; empty if it only inherits one."""
    return inspect.cleandoc(vars(cls).get('__doc__') or '')

"""A check: a name, a status, what was found, and what to do."""
import re
from dataclasses import dataclass

from utils.errors import UserError, to_printable_line

OK, WARNING, FAILED = 'ok', 'warning', 'failed'


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked, in one or two words.
        status: 'ok', 'warning' or 'failed'.
        finding: what was found.
        advice: what to do; '' if there is nothing to do.
    """
    name: str
    status: str
    finding: str
    advice: str = ''


def run_check(name, function, *arguments):
    """Call a function that returns the checks of one subject, and turn an error into a failed check.

    Args:
        name: the name of the failed check.
        function: a function that returns a list of :class:`Check`.
        arguments: its arguments.

    Example:
        >>> run_check('disk', lambda: 1 / 0)
        [Check(name='disk', status='failed', finding='ZeroDivisionError: division by zero', advice='')]
    """
    try:
        return list(function(*arguments))
    except UserError as error:
        finding, _, advice = to_printable_line(error).partition('; ')
        return [Check(name, FAILED, finding, advice)]
    except Exception as error:      # one broken check must not hide the others
        return [Check(name, FAILED, to_printable_line(f'{type(error).__name__}: {error}'.split('\n')[0]))]


def hide_paths(value, paths):
    """Replace paths in all texts of a JSON value.

    Args:
        value: lists, mappings, texts and numbers.
        paths: ``{path: replacement}``; longer paths are replaced first.

    Example:
        >>> hide_paths({'finding': 'no file /home/ann/data/a.jpg'}, {'/home/ann/data': '<root_dir>'})
        {'finding': 'no file <root_dir>/a.jpg'}
    """
    if isinstance(value, dict):
        return {key: hide_paths(item, paths) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_paths(item, paths) for item in value]
    if isinstance(value, str):
        for path in sorted(filter(None, paths), key=len, reverse=True):
            value = re.sub(re.escape(path) + r'(?![\w-])', lambda match: paths[match[0]], value)
    return value

"""Types of options: numbers with bounds, and :class:`Effect`, which says what an option changes.

Heads, backbones and datasets use these types in ``add_argument``.

Example:
    >>> parser = argparse.ArgumentParser()
    >>> action = parser.add_argument('--pool_ratio', type=fraction, default=0.3, help='fraction of the patches')
    >>> parser.parse_args(['--pool_ratio', '0.5']).pool_ratio
    0.5
"""
import argparse
import enum
import os
import sys


class Effect(enum.Flag):
    """What an option changes: ``add_argument(..., effect=Effect.NONE)``. The default is RESULT.

    Attributes:
        NONE: no computed value: only speed, or how often files are written.
        RESULT: computed values.
        RUN: one run, such as its folder or its initial weights. A run's configs.yaml as a recipe does not set it.
        INVOCATION: one call of the program. As RUN, and ``--print_config`` omits it.
        CHANGEABLE_ON_RESUME: with RESULT: a resumed run may have another value.
        NOT_IN_RECIPE: with RESULT: published recipes do not decide it, so the log does not compare it with them.
        COMMAND_LINE_ONLY: with others: a security decision, which a file from a stranger must not make.
        IGNORED: nothing: a flag that its reference implementation never reads, or fails with.
    """
    NONE = 0
    RESULT = enum.auto()
    RUN = enum.auto()
    INVOCATION = enum.auto()
    CHANGEABLE_ON_RESUME = enum.auto()
    NOT_IN_RECIPE = enum.auto()
    COMMAND_LINE_ONLY = enum.auto()
    IGNORED = enum.auto()


def split_dataset_path(name, root):
    """Split a dataset that is given as a path.

    A relative path starts at the current folder. If nothing is there, it starts at ``root``.

    Args:
        name: ``--dataset_name``: a name, or the path of a table.
        root: ``--root_dir``.

    Returns:
        ``(--dataset_name, --root_dir)``.

    Example:
        >>> split_dataset_path('/elsewhere/people.jsonl', 'data'), split_dataset_path('CUHK-PEDES', 'data')
        (('people.jsonl', '/elsewhere'), ('CUHK-PEDES', 'data'))
    """
    folder, base = os.path.split(name.rstrip(os.sep))
    if not folder or '+' in name and not os.path.exists(name):      # several datasets
        return name, root
    return base, folder if os.path.isabs(name) or os.path.exists(name) else os.path.join(root, folder)


DEFAULT_MAXIMUM = {int: 10 ** 6, float: 1e30}   # products of numbers up to 1e30 with usual values are finite in float32


def bounded_number(convert, above=None, at_least=None, at_most=None):
    """Create an argparse type for finite numbers with bounds.

    Args:
        convert: ``int`` or ``float``.
        above: exclusive lower bound.
        at_least: inclusive lower bound; give one of the two.
        at_most: inclusive upper bound, by default a million for ``int`` and 1e30 for ``float``.

    Example:
        >>> bounded_number(int, above=0)('3'), bounded_number(float, at_least=0)('0')
        (3, 0.0)
    """
    at_most = DEFAULT_MAXIMUM[convert] if at_most is None else at_most
    bounds = f"{f'at least {at_least}' if above is None else f'above {above}'} and at most {at_most}"
    kind = 'an integer' if convert is int else 'a number'

    def parse_number(text):
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{shorten(text)}' must be {kind} {bounds}") from None
        is_above_minimum = value >= at_least if above is None else value > above     # False for nan
        if not is_above_minimum or value > at_most:
            raise argparse.ArgumentTypeError(f"'{shorten(text)}' must be {bounds}")
        return value
    parse_number.__name__ = convert.__name__    # --help shows N for int and X for float
    return parse_number


def shorten(text, length=60):
    """Cut a text for an error message.

    Example:
        >>> shorten('a long text', length=6)
        'a long...'
    """
    text = str(text)
    return text if len(text) <= length else f'{text[:length]}...'


positive_int = bounded_number(int, above=0)
non_negative_int = bounded_number(int, at_least=0)
positive_float = bounded_number(float, above=0)
non_negative_float = bounded_number(float, at_least=0)
fraction = bounded_number(float, at_least=0, at_most=1)
positive_fraction = bounded_number(float, above=0, at_most=1)
fraction_below_one = bounded_number(float, at_least=0, at_most=0.9999999)
finite_float = bounded_number(float, at_least=-1e30)
bounded_int = bounded_number(int, at_least=-2 ** 31, at_most=2 ** 63 - 1)


def positive_int_up_to(maximum):
    """Create an argparse type for 1, 2, ..., ``maximum``, such as a number of layers.

    Example:
        >>> positive_int_up_to(12)('4')
        4
    """
    return bounded_number(int, above=0, at_most=maximum)


def open_fraction(text):
    """Convert a text to a number between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{shorten(text)}' must be above 0 and below 1")
    return value


open_fraction.__name__ = 'float'    # --help shows X


def valid_text(text):
    """Return ``text``.

    Raises:
        argparse.ArgumentTypeError: it holds characters that file names and YAML cannot hold.
    """
    if '\0' in text or any('\ud800' <= character <= '\udfff' for character in text):
        encoding = sys.getfilesystemencoding().upper()     # also the encoding of arguments
        hint = '' if encoding == 'UTF-8' else '; set PYTHONUTF8=1 to read them as UTF-8'
        problem = f'holds a byte 0 or bytes that are not {encoding}{hint}'
        raise argparse.ArgumentTypeError(f'{ascii(shorten(text))} {problem}')
    return text


def add_bounds(value_type, flag):
    """Replace ``int`` and ``float`` by types with bounds, because ``float`` also reads nan and inf.

    A ``--..._weight`` is at least 0.
    """
    if value_type is float:
        return non_negative_float if flag.endswith('_weight') else finite_float
    return bounded_int if value_type is int else value_type


def add_boolean_option(parser, flag, default, text, **settings):
    """Add the flags ``--option`` and ``--no-option`` to a parser or group.

    Args:
        parser: an argparse parser or group.
        flag: such as ``'--img_aug'``.
        default: True or False.
        text: the help text.
        settings: more settings of ``add_argument``, such as ``effect``.

    Returns:
        The argparse action.
    """
    return parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text, **settings)

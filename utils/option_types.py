"""What an option is: the type of its value, with bounds, and what depends on it. Heads, backbones and datasets declare theirs with it.

>>> parser = argparse.ArgumentParser()
>>> action = parser.add_argument('--pool_ratio', type=fraction, default=0.3, help='share of the patches')
>>> parser.parse_args(['--pool_ratio', '0.5']).pool_ratio
0.5
"""
import argparse
import enum
import os
import sys


class Effect(enum.Flag):
    """What an option changes; ``add_argument(..., effect=Effect.NOTHING)`` in a group of train.py's parser. Without it: RESULT."""
    NOTHING = 0                   # nothing that is computed: how quickly, how often something is written
    RESULT = enum.auto()          # what is computed
    RUN = enum.auto()             # one run: where it lies, what it starts from. Not taken over from another run's configs.yaml
    CALL = enum.auto()            # one call of the program. Not taken over either, and not printed as a part of a recipe
    RESUMED = enum.auto()         # with RESULT: may all the same be another one when a run is resumed (how long, how often, where)
    UNPUBLISHED = enum.auto()     # with RESULT: not compared with the published recipe, which is not about it
    FLAG = enum.auto()            # with others: for the command line alone, because a file that a stranger wrote must not decide it
    UNREAD = enum.auto()          # nothing: a flag of a released command line that its code never reads, or crashes on


def split_dataset_path(name, root):
    """``(--dataset_name, --root_dir)`` of a dataset that may be named by its path, such as ``/elsewhere/people.jsonl``.

    A relative path is one of the current folder or, if nothing is there, of ``root``.

    >>> split_dataset_path('/elsewhere/people.jsonl', 'data'), split_dataset_path('CUHK-PEDES', 'data')
    (('people.jsonl', '/elsewhere'), ('CUHK-PEDES', 'data'))
    """
    folder, base = os.path.split(name.rstrip(os.sep))
    if not folder or '+' in name and not os.path.exists(name):      # several datasets
        return name, root
    return base, folder if os.path.isabs(name) or os.path.exists(name) else os.path.join(root, folder)


LARGEST = {int: 10 ** 6, float: 1e30}   # the latter is finite in float32, and so is what it is multiplied with


def positive(convert, least=0, strict=True, most=None):
    """An argparse type: a finite number above ``least`` (or from it, if not strict) and at most ``most``, by default a million
    for ``int`` and 1e30 for ``float``.

    >>> positive(int)('3'), positive(float, strict=False)('0')
    (3, 0.0)
    """
    most = LARGEST[convert] if most is None else most

    def number(text):
        value = convert(text)
        if not (value > least if strict else value >= least) or value > most:
            raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be {'above' if strict else 'at least'} {least} and at most {most}")
        return value
    number.__name__ = convert.__name__
    return number


def shortened(text, length=60):
    """``text`` for a message: its beginning where it is long."""
    text = str(text)
    return text if len(text) <= length else f'{text[:length]}...'


count = positive(int)                                        # 1, 2, ...
whole = positive(int, strict=False)                          # 0, 1, ...
amount = positive(float)                                     # above 0
weight = positive(float, strict=False)                       # 0 or more
fraction = positive(float, strict=False, most=1)             # 0 to 1
decay = positive(float, strict=False, most=0.9999999)        # below 1
finite = positive(float, least=-1e30, strict=False)          # any number that is one
integer = positive(int, least=-2 ** 31, strict=False, most=2 ** 63 - 1)


def up_to(most):
    """1, 2, ..., ``most``: a number of layers, heads or the like, whose largest sensible value is small.

    >>> up_to(12)('4')
    4
    """
    return positive(int, most=most)


def open_fraction(text):
    """A number between 0 and 1, both excluded."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{shortened(text)}' must be above 0 and below 1")
    return value


def legible(text):
    """``text``, unless it holds what no file's name and no config can hold."""
    if '\0' in text or any('\ud800' <= letter <= '\udfff' for letter in text):
        encoding = sys.getfilesystemencoding().upper()     # of arguments, too
        hint = '' if encoding == 'UTF-8' else '; PYTHONUTF8=1 reads them as UTF-8'
        problem = f'holds a byte 0 or bytes that are not {encoding}{hint}'
        raise argparse.ArgumentTypeError(f'{ascii(shortened(text))} {problem}')
    return text


def with_bounds(kind, flag):
    """The argparse type that stands for Python's: ``float`` also reads nan and inf, and weights are at least 0."""
    if kind is float:
        return weight if flag.endswith('_weight') else finite
    return integer if kind is int else kind


def yes_no(group, name, default, text, **declared):
    """Add the flags ``name`` and ``--no-...``."""
    return group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text, **declared)

"""One command for all programs: ``pedestal train``, or ``python -m run_scripts train`` in the repository.

``pedestal <program> --help`` explains the options of a program.
"""
import argparse
import ast
import importlib
import os
import pkgutil
import re
import signal
import sys
from textwrap import shorten
from typing import NamedTuple

if __name__ == '__main__' and not __package__:      # as a file: search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts import ROOT
from utils.errors import UserError, run_program, suggest_name
from utils.launcher import watch_launcher
from utils.plugins import PREFIX, qualify
from utils.version import __version__

COMMAND = 'pedestal' if PREFIX else 'python -m run_scripts'
# Programs that are no tools of run_scripts, {name: module}.
OTHER_PROGRAMS = {'train': 'train', 'test': 'test', 'synthpedes': 'datasets.synthpedes.__main__',
                  'check': 'datasets.check'}


class Program(NamedTuple):
    """A program that the command starts.

    Attributes:
        module: the name of its module in the repository. It has a function ``main(argv=None)``.
        path: its file.
    """
    module: str
    path: str

    @property
    def summary(self):
        """The first paragraph of its docstring, without a command before or after it."""
        with open(self.path, encoding='utf-8') as file:
            docstring = ast.get_docstring(ast.parse(file.read())) or ''
        paragraph = ' '.join(docstring.split('\n\n')[0].split())
        text = re.sub(r'^``[^`]*``: |: ``[^`]*``\.?$', '', paragraph).rstrip('.')
        return text[:1].upper() + text[1:]


def find_programs():
    """Find all programs: {name: :class:`Program`}, train and test first, then the others by name."""
    modules = {name: module.split('.') for name, module in OTHER_PROGRAMS.items()}
    for info in sorted(pkgutil.iter_modules([os.path.join(ROOT, 'run_scripts')]), key=lambda info: info.name):
        if not info.name.startswith('__'):
            modules[info.name] = ['run_scripts', info.name, *['__main__'] * info.ispkg]
    programs = {name: Program('.'.join(parts), f'{os.path.join(ROOT, *parts)}.py') for name, parts in modules.items()}
    return {name: program for name, program in programs.items() if os.path.exists(program.path)}


def main(argv=None):
    """Run the program that the first word names, and exit with its status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if '_ARGCOMPLETE' in os.environ:
        words = complete_words()
    if words[:1] == ['help'] and len(words) > 1:
        words = [words[1], '--help', *words[2:]]
    name, programs = words[0].replace('-', '_') if words else '', find_programs()
    if name not in programs:
        run_program(lambda: print_page(words, programs))
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # as in train.py: before PyTorch is imported
    watch_launcher()
    sys.argv = [f'{COMMAND} {words[0]}', *words[1:]]
    run_program(importlib.import_module(qualify(programs[name].module)).main)


def print_page(words, programs):
    """Print the help page or the version.

    Raises:
        UserError: the first word names no program.
    """
    word = words[0] if words else ''
    sys.argv[0] = COMMAND
    if word in ('--version', 'version'):
        print(f'pedestal {__version__}')
    elif word in ('', '-h', '--help', 'help'):
        print(help_page(programs))
    elif word.startswith('-'):
        raise UserError(f'unknown flag {word}: the name of a program comes first; {COMMAND} --help lists all')
    else:
        raise UserError(f'unknown program {word!r}{suggest_name(word, programs)}; {COMMAND} --help lists all')


def help_page(programs):
    """The text of ``--help``: a line for each program."""
    width = max(map(len, programs)) + 2
    lines = [f'  {name:{width}}{shorten(program.summary, 118 - width, placeholder=" ...")}'
             for name, program in programs.items()]
    return '\n'.join([f'usage: {COMMAND} <program> [--<option> VALUE ...]',
                      f'       {COMMAND} <program> --help | --version', '', *lines])


def complete_words():
    """Complete the name of a program for the shell and exit. If it is complete, return it as a list.

    The program then completes its options. For argcomplete, the command line starts one word later.
    """
    import argcomplete
    typed = os.environ['COMP_LINE'][:int(os.environ['COMP_POINT'])].split()
    is_complete = os.environ['COMP_LINE'][:int(os.environ['COMP_POINT'])].endswith(' ')
    skipped = int(os.environ['_ARGCOMPLETE'])       # the words of the command
    if len(typed) + is_complete > skipped + 1:
        os.environ['_ARGCOMPLETE'] = str(skipped + 1)
        return [typed[skipped]]
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('program', choices=list(find_programs()))
    argcomplete.autocomplete(parser)
    return []


if __name__ == '__main__':
    main()

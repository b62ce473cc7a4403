"""The doctor's lines on the screen, and the rows of docs/performance.md."""
import os
import textwrap

from datasets.image_cache import format_bytes
from run_scripts import ROOT
from run_scripts.diagnosis.environment import is_disturbed
from utils.commands import rename_commands
from utils.tables import format_markdown

WIDTH, STATUS_WIDTH, NAME_WIDTH = 120, 9, 14
HEADER = ['machine', 'recipe', 'precision', 'batch', 'ms per step', 'samples/s', 'peak memory', 'per sample',
          'embedding differs by', 'date']


def format_check(check):
    """A check as lines of at most 120 characters.

    Example:
        >>> from run_scripts.diagnosis.check import Check
        >>> print(format_check(Check('disk', 'failed', '1 GB is free', 'free some space')))
        failed   disk          1 GB is free
                               -> free some space
    """
    indent = ' ' * (STATUS_WIDTH + NAME_WIDTH)
    first = f'{check.status:<{STATUS_WIDTH}}{check.name:<{NAME_WIDTH - 1}} '
    lines = textwrap.wrap(rename_commands(check.finding), WIDTH - len(indent), break_on_hyphens=False) or ['']
    if check.advice:
        lines += textwrap.wrap(f'-> {rename_commands(check.advice)}', WIDTH - len(indent), subsequent_indent='   ',
                               break_on_hyphens=False)
    return '\n'.join([first + lines[0], *(indent + line for line in lines[1:])])


def describe_paths(args):
    """``{path: name}`` of the folders that the JSON file does not hold: those of options, the home and Pedestal's."""
    paths = {'<output_dir>': args.output_dir, '<root_dir>': args.root_dir, '<home>': '~',
             '<pedestal>': ROOT}
    hidden = {}
    for name, path in paths.items():
        for form in (path, os.path.abspath(os.path.expanduser(path)), os.path.realpath(os.path.expanduser(path))):
            if os.path.dirname(form.rstrip(os.sep)) not in ('', os.sep):
                hidden[form] = name
    for value in vars(args).values():
        if isinstance(value, str) and os.path.isabs(value) and os.path.dirname(value) != os.sep:
            hidden.setdefault(os.path.dirname(value), '<folder>')
    return hidden


def format_row(report):
    """The row of docs/performance.md of one JSON file, the largest measured batch: a list of texts.

    If other programs used the cores, the times are missing.
    """
    machine, options, measured = report['machine'], report['options'], report['measurements']
    kind, _, index = machine['device'].partition(':')
    processor = machine['gpus'][int(index or 0)]['name'] if kind == 'cuda' else machine['cpu']
    rows = [row for row in measured.get('growth', {}).get('rows', []) if 'seconds' in row]
    differences = {row['precision']: row.get('embedding') for row in measured.get('precisions', {}).get('rows', [])}
    names = {'bfloat16': 'bf16', 'float16': 'fp16'}
    difference = differences.get(names.get(report['precision'], report['precision']))
    cells = [f"{processor}, PyTorch {machine['torch']}", options['loss_names'], report['precision']]
    if rows:
        last, growth = rows[-1], measured['growth']
        times = [f"{1000 * last['seconds']:.4g}", f"{last['batch'] / last['seconds']:.4g}"]
        times = ['-', '-'] if is_disturbed(machine) else times
        cells += [f"{last['batch']}", *times, format_bytes(last['peak_bytes']),
                  format_bytes(growth['sample_bytes']) if growth['sample_bytes'] else '-']
    else:
        cells += ['-'] * 5
    return [*cells, '-' if difference is None else f'{difference:.1e}', report['date'][:10]]


def format_table(reports):
    """A Markdown table with a row for each JSON file."""
    return format_markdown('training steps, measured by the doctor', HEADER, [format_row(report) for report in reports])

"""Report the results of the benchmark as JSON and as tables."""
import datetime
import json
import statistics
from dataclasses import asdict

from datasets.image_cache import format_bytes
from run_scripts.benchmark.memory import MEMORY_BATCH_SIZE
from run_scripts.benchmark.ranking import DIMENSIONS
from run_scripts.benchmark.rows import REFERENCE, print_progress
from utils.iotools import atomic_write
from utils.tables import format_markdown, format_text

MAX_OTHER_LOAD = 0.1     # fraction of the cores that other programs may use; above it, a row is not compared


class Report:
    """The rows that are measured so far.

    Args:
        args: the options of the benchmark.
        machine: what :func:`~run_scripts.benchmark.machine.describe_machine` returns.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.
    """

    def __init__(self, args, machine, setting):
        self.args, self.machine, self.setting, self.rows = args, machine, setting, []

    @property
    def is_complete(self):
        return not any('error' in row for row in self.rows)

    def add(self, row):
        """Add a row, compute its derived values, and write the files."""
        if 'seconds' in row:
            row['median'] = statistics.median(row['seconds'])
        if 'samples' in row:
            row['per_second'] = row['samples'] / row['median']
        if 'model_flops' in row:
            row['mfu'] = row['model_flops'] * row['steps'] / row['median'] / self.machine['matrix_rate']
        self.rows.append(row)
        self.compare([other for other in self.rows
                      if all(other.get(name) == row.get(name) for name in ('part', 'group'))])
        self.write()
        print_progress(f'    {format_progress(row)}')

    def compare(self, rows):
        """Compare the rows of a group with the reference: ``speed`` and ``memory`` are ratios to it."""
        for reference in [row for row in rows if row.get('way') == REFERENCE]:
            for row in rows:
                if 'median' in row and 'median' in reference and not is_disturbed(row) and not is_disturbed(reference):
                    row['speed'] = reference['median'] / row['median']
                for name in {'peak_bytes', 'total_bytes'} & row.keys() & reference.keys():
                    row['memory'] = row[name] / max(reference[name], 1)

    def write(self):
        """Write the files of --json and --markdown."""
        if self.args.json:
            now = datetime.datetime.now(datetime.timezone.utc)
            content = {'date': now.isoformat(timespec='seconds'), 'machine': self.machine,
                       'settings': asdict(self.setting), 'rows': self.rows}
            with atomic_write(self.args.json) as file:
                json.dump(content, file, indent=1)
        if self.args.markdown:
            with atomic_write(self.args.markdown) as file:
                file.write(self.text(format_markdown) + '\n')

    def text(self, write_table=format_text):
        """The machine and the tables, in one of the formats of :mod:`utils.tables`."""
        by_table = {}
        for row in self.rows:
            by_table.setdefault(row.get('table', row['part']), []).append(row)
        tables = [write_table(self.heading(name, rows), [title for title, _ in COLUMNS[name]],
                              [[format_cell(format_value, row) for _, format_value in COLUMNS[name]] for row in rows])
                  for name, rows in by_table.items()]
        return '\n\n'.join([self.describe_machine(), *tables])

    def describe_machine(self):
        machine = self.machine
        gpu = [f"{machine['gpu']}, {format_bytes(machine['gpu_memory'])}"] if 'gpu' in machine else []
        versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
        cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
        return '; '.join([
            f"{cpu}, {format_bytes(machine['memory'])}", *gpu,
            f"{machine['matrix_precision']} matrices at {machine['matrix_rate'] / 1e12:.3g} TFLOP/s", versions])

    def heading(self, table, rows):
        setting = self.setting
        model = f"IRRA, {setting.shape}, 384x128, {self.machine['precision']}"
        batch = f'batch {setting.batch_size}'
        costs = ', '.join(f"{row['what'] or row['group']} {row['share']:.0%}" for row in rows[:3]
                          ) if table == 'operators' else ''
        threads = 'a GPU' if setting.on_gpu else 'one thread'
        heading = {'step': f'training step: {model}, {batch}, 77 tokens',
                   'peers': f'training step next to other libraries, in turns: CLIP, {setting.shape}, 384x128, '
                            f'{batch}, 77 tokens, contrastive loss, Adam',
                   'memory': f'memory counted in half precision: IRRA, {setting.shape}, 384x128, '
                             f'batch {MEMORY_BATCH_SIZE}',
                   'parts': f'time of our training step by part: {model}, {batch}',
                   'operators': f'the largest costs of our training step: {costs}',
                   'processes': f'one batch on several processes: {model}, {batch} in all, {threads} each',
                   'data': f'training loader: {batch}, {4 * setting.ids} images of 384x128, in the cache of the system',
                   'encode': f'evaluation: {model}',
                   'rank': f'ranking on the CPU: {DIMENSIONS} dimensions, memory without the embeddings'}[table]
        return f'QUICK, not a realistic run: {heading}' if setting.quick else heading


def is_disturbed(row):
    """Whether other programs used the cores during the measurement."""
    return row.get('others', 0) > MAX_OTHER_LOAD


def format_progress(row):
    """The result of a row in short."""
    if 'share' in row:
        return f"{row['group']} {row['share']:.1%}"
    result = (f"{row['per_second']:.4g} per second" if 'per_second' in row
              else f"{row['median']:.3g} s" if 'median' in row else '')
    return ', '.join(filter(None, [result, format_note(row)]))


def format_note(row):
    if 'not_installed' in row:
        return f"not installed: pip install {row['not_installed']}"
    if 'does_not_fit' in row:
        return f"does not fit (needs {format_bytes(row['does_not_fit'])})"
    if is_disturbed(row):
        load = f"disturbed: other programs used {row['others']:.0%} of the cores"
        return '; '.join(filter(None, [load, row.get('error')]))
    return row.get('error', '')


# -- columns ---------------------------------------------------------------------------------------------------------
# A column is (title, function from a row to its text).

def format_cell(format_value, row):
    try:
        return format_value(row)
    except KeyError:    # not measured, or no reference to compare with
        return '-'


def number(name):
    return lambda row: f'{row[name]:.4g}'


def ratio(name):
    return lambda row: f'{row[name]:.2f}'


def percent(name):
    return lambda row: f'{row[name]:.1%}'


def size(name):
    return lambda row: format_bytes(row[name])


def kilobytes(name):
    return lambda row: f'{row[name] / 1000:.0f} kB'


def milliseconds(row):
    return f"{1000 * row['median'] / row.get('steps', 1):.4g}"


def format_query_count(row):
    return f"{row['queries']:,} x {row['gallery']:,}"


def metric(name):
    return lambda row: f"{row['metrics'][name]:.3f}"


VARIANT, GROUP, NOTE = ('variant', lambda row: row['way']), lambda row: row['group'], ('note', format_note)
SPEED = 'speedup', ratio('speed')
MEMORY = [('peak memory', size('peak_bytes')), ('memory ratio', ratio('memory'))]
TIME = [('ms', milliseconds), ('share', percent('share'))]
COLUMNS = {
    'step': [VARIANT, ('samples/s', number('per_second')), ('ms', milliseconds), SPEED, *MEMORY,
             ('MFU', percent('mfu')), NOTE],
    'peers': [('precision', GROUP), VARIANT, ('samples/s', number('per_second')), ('ms', milliseconds),
              ('time by ours', ratio('ratio')), ('peak memory', size('peak_bytes')), NOTE],
    'memory': [VARIANT, ('weights, gradients, Adam', size('state_bytes')), ('saved per batch', size('once_bytes')),
               ('saved per sample', size('sample_bytes')), ('samples at a time', number('held')),
               ('total', size('total_bytes')), ('memory ratio', ratio('memory')), NOTE],
    'parts': [('part', GROUP), *TIME, NOTE],
    'operators': [('operator', GROUP), ('kind', lambda row: row['what']), *TIME, ('calls', number('calls'))],
    'processes': [('processes', number('processes')), VARIANT, ('samples/s', number('per_second')),
                  ('ms', milliseconds), NOTE],
    'data': [('images', lambda row: row['way']), ('samples/s', number('per_second')), SPEED,
             ('stored per sample', kilobytes('stored_bytes')), ('passed per sample', kilobytes('passed_bytes')),
             ('workers', number('workers')), NOTE],
    'encode': [('input', GROUP), VARIANT, ('samples/s', number('per_second')), SPEED, NOTE],
    'rank': [('gallery', GROUP), ('queries x images', format_query_count), VARIANT,
             ('seconds', lambda row: f"{row['median']:.3g}"), SPEED, *MEMORY,
             *((name, metric(name)) for name in ('R1', 'mAP', 'mINP')), NOTE]}

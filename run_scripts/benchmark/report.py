"""What the benchmark found, as JSON and as tables."""
import datetime
import json
import statistics
from dataclasses import asdict

from datasets.image_cache import format_bytes
from run_scripts.benchmark.memory import HELD
from run_scripts.benchmark.ranking import DIMENSIONS
from run_scripts.benchmark.rows import RELEASED, say
from utils.iotools import atomic_write
from utils.tables import as_markdown, as_text

DISTURBED = 0.1     # share of the cores that others may take before a row says so, and is compared with nothing


class Report:
    """The rows measured so far, as JSON and as tables."""

    def __init__(self, args, machine, setting):
        self.args, self.machine, self.setting, self.rows = args, machine, setting, []

    @property
    def whole(self):
        return not any('error' in row for row in self.rows)

    def add(self, row):
        """Take a row and what follows from its repeats, and write the files at once."""
        if 'seconds' in row:
            row['median'] = statistics.median(row['seconds'])
        if 'samples' in row:
            row['per_second'] = row['samples'] / row['median']
        if 'steps' in row:
            row['mfu'] = row['model_flops'] * row['steps'] / row['median'] / self.machine['matrix_rate']
        self.rows.append(row)
        self.compare([other for other in self.rows if all(other.get(name) == row.get(name) for name in ('part', 'group'))])
        self.write()
        say(f'    {in_short(row)}')

    def compare(self, rows):
        """How many times as quick as the released way, and how many times as large, the ways of one group are."""
        for released in [row for row in rows if row.get('way') == RELEASED]:
            for row in rows:
                if 'median' in row and 'median' in released and not disturbed(row) and not disturbed(released):
                    row['speed'] = released['median'] / row['median']
                for name in {'peak_bytes', 'total_bytes'} & row.keys() & released.keys():
                    row['memory'] = row[name] / max(released[name], 1)

    def write(self):
        if self.args.json:
            content = {'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'machine': self.machine,
                       'settings': asdict(self.setting), 'rows': self.rows}
            with atomic_write(self.args.json) as file:
                json.dump(content, file, indent=1)
        if self.args.markdown:
            with atomic_write(self.args.markdown) as file:
                file.write(self.text(as_markdown) + '\n')

    def text(self, writer=as_text):
        found = {}
        for row in self.rows:
            found.setdefault(row.get('table', row['part']), []).append(row)
        tables = [writer(self.heading(name, rows), [title for title, _ in COLUMNS[name]],
                         [[cell(show, row) for _, show in COLUMNS[name]] for row in rows]) for name, rows in found.items()]
        return '\n\n'.join([self.about(), *tables])

    def about(self):
        machine = self.machine
        gpu = [f"{machine['gpu']}, {format_bytes(machine['gpu_memory'])}"] if 'gpu' in machine else []
        versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
        return '; '.join([f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {format_bytes(machine['memory'])}", *gpu,
                          f"{machine['matrix_precision']} matrices at {machine['matrix_rate'] / 1e12:.3g} TFLOP/s", versions])

    def heading(self, table, rows):
        setting = self.setting
        model = f"IRRA, {setting.shape}, 384x128, {self.machine['precision']}"
        three = ', '.join(f"{row['what'] or row['group']} {row['share']:.0%}" for row in rows[:3]) if table == 'operators' else ''
        threads = 'a GPU' if setting.on_gpu else 'one thread'
        heading = {'step': f'training step: {model}, batch {setting.batch_size}, 77 tokens',
                   'memory': f'memory counted in half precision: IRRA, {setting.shape}, 384x128, batch {HELD}',
                   'parts': f'where a step of ours spends its time: {model}, batch {setting.batch_size}',
                   'operators': f'the largest costs of a step of ours: {three}',
                   'processes': f'one batch on several processes: {model}, batch {setting.batch_size} in all, {threads} each',
                   'data': f'training loader: batch {setting.batch_size}, {4 * setting.ids} images of 384x128, read before',
                   'encode': f'evaluation: {model}',
                   'rank': f'ranking on the CPU: {DIMENSIONS} dimensions, memory beyond the embeddings'}[table]
        return f'QUICK, which stands for no real run: {heading}' if setting.quick else heading


def disturbed(row):
    return row.get('others', 0) > DISTURBED


def in_short(row):
    """A row for the progress on stderr."""
    if 'share' in row:
        return f"{row['group']} {row['share']:.1%}"
    figure = f"{row['per_second']:.4g} a second" if 'per_second' in row else f"{row['median']:.3g} s" if 'median' in row else ''
    return ', '.join(filter(None, [figure, note(row)]))


def note(row):
    if 'does_not_fit' in row:
        return f"does not fit (needs {format_bytes(row['does_not_fit'])})"
    if disturbed(row):
        return f"disturbed: others took {row['others']:.0%} of the cores{'; ' * ('error' in row)}{row.get('error', '')}"
    return row.get('error', '')


def cell(show, row):
    try:
        return show(row)
    except KeyError:    # not measured, or nothing to compare with
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


WAY, NOTE, SPEED = ('way', lambda row: row['way']), ('note', note), ('times as quick', ratio('speed'))
MEMORY = [('peak memory', size('peak_bytes')), ('times as large', ratio('memory'))]
SHARE = [('ms', milliseconds), ('share', percent('share'))]
COLUMNS = {   # of each table: (title, from a row to its text)
    'step': [WAY, ('samples/s', number('per_second')), ('ms', milliseconds), SPEED, *MEMORY, ('MFU', percent('mfu')), NOTE],
    'memory': [WAY, ('weights, gradients, Adam', size('state_bytes')), ('kept once', size('once_bytes')),
               ('kept a sample', size('sample_bytes')), ('samples held', number('held')), ('in all', size('total_bytes')),
               ('times as large', ratio('memory')), NOTE],
    'parts': [('part', lambda row: row['group']), *SHARE, NOTE],
    'operators': [('operator', lambda row: row['group']), ('what', lambda row: row['what']), *SHARE, ('calls', number('calls'))],
    'processes': [('processes', number('processes')), WAY, ('samples/s', number('per_second')), ('ms', milliseconds), NOTE],
    'data': [('images', lambda row: row['way']), ('samples/s', number('per_second')), SPEED, ('stored a sample', kilobytes('stored_bytes')),
             ('handed over', kilobytes('passed_bytes')), ('workers', number('workers')), NOTE],
    'encode': [('what', lambda row: row['group']), WAY, ('a second', number('per_second')), SPEED, NOTE],
    'rank': [('gallery', lambda row: row['group']), ('queries x images', lambda row: f"{row['queries']:,} x {row['gallery']:,}"), WAY,
             ('seconds', lambda row: f"{row['median']:.3g}"), SPEED, *MEMORY,
             *((name, lambda row, name=name: f"{row['metrics'][name]:.3f}") for name in ('R1', 'mAP', 'mINP')), NOTE]}

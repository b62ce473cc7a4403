"""How quick and how large training, reading, encoding and ranking are, beside the released way (run_scripts/released_way.py).

    python run_scripts/benchmark.py --json benchmark.json          # everything, at full size
    python run_scripts/benchmark.py --quick                        # a small model and small sizes: under 2 minutes on 2 cores
    python run_scripts/benchmark.py --parts step profile --batch_size 32

The training step is IRRA's (configs/irra/cuhk-pedes.yaml) with random weights on synthetic batches. Each row is measured in a process
of its own, after a warm-up, and shows the median of its repeats; the JSON has all of them. A row that fails says why, and the others go
on; one that other programs disturbed says so. Exit status 0 if every row was measured, or is too large for the machine, and all ways
rank alike; else 1.
"""
import datetime
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import traceback
from dataclasses import asdict, replace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault('KINETO_LOG_LEVEL', '99')   # PyTorch's profiler would report on itself

from datasets.image_cache import in_words  # noqa: E402
from run_scripts import measures  # noqa: E402
from run_scripts.measures import DIMENSIONS, Setting, Way  # noqa: E402
from run_scripts.released_way import BYTES_A_PAIR  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.iotools import atomic_write  # noqa: E402
from utils.options import Parser, count  # noqa: E402
from utils.tables import as_markdown, as_text  # noqa: E402

RANKINGS = (('CUHK-PEDES', 6156, 3074, 1000), ('ICFG-PEDES', 19848, 19848, 1000), ('RSTPReid', 2000, 1000, 200),
            ('100k images', 1000, 100_000, 10_000), ('1M images', 1000, 1_000_000, 100_000))
ON_GPU = Setting('ViT-B/16', batch_size=64, batches=20, steps=20, repeats=5, images=4096, captions=6156, ids=800, rankings=RANKINGS)
ON_CPU = Setting('ViT-B/16', batch_size=8, batches=4, steps=1, repeats=5, images=32, captions=128, ids=160, rankings=RANKINGS)
QUICK = Setting('tiny', batch_size=8, batches=4, steps=1, repeats=5, images=64, captions=256, ids=40, patience=3, quick=True,
                rankings=(('RSTPReid', 2000, 1000, 200), ('100k images', 100, 100_000, 10_000)))
RELEASED = 'released way'
DISTURBED = 0.1     # share of the cores that others may take before a row says so, and is compared with nothing


def main(argv=None):
    args = build_benchmark_parser().parse(sys.argv[1:] if argv is None else argv)
    machine = in_child(measures.describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    setting = choose_setting(args, machine)
    report = Report(args, machine, setting)
    report.write()      # a file that cannot be written shows before hours of measuring
    for part in args.parts:
        for row in PARTS[part](setting):
            report.add({'part': part, **row})
    print(report.text())
    return 0 if report.whole else 1


def build_benchmark_parser():
    parser = Parser(prog='benchmark.py', description=__doc__)
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS), help='what is measured')
    parser.add_argument('--quick', action='store_true', help='a small model, small batches, small galleries')
    parser.add_argument('--batch_size', type=count, help='of a training step (default: 64 on a GPU, 8 on a CPU)')
    parser.add_argument('--repeats', type=count, help='of what is measured (default: 5, with --quick 3)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:<n>')
    parser.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'], help='precision of our way')
    parser.add_argument('--json', metavar='FILE', help='write all that was measured')
    parser.add_argument('--markdown', metavar='FILE', help='write the tables')
    return parser


def choose_setting(args, machine):
    setting = QUICK if args.quick else ON_CPU if machine['device'] == 'cpu' else ON_GPU
    given = {name: value for name in ('batch_size', 'repeats') if (value := getattr(args, name))}
    return replace(setting, device=machine['device'], amp=args.amp, **given)


def say(line):
    print(line, file=sys.stderr, flush=True)


# -- a process for each row ----------------------------------------------------------------------------------------------

def in_child(measure, *arguments):
    """The dict that ``measure(*arguments)`` returns in a new process, so that no row finds another one's memory;
    ``{'error': why}`` where it fails."""
    context = multiprocessing.get_context('forkserver')   # forks from a process that has imported PyTorch and computed nothing
    context.set_forkserver_preload(['torch', 'torchvision', 'torch.utils.tensorboard', 'run_scripts.measures'])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sending, measure, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        process.join()
        return {'error': how_ended(process.exitcode)}
    except BaseException:       # the benchmark is being stopped
        process.terminate()
        raise
    finally:
        process.join()


def answer(sending, measure, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # which is for the parent to heed
    multiprocessing.set_start_method(None, force=True)     # loaders start their workers as everywhere else
    try:
        result = measure(*arguments)
    except UserError as error:
        result = {'error': str(error)}
    except Exception as error:
        if 'memory' not in str(error).lower():
            traceback.print_exc()
        result = {'error': f'{type(error).__name__}: {error}'.split('\n')[0]}
    sending.send(result)


def how_ended(status):
    if status == -signal.SIGKILL:
        return 'ended by SIGKILL, as systems do when memory runs out'
    return f'ended by {signal.Signals(-status).name}' if status < 0 else f'left with status {status}'


# -- the parts -----------------------------------------------------------------------------------------------------------

def ways_to_train(setting):
    pieces = max(1, setting.batch_size // 4)
    ways = [
        Way('ours'),
        Way('ours, images from the cache', cached=True),
        Way('ours, --compile', ('--compile',)),
        Way('ours, --grad_checkpoint', ('--grad_checkpoint',)),
        Way(f'ours, --micro_batch {pieces}', ('--micro_batch', str(pieces))),
        Way('ours, scores at all positions', switch=measures.score_all_positions),
        Way('ours, two text passes', switch=measures.pass_twice),
        Way('ours, attention by explicit maps', switch=measures.attend_by_maps),
        Way('ours, a group a parameter, not fused', switch=measures.group_each_parameter),
        Way('ours, activations kept', switch=measures.keep_activations),
        Way('ours, activations kept, QuickGELU as a product', switch=measures.multiply_sigmoid),
        Way('ours, chosen words found on the GPU', switch=measures.prepare_nothing, gpu_only=True),
        Way('ours, read and synchronised each step', switch=measures.read_each_step, gpu_only=True),
        Way('ours, --amp off', ('--amp', 'off'), gpu_only=True),
        Way(RELEASED, released=True)]
    return [way for way in ways if (setting.on_gpu or not way.gpu_only) and not (setting.quick and '--compile' in way.flags)]


def step_rows(setting):
    for way in ways_to_train(setting):
        say(f'step: {way.name}')
        yield {'way': way.name, **in_child(measures.measure_step, way, setting)}


def memory_rows(setting):
    ways = [Way('ours'), Way('ours, activations kept', switch=measures.keep_activations), Way('ours, --grad_checkpoint', ('--grad_checkpoint',)),
            Way('ours, --micro_batch 16', ('--micro_batch', '16')), Way(RELEASED, released=True)]
    for way in ways:
        say(f'memory: {way.name}')
        yield {'way': way.name, **in_child(measures.count_memory, way, setting)}


def profile_rows(setting):
    say('profile: ours')
    result = in_child(measures.measure_profile, setting)
    if 'error' in result:
        yield {'table': 'parts', 'group': 'ours', **result}
    for table in ('parts', 'operators'):
        yield from ({'table': table, **row} for row in result.get(table, ()))


def data_rows(setting):
    kinds = {'JPEG files': 'jpeg', 'image cache': 'cache', 'image cache, finished on the device': 'finished', RELEASED: 'released'}
    with tempfile.TemporaryDirectory() as root:
        say(f'data: drawing {4 * (setting.ids + 1)} images')
        made = in_child(measures.make_dataset, root, setting.ids)
        for way, kind in kinds.items():
            say(f'data: {way}')
            yield {'way': way, **(made if 'error' in made else in_child(measures.measure_reading, kind, root, setting))}


def encode_rows(setting):
    full = {'ours, --amp off': '--amp off'} if setting.on_gpu else {}
    kinds = {'images': {'ours': 'ours', 'ours, images from the cache': 'cache', **full, RELEASED: 'released'},
             'captions': {'ours': 'ours', "ours, in the annotation's order": 'order', 'ours, all 77 positions': 'whole', **full,
                          RELEASED: 'released'}}
    for side, ways in kinds.items():
        for way, kind in ways.items():
            say(f'encode: {side}, {way}')
            yield {'group': side, 'way': way, **in_child(measures.measure_encoding, side, kind, setting)}


RANKERS = {   # way: (name, bytes that it takes for each query and image)
    'ours': ('ours', 0), 'ours, all similarities at once': ('matrix', 4), RELEASED: ('released', BYTES_A_PAIR)}


def rank_rows(setting):
    for name, *sizes in setting.rankings:
        ours = {}
        for way, (kind, bytes_a_pair) in RANKERS.items():
            say(f'rank: {name}, {way}')
            found = rank_if_it_fits(kind, bytes_a_pair, sizes, setting)
            ours = ours or found
            yield {'group': name, 'way': way, 'queries': sizes[0], 'gallery': sizes[1], **found, **disagreement(ours, found, sizes[0])}


def rank_if_it_fits(kind, bytes_a_pair, sizes, setting):
    queries, gallery, _ = sizes
    needed = bytes_a_pair * queries * gallery + 4 * DIMENSIONS * (queries + gallery)   # and the embeddings
    return {'does_not_fit': needed} if needed > measures.free_memory() else in_child(measures.measure_ranking, kind, sizes, setting)


def disagreement(ours, other, queries):
    """``{'error': ...}`` where both have figures and these differ by more than the rounding of similarities explains."""
    if 'figures' not in ours or 'figures' not in other:
        return {}
    allowed = {'R1': 200 / queries, 'mAP': 0.005, 'mINP': 0.005}    # which may change the first place of two queries
    if all(abs(ours['figures'][name] - other['figures'][name]) <= most for name, most in allowed.items()):
        return {}
    return {'error': f"all ways must rank alike, and this found {other['figures']}, ours {ours['figures']}"}


PARTS = {'step': step_rows, 'memory': memory_rows, 'profile': profile_rows, 'data': data_rows, 'encode': encode_rows, 'rank': rank_rows}


# -- the report ----------------------------------------------------------------------------------------------------------

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
        gpu = [f"{machine['gpu']}, {in_words(machine['gpu_memory'])}"] if 'gpu' in machine else []
        versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
        return '; '.join([f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {in_words(machine['memory'])}", *gpu,
                          f"{machine['matrix_precision']} matrices at {machine['matrix_rate'] / 1e12:.3g} TFLOP/s", versions])

    def heading(self, table, rows):
        setting = self.setting
        model = f"IRRA, {setting.shape}, 384x128, {self.machine['precision']}"
        three = ', '.join(f"{row['what'] or row['group']} {row['share']:.0%}" for row in rows[:3]) if table == 'operators' else ''
        heading = {'step': f'training step: {model}, batch {setting.batch_size}, 77 tokens',
                   'memory': f'memory counted in half precision: IRRA, {setting.shape}, 384x128, batch {measures.HELD}',
                   'parts': f'where a step of ours spends its time: {model}, batch {setting.batch_size}',
                   'operators': f'the largest costs of a step of ours: {three}',
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
        return f"does not fit (needs {in_words(row['does_not_fit'])})"
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
    return lambda row: in_words(row[name])


def kilobytes(name):
    return lambda row: f'{row[name] / 1000:.0f} kB'


def milliseconds(row):
    return f"{1000 * row['median'] / row.get('steps', 1):.4g}"


WAY, NOTE, SPEED = ('way', lambda row: row['way']), ('note', note), ('times as quick', ratio('speed'))
MEMORY = [('peak memory', size('peak_bytes')), ('times as large', ratio('memory'))]
SHARE = [('ms', milliseconds), ('share', percent('share'))]
COLUMNS = {   # of each table: (title, from a row to its text)
    'step': [WAY, ('samples/s', number('per_second')), ('ms', milliseconds), SPEED, *MEMORY, ('MFU', percent('mfu')), NOTE],
    'memory': [WAY, ('weights, gradients, Adam', size('state_bytes')), ('kept once', size('once_bytes')), ('kept a sample', size('sample_bytes')),
               ('samples held', number('held')), ('in all', size('total_bytes')), ('times as large', ratio('memory')), NOTE],
    'parts': [('part', lambda row: row['group']), *SHARE, NOTE],
    'operators': [('operator', lambda row: row['group']), ('what', lambda row: row['what']), *SHARE, ('calls', number('calls'))],
    'data': [('images', lambda row: row['way']), ('samples/s', number('per_second')), SPEED, ('stored a sample', kilobytes('stored_bytes')),
             ('handed over', kilobytes('passed_bytes')), ('workers', number('workers')), NOTE],
    'encode': [('what', lambda row: row['group']), WAY, ('a second', number('per_second')), SPEED, NOTE],
    'rank': [('gallery', lambda row: row['group']), ('queries x images', lambda row: f"{row['queries']:,} x {row['gallery']:,}"), WAY,
             ('seconds', lambda row: f"{row['median']:.3g}"), SPEED, *MEMORY,
             *((name, lambda row, name=name: f"{row['figures'][name]:.3f}") for name in ('R1', 'mAP', 'mINP')), NOTE]}


if __name__ == '__main__':
    run(main)

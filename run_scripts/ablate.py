"""Ablations: loss strings x seeds x values of any flags over a recipe, and their table with mean and standard deviation.

    python run_scripts/ablate.py --config_file configs/irra/rstpreid.yaml --loss_names sdm sdm+id sdm+id+mlm --seeds 1 2 3
    python run_scripts/ablate.py --config_file ... --vary lr 1e-5 3e-5 --vary temperature 0.02 0.05 -- --num_epoch 20

What follows -- goes to every train.py. Each run is a process of its own in a folder whose name follows from its settings, so the
same command goes on with an interrupted grid: finished runs are skipped, others are resumed or started. Started again beside
itself (on another GPU), it takes the runs that nobody is at. The table is printed and written as table.txt, .md, .tex and .csv;
``--table_only --epoch last`` makes another of the same runs, table_last.txt and so on.
Exit status 0 if every run is finished, 1 if not, 130 if stopped.
"""
import contextlib
import glob
import hashlib
import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from argparse import BooleanOptionalAction, Namespace
from dataclasses import dataclass
from datetime import timedelta
from textwrap import shorten

from run_scripts import ROOT, start
from datasets.build import build_dataset, dataset_class, build_dataset_from_args
from datasets.joined import first_dataset_name
from datasets.registry import published_split_note
from datasets.synthpedes import is_synthetic
from processor.history import MEASURES, best_last_mean, measure_of, read_evaluations
from processor.report import baselines, read_results
from utils.checkpoint import sha256_of
from utils.csv_files import write_csv
from utils.errors import UserError, unknown
from utils.file_lock import try_lock
from utils.iotools import atomic_write, read_json
from utils.options import Effect, Parser, as_dict, build_parser, get_args, plain, whole
from utils.tables import METRICS, as_latex, as_markdown, as_text

# What a table's figures are of, with the split.
OF_EPOCHS = {'best': 'each run at the epoch with its best Rank-1 on the {} split, whose figures these are',
             'last': 'each run after its last epoch, on the {} split',
             'mean': "the mean of each run's evaluations in its last five epochs, on the {} split"}
ENDING = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
OWN = {'loss_names': '--loss_names', 'seed': '--seeds', 'config_file': '--config_file', 'output_dir': '--output_dir'}


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    own, after = split_at_dashes(argv)
    args = build_ablation_parser().parse(own)
    names, cells = build_grid(args, after)
    grid = Table(args.output_dir, names, cells, args.epoch)
    if args.table_only:
        print(grid.write())
        return 0 if grid.complete else 1
    for of in data_of(cells):  # missing data stops the grid before its first run
        build_dataset_from_args(of, verbose=False, splits=('train', of.val_dataset), skip_broken=of.skip_broken)
    with Stop() as stop:
        train_all(cells, grid, stop, args.keep)
    print(grid.write())
    if stop.requested and not grid.complete:
        say(f"stopped by {stop.requested.name}; go on with: python {shlex.join([os.path.relpath(__file__), *argv])}")
        return 130
    return 0 if grid.complete else 1


def data_of(cells):
    """The options of one cell for each set of data that the grid works on."""
    return list({(c.args.dataset_name, c.args.root_dir, c.args.val_dataset): c.args for c in cells}.values())


def say(line):
    print(line, file=sys.stderr, flush=True)


# -- the grid ------------------------------------------------------------------------------------------------------------

def build_ablation_parser():
    parser = Parser(prog='ablate.py', description=__doc__)
    parser.add_argument('--config_file', default='', help='the recipe')
    parser.add_argument('--loss_names', nargs='+', help="loss strings (default: the recipe's)")
    parser.add_argument('--seeds', nargs='+', type=whole, default=[1], help='each setting is trained with each of them')
    parser.add_argument('--vary', nargs='+', action='append', default=[], metavar=('FLAG', 'VALUE'),
                        help="a flag of train.py without its dashes and its values ('384 128' where it takes several, true or "
                             'false where it takes none); may be given several times')
    parser.add_argument('--output_dir', help='the folder of the grid (default: logs/ablation/<recipe>)')
    parser.add_argument('--keep', choices=['none', 'best', 'all'], default='best', help='checkpoints that a finished run leaves')
    parser.add_argument('--epoch', choices=list(OF_EPOCHS), default='best',
                        help="what the table is of: each run's best epoch, its last one, or the mean of its last five")
    parser.add_argument('--table_only', action='store_true', help='train nothing: the table of what is finished')
    return parser


def split_at_dashes(argv):
    """The words before and after the first ``--``."""
    at = argv.index('--') if '--' in argv else len(argv)
    return argv[:at], argv[at + 1:]


@dataclass
class Cell:
    """One run of the grid."""
    setting: tuple   # texts: the loss string, then the varied flags' values
    label: str       # the same in words, with the seed
    argv: list       # for train.py, without --output_dir
    args: object     # what train.py makes of it
    folder: str

    @property
    def seed(self):
        return self.args.seed

    @property
    def result(self):
        """``{'metrics', 'epoch', ...}`` of a finished run, ``{'error'}`` of a broken one, ``{}`` of any other."""
        try:
            content = read_json(self.path('result.json'))
        except UserError:
            return {}
        whole_one = isinstance(content, dict) and ('error' in content or set(METRICS) <= set(content.get('metrics') or ()))
        return content if whole_one else {}

    @property
    def finished(self):
        return 'metrics' in self.result

    def at(self, epoch):
        """(metrics, epochs) of a finished run at its 'best' epoch, its 'last' one, or the 'mean' of its last five; (None, []) of any other
        run, and of one whose evaluations are gone."""
        if not self.finished or epoch == 'best':
            return self.result.get('metrics'), [self.result['epoch']] if self.finished else []
        folder = os.path.dirname(max(glob.glob(os.path.join(glob.escape(self.folder), '*', '*', 'metrics.jsonl')), default=''))
        found = best_last_mean(read_evaluations(folder)).get(epoch, {'epochs': []})
        return (found, found['epochs']) if found['epochs'] else (None, [])

    @property
    def last(self):
        """The last.pth to go on with; None if there is none."""
        return max(glob.glob(os.path.join(glob.escape(self.folder), '*', '*', 'last.pth')), default=None)

    def path(self, name):
        return os.path.join(self.folder, name)


def build_grid(args, after):
    """(the names of what varies, the cells with the first seed's first). Whatever train.py would refuse is refused here."""
    parser = build_parser()
    varied = varied_flags(args.vary, parser)
    check_common(after, varied, parser)
    common = ['--config_file', args.config_file] * bool(args.config_file) + after
    losses = args.loss_names or [get_args(common).loss_names]
    args.output_dir = args.output_dir or os.path.join('logs', 'ablation', recipe_name(args.config_file))
    cells = []
    for seed, *setting in itertools.product(args.seeds, losses, *varied.values()):
        words = [word for name, value in zip(varied, setting[1:]) for word in as_words(parser.actions()[name], value)]
        label = ', '.join([setting[0], *(f'{name} {value}' for name, value in zip(varied, setting[1:])), f'seed {seed}'])
        cell_argv = [*common, '--loss_names', setting[0], '--seed', str(seed), *words]
        try:
            cell_args = get_args(cell_argv)
        except UserError as error:
            raise UserError(f'{label}: {error}') from None
        folder = os.path.join(args.output_dir, place(cell_args, parser))
        cells.append(Cell(tuple(setting), label, cell_argv, cell_args, folder))
    by_folder = {}
    for cell in cells:
        other = by_folder.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(f"the grid has the same run twice, '{other.label}' and '{cell.label}'; leave one out")
    return ('losses', *varied), cells


def recipe_name(config_file):
    """configs/irra/rstpreid.yaml -> irra_rstpreid"""
    folder, name = os.path.split(os.path.splitext(os.path.abspath(config_file))[0])
    return f'{os.path.basename(folder)}_{name}' if config_file else 'defaults'


def varied_flags(groups, parser):
    """{option: its values} of the --vary."""
    varied = {}
    for name, *values in groups:
        name = name.lstrip('-')
        if name in OWN:
            raise UserError(f'--vary {name} is not for the grid: ablate.py has {OWN[name]} for it')
        if name not in parser.actions():
            raise unknown('flag', name, parser.actions())
        if name not in parser.having(Effect.RESULT):
            raise UserError(f'--vary {name}: the flag does not change what is trained')
        if name in varied:
            raise UserError(f'--vary {name} is given twice; name all its values in one')
        if not values:
            raise UserError(f'--vary {name} has no values')
        varied[name] = values
    return varied


def check_common(after, varied, parser):
    """What follows -- must be left to the user, and not be varied besides."""
    given = parser.given(after)
    for name in sorted(given):
        if name in OWN:
            raise UserError(f'--{name} after -- would be the same for all: give it as {OWN[name]} before --')
        if name in parser.having(Effect.CALL):
            raise UserError(f"{parser.actions()[name].option_strings[0]} after -- is not for a grid's runs; leave it out")
        if name in varied:
            raise UserError(f'--{name} is both varied and given after --; leave one out')


def as_words(action, value):
    """A varied flag's words on train.py's command line."""
    flag = action.option_strings[0]
    if isinstance(action, BooleanOptionalAction):
        if value.lower() not in ('true', 'false'):
            raise UserError(f"--vary {action.dest}: '{value}' must be true or false")
        return [flag] if value.lower() == 'true' else [action.option_strings[1]]
    return [flag, *(value.split() if action.nargs else [value])]


def place(args, parser):
    """A run's folder: its losses and seed, and a checksum of all that it is trained with. Only what differs from the defaults is
    in it, so that an option that later versions add moves nothing."""
    settings, defaults = parser.having(Effect.RESULT), parser.defaults_in_code
    options = {name: value for name, value in as_dict(args).items() if name in settings and value != plain(defaults[name])}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return f"{args.loss_names.replace(' ', '')}_seed{args.seed}_{digest}"


# -- the runs ------------------------------------------------------------------------------------------------------------

class Stop:
    """While active, signals that end the grid are passed on to the running train.py, which saves and leaves."""

    def __init__(self):
        self.requested, self.process, self._previous = None, None, {}   # requested: the signal

    def __enter__(self):
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.requested = signal.Signals(number)
        self._pass_on()

    def _pass_on(self):
        # SIGTERM, which also ends a train.py that has not begun to train; only to it, as the workers end with it.
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait_for(self, process):
        self.process = process
        if self.requested:
            self._pass_on()
        status = process.wait()
        self.process = None
        return status


def train_all(cells, grid, stop, keep):
    """Train what isn't finished. The table is written anew after each run."""
    todo = [cell for cell in cells if not cell.finished]
    if len(todo) < len(cells):
        say(f'{len(cells) - len(todo)} of {len(cells)} runs are finished already')
    durations = []
    for number, cell in enumerate(todo, 1):
        if stop.requested:
            return
        what = f'[{len(cells) - len(todo) + number}/{len(cells)}] {cell.label}'
        with lock(cell) as held:
            if not held:
                say(f'{what}: another process is at it')
                continue
            if cell.finished:  # by another process meanwhile
                continue
            say(f"{what}: {'resumed' if cell.last else 'started'}")
            began = time.monotonic()
            result = train_one(cell, held, stop, keep)
            seconds = time.monotonic() - began
        if not result:
            return
        if 'metrics' in result:
            durations.append(seconds)
        to_come = statistics.mean(durations) * (len(todo) - number) if durations else 0
        say(f"{what}: {in_words(result)}, after {as_time(seconds)}{f', about {as_time(to_come)} left' if to_come else ''}")
        grid.write()


def in_words(result):
    if 'error' in result:
        return f"broken: {result['error']}"
    metric = measure_of(result['metrics'])
    return f"finished, {MEASURES[metric]} {result['metrics'][metric]:.2f} at epoch {result['epoch']}"


def as_time(seconds):
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def lock(cell):
    """The open lock file of a cell's folder, or None where another process has it. train.py inherits it, so that one whose
    ablate.py was killed is left alone."""
    try:
        os.makedirs(cell.folder, exist_ok=True)
        file = open(cell.path('.lock'), 'wb')
    except OSError as error:
        raise UserError(f'cannot write into {cell.folder}: {error.strerror}; choose another --output_dir') from None
    with file:
        yield file if try_lock(file, is_inherited=True) else None


def train_one(cell, held, stop, keep):
    """Run a cell's train.py to its end and keep the result as result.json. Returns it; None if the grid was stopped."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(cell.path('result.json'))  # why it broke the last time
    resumption = ['--resume', '--resume_ckpt_file', cell.last] if cell.last else []
    command = [sys.executable, os.path.join(ROOT, 'train.py'), *cell.argv, '--output_dir', cell.folder, *resumption]
    with open(cell.path('output.txt'), 'wb') as output:
        # In a session of its own: a Ctrl-C of the terminal reaches it through Stop alone, not twice.
        inherited = {'pass_fds': [held.fileno()]} if os.name == 'posix' else {}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True, **inherited)
        status = stop.wait_for(process)
    if status and stop.requested:
        return None
    if status:
        result = {'error': why_broken(status, cell.path('output.txt'))}
    else:
        result = best_evaluation(run_folder(cell))
    with atomic_write(cell.path('result.json')) as file:
        json.dump(result, file, indent=1)
    if 'metrics' in result:
        clear(run_folder(cell), keep)
    return result


def run_folder(cell):
    """Where train.py wrote."""
    return os.path.dirname(cell.last)


def best_evaluation(folder):
    """The evaluation of a run's best epoch: the one whose weights best.pth holds."""
    found = best_last_mean(read_evaluations(folder))
    if not found:
        return {'error': f"{os.path.join(folder, 'metrics.jsonl')} has no evaluations"}
    epoch, = found['best'].pop('epochs')
    return {'metrics': found['best'], 'epoch': epoch, 'split': found['split']}


def why_broken(status, output):
    """A sentence about a train.py that failed, from its output's last lines."""
    if status < 0:
        return f'train.py was ended by {signal.Signals(-status).name}'
    if status in (130, 143):
        return 'train.py was stopped from outside; start the grid again to go on with it'
    with open(output, encoding='utf-8', errors='replace') as file:
        lines = [line.strip() for line in file if line.strip()]
    marker = 'train.py: error: '
    told = [line.removeprefix(marker) for line in lines if line.startswith(marker)]
    return (told or lines or [f'train.py left with status {status}'])[-1]


def clear(folder, keep):
    """Remove the checkpoints of a finished run that are not to be kept."""
    for name in {'all': (), 'best': ('last.pth',), 'none': ('last.pth', 'best.pth')}[keep]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))


# -- the table -----------------------------------------------------------------------------------------------------------

class Table:
    """The grid's table: a row for each setting with mean and standard deviation over its seeds, in the grid's order."""

    def __init__(self, folder, names, cells, epoch='best'):
        self.folder, self.names, self.cells, self.epoch = folder, names, cells, epoch
        self.stem = 'table' if epoch == 'best' else f'table_{epoch}'
        self.settings = {}
        for cell in cells:
            self.settings.setdefault(cell.setting, []).append(cell)
        self.baselines = [row for args in data_of(cells) for row in baseline_rows(args)]
        self.split_notes = list(filter(None, dict.fromkeys(map(evaluated_split_note, data_of(cells)))))

    @property
    def complete(self):
        return all(cell.finished for cell in self.cells)

    @property
    def heading(self):
        data = data_of(self.cells)
        datasets, splits = (' and '.join(sorted({getattr(args, name) for args in data})) for name in ('dataset_name', 'val_dataset'))
        described = f'{datasets}: mean ± standard deviation over n seeds, in percent; {OF_EPOCHS[self.epoch].format(splits)}'
        return '; '.join([described, *self.split_notes])

    def write(self):
        """Write the four files; returns the text."""
        header = [*self.names, 'n', *METRICS, 'note']
        elsewhere = [line for setting in self.settings for line in self.lines_elsewhere(setting)]
        lines = [*map(self.line, self.settings), *elsewhere, *map(self.baseline_line, self.baselines)]
        writers = {f'{self.stem}.txt': as_text, f'{self.stem}.md': as_markdown, f'{self.stem}.tex': as_latex}
        contents = {name: writer(self.heading, header, lines) for name, writer in writers.items()}
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise UserError(f'cannot make the output folder {self.folder}: {error.strerror}; choose another --output_dir') from None
        for name, content in contents.items():
            with atomic_write(os.path.join(self.folder, name)) as file:
                file.write(f'{content}\n')
        with atomic_write(os.path.join(self.folder, f'{self.stem}.csv')) as file:
            write_csv(file, self.csv_lines())
        return contents[f'{self.stem}.txt']

    def line(self, setting):
        metrics = self.metrics(setting)
        return [*setting, str(len(metrics)), *means_and_spreads(metrics), self.note(setting)]

    def lines_elsewhere(self, setting):
        """A line for each other dataset that test.py --dataset_name was run on with the setting's best.pth."""
        found = {}
        for cell in self.settings[setting] if self.epoch == 'best' else ():
            for dataset, metrics in results_elsewhere(cell).items():
                found.setdefault(dataset, []).append(metrics)
        for dataset, metrics in sorted(found.items()):
            yield [*setting, str(len(metrics)), *means_and_spreads(metrics), f'tested on {dataset}, test split']

    def baseline_line(self, row):
        name, metrics, note = row
        figures = [f'{metrics[metric]:.2f}' if metrics else '-' for metric in METRICS]
        return [name, *[''] * len(self.names), *figures, note]

    def metrics(self, setting):
        """The metrics of a setting's finished runs."""
        return [metrics for metrics, _ in (cell.at(self.epoch) for cell in self.settings[setting]) if metrics]

    def note(self, setting):
        """Why there is a -: 'seeds 1, 2: there is no file x', or a single seed."""
        seeds = {}
        for cell in self.settings[setting]:
            seeds.setdefault(shorten(why_missing(cell), 200, placeholder=' ...'), []).append(str(cell.seed))
        reasons = [f"seed{'s' * (len(which) > 1)} {', '.join(which)}: {why}" for why, which in seeds.items() if why]
        return '; '.join(reasons) or 'one seed has no deviation' * (len(self.metrics(setting)) == 1)

    def csv_lines(self):
        """Rows of kind mean (with standard deviations), run (with seed, best epoch and folder) and baseline, in full precision."""
        spreads = [f'{metric}_std' for metric in METRICS]
        yield ['kind', *self.names, 'seed', 'n', *METRICS, *spreads, 'epoch', 'folder', 'note']
        for setting in self.settings:
            columns = [[one[metric] for one in self.metrics(setting)] for metric in METRICS]
            means = [statistics.mean(column) if column else '' for column in columns]
            deviations = [statistics.stdev(column) if len(column) > 1 else '' for column in columns]
            yield ['mean', *setting, '', len(columns[0]), *means, *deviations, '', '', self.note(setting)]
        for cell in self.cells:
            metrics, epochs = cell.at(self.epoch)
            figures = [(metrics or {}).get(metric, '') for metric in METRICS]
            yield ['run', *cell.setting, cell.seed, '', *figures, *[''] * len(METRICS), ' '.join(map(str, epochs)), cell.folder,
                   why_missing(cell)]
        for name, metrics, note in self.baselines:
            yield ['baseline', name, *[''] * (len(self.names) - 1), '', '', *(metrics.get(metric, '') for metric in METRICS),
                   *[''] * len(METRICS), '', '', note]


def results_elsewhere(cell):
    """{dataset: metrics} that test.py wrote beside the best.pth of a finished run, for other datasets than it was trained on."""
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(cell.folder), '*', '*', 'metrics_*.json'))) if cell.finished else ():
        checkpoint = os.path.join(os.path.dirname(path), 'best.pth')
        kept = read_results(path, sha256_of(checkpoint)) if os.path.exists(checkpoint) else None
        if kept and kept.dataset != cell.args.dataset_name:
            found[kept.dataset] = next(iter(kept.tables.values()))['t2i']
    return found


def evaluated_split_note(args):
    """A sentence if a run's evaluations are not on a published split; '' if they are, or if the data are gone."""
    name = args.eval_dataset or first_dataset_name(args.dataset_name)
    try:
        if not dataset_class(name).published:
            return ''
        return published_split_note(name, build_dataset(name, args.root_dir, verbose=False, splits=()).counts(args.val_dataset),
                                    args.val_dataset)
    except UserError:
        return ''


def means_and_spreads(metrics):
    return [mean_and_spread([one[metric] for one in metrics]) for metric in METRICS]


def mean_and_spread(values):
    """'61.20 ± 0.35' with the sample standard deviation, which one value has none of."""
    if not values:
        return '-'
    return f'{statistics.mean(values):.2f} ± ' + (f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-')


def why_missing(cell):
    """Why a cell has no figures; '' if it has."""
    if cell.finished:
        return ''
    return cell.result.get('error') or ('not finished' if cell.last else 'not trained yet')


def baseline_rows(args):
    """(name, metrics, note) of what needs no learning, on synthetic pedestrians; none on other data."""
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return []
    note = f'without learning, {args.dataset_name} {args.val_dataset}'
    try:
        dataset = build_dataset_from_args(args, verbose=False, splits=(args.val_dataset,))
        split = Namespace(**getattr(dataset, args.val_dataset))
        return [(f'colour words, {name}', metrics, note) for name, metrics in baselines(args, split, split).items()]
    except UserError as error:
        return [('colour words', {}, str(error))]


if __name__ == '__main__':
    start(main)

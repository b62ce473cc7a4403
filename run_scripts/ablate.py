"""Train a grid of ablations and print their table with means and standard deviations.

    python -m run_scripts.ablate --config_file configs/irra.yaml \\
        --loss_names sdm sdm+id+mlm --seeds 1 2 3 -- --dataset_name RSTPReid
    python -m run_scripts.ablate --config_file ... --vary lr 1e-5 3e-5 \\
        --vary temperature 0.02 0.05 -- --num_epoch 20

The grid is the product of loss strings, seeds and values of any flags over a recipe. All options after -- go to every
train.py. Each run is a process with its own folder, and the folder's name depends only on the run's options. The same
command therefore continues an interrupted grid: it skips finished runs, resumes interrupted ones and starts the others.
A second process of the same command, for example on another GPU, trains the runs that no other process trains.

The tool prints the table and writes it as table.txt, .md, .tex and .csv. ``--table_only --epoch last`` makes another
table of the same runs, table_last.txt and so on. The exit status is 0 if every run is finished, 1 if not, and 130 if a
signal stopped the grid.
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
from datasets.registry import dataset_class, published_split_note
from utils.csv_files import write_csv
from utils.declarations import retry_with_pytorch
from utils.errors import UserError, unknown_name_error
from utils.file_lock import try_lock
from utils.iotools import atomic_write, read_json
from utils.measures import MEASURES, find_measure, has_all_metrics, metric_columns
from utils.option_types import non_negative_int
from utils.options import Effect, Parser, as_dict, build_parser, get_args, to_plain_value
from utils.tables import format_latex, format_markdown, format_text

# The heading of a table for each --epoch, with places for the names of the measure and the split.
EPOCH_HEADINGS = {'best': 'each run at the epoch with its best {measure} on the {split} split, whose metrics these are',
                  'last': 'each run after its last epoch, on the {split} split',
                  'mean': "the mean of each run's evaluations in its last five epochs, on the {split} split"}
STOP_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
# Options of train.py that ablate.py sets, and the options of ablate.py that control them.
GRID_OPTIONS = {'loss_names': '--loss_names', 'seed': '--seeds', 'config_file': '--config_file',
                'output_dir': '--output_dir'}


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    grid_words, train_words = split_at_dashes(argv)
    args = build_ablation_parser().parse(grid_words)
    names, cells = build_grid(args, train_words)
    table = Table(args.output_dir, names, cells, args.epoch)
    if args.table_only:
        print(table.write())
        return 0 if table.is_complete else 1
    check_datasets(cells)
    with StopSignals() as stop:
        train_all(cells, table, stop, args.keep)
    print(table.write())
    if stop.received and not table.is_complete:
        command = shlex.join([os.path.relpath(__file__), *argv])
        print_progress(f'stopped by {stop.received.name}; continue with: python {command}')
        return 130
    return 0 if table.is_complete else 1


def check_datasets(cells):
    """Raise :class:`~utils.errors.UserError` for missing data, before the first run."""
    from datasets.build import build_dataset_from_args
    for args in args_of_each_dataset(cells):
        build_dataset_from_args(args, verbose=False, splits=('train', args.val_dataset), skip_broken=args.skip_broken)


def args_of_each_dataset(cells):
    """The options of one cell for each dataset and split of the grid."""
    return list({(c.args.dataset_name, c.args.root_dir, c.args.val_dataset): c.args for c in cells}.values())


def print_progress(line):
    print(line, file=sys.stderr, flush=True)


# -- the grid --------------------------------------------------------------------------------------------------------

def build_ablation_parser():
    parser = Parser(prog='ablate.py', description=__doc__,
                    usage='%(prog)s [--<option> VALUE ...] [-- <options of train.py>]')
    parser.add_argument('--config_file', default='', help='recipe of all runs')
    parser.add_argument('--loss_names', nargs='+', help="loss strings to compare (default: the recipe's)")
    parser.add_argument('--seeds', nargs='+', type=non_negative_int, default=[1], help='random seeds of each setting')
    parser.add_argument('--vary', nargs='+', action='append', default=[], metavar=('FLAG', 'VALUE'),
                        help="flag of train.py without its dashes, and its values: '384 128' if the flag takes two, "
                             'true or false if it takes none; repeat the option for several flags')
    parser.add_argument('--output_dir', help='folder of the grid (default: named for the recipe, in logs/ablation)')
    parser.add_argument('--keep', choices=['none', 'best', 'all'], default='best',
                        help='checkpoints of finished runs to keep')
    parser.add_argument('--epoch', choices=list(EPOCH_HEADINGS), default='best',
                        help="epoch in the table: each run's best one, its last one, or the mean of its last five")
    parser.add_argument('--table_only', action='store_true', help='print the table of finished runs without training')
    return parser


def split_at_dashes(argv):
    """The words before and after the first ``--``."""
    index = argv.index('--') if '--' in argv else len(argv)
    return argv[:index], argv[index + 1:]


@dataclass
class Cell:
    """One run of the grid.

    Attributes:
        setting: the loss string and the values of the varied flags, as strings.
        label: the setting and the seed in words.
        argv: the command line of train.py without --output_dir.
        args: the options of the run.
        folder: the --output_dir of the run.
    """
    setting: tuple
    label: str
    argv: list
    args: object
    folder: str

    @property
    def seed(self):
        return self.args.seed

    @property
    def result(self):
        """``{'metrics', 'epoch', ...}`` of a finished run, ``{'error'}`` of a failed one, ``{}`` of any other."""
        try:
            content = read_json(self.path('result.json'))
        except UserError:
            return {}
        is_valid = isinstance(content, dict) and ('error' in content or has_all_metrics(content.get('metrics')))
        return content if is_valid else {}

    @property
    def is_finished(self):
        return 'metrics' in self.result

    def evaluation(self, epoch):
        """The metrics of a finished run.

        Args:
            epoch: 'best', 'last', or 'mean' of the last five.

        Returns:
            ``(metrics, [epoch, ...])``; ``(None, [])`` if the run is not finished or its evaluations are gone.
        """
        from processor.history import summarize_evaluations
        from processor.results import read_evaluations
        if not self.is_finished or epoch == 'best':
            return self.result.get('metrics'), [self.result['epoch']] if self.is_finished else []
        folder = os.path.dirname(self.newest('metrics.jsonl') or '')
        metrics = summarize_evaluations(read_evaluations(folder)).get(epoch, {'epochs': []})
        return (metrics, metrics['epochs']) if metrics['epochs'] else (None, [])

    @property
    def last_checkpoint(self):
        """The last.pth to resume from; None if there is none."""
        return self.newest('last.pth')

    def newest(self, name):
        """The path of a file in the newest folder that train.py made; None if there is none."""
        return max(glob.glob(os.path.join(glob.escape(self.folder), '*', '*', name)), default=None)

    def path(self, name):
        return os.path.join(self.folder, name)


@retry_with_pytorch
def build_grid(args, train_words):
    """Build the cells of a grid.

    Args:
        args: the options of ablate.py.
        train_words: the options after ``--``.

    Returns:
        ``(names, cells)``: the names of the columns that vary, and the cells with those of the first seed first.

    Raises:
        UserError: an option that train.py would reject, or one that the grid sets itself.
    """
    parser = build_parser()
    varied = parse_varied_flags(args.vary, parser)
    check_common_words(train_words, varied, parser)
    common = ['--config_file', args.config_file] * bool(args.config_file) + train_words
    losses = args.loss_names or [get_args(common).loss_names]
    cells = []
    for seed, loss_names, *values in itertools.product(args.seeds, losses, *varied.values()):
        varied_words = [word for name, value in zip(varied, values)
                        for word in flag_words(parser.actions()[name], value)]
        label = ', '.join([loss_names, *(f'{name} {value}' for name, value in zip(varied, values)), f'seed {seed}'])
        cell_argv = [*common, '--loss_names', loss_names, '--seed', str(seed), *varied_words]
        try:
            cell_args = get_args(cell_argv)
        except UserError as error:
            raise UserError(f'{label}: {error}') from None
        if not args.output_dir:
            args.output_dir = os.path.join('logs', 'ablation', grid_name(args.config_file, cell_args.dataset_name))
        folder = os.path.join(args.output_dir, cell_folder_name(cell_args, parser))
        cells.append(Cell((loss_names, *values), label, cell_argv, cell_args, folder))
    by_folder = {}
    for cell in cells:
        other = by_folder.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(f"the grid has the same run twice, '{other.label}' and '{cell.label}'; leave one out")
    return ('losses', *varied), cells


def grid_name(config_file, dataset_name):
    """The name of a grid's folder: irra_rstpreid for configs/irra.yaml on RSTPReid, mine_quick for mine/quick.yaml."""
    if not config_file:
        return 'defaults'
    folder, name = os.path.split(os.path.splitext(os.path.abspath(config_file))[0])
    if os.path.basename(folder) != 'configs':
        return f'{os.path.basename(folder)}_{name}'
    dataset = dataset_name.lower()
    return f"{name.removesuffix(f'-{dataset}')}_{dataset}"


def parse_varied_flags(groups, parser):
    """``{option: [value, ...]}`` of the words of each --vary."""
    varied = {}
    for name, *values in groups:
        name = name.lstrip('-')
        if name in GRID_OPTIONS:
            raise UserError(f'--vary {name}: the grid sets this flag; use {GRID_OPTIONS[name]} of ablate.py')
        if name not in parser.actions():
            raise unknown_name_error('flag', name, parser.actions())
        if name not in parser.options_with(Effect.RESULT):
            raise UserError(f'--vary {name}: the flag does not change the trained model')
        if name in varied:
            raise UserError(f'--vary {name} is given twice; name all its values in one --vary')
        if not values:
            raise UserError(f'--vary {name} has no values')
        varied[name] = values
    return varied


def check_common_words(train_words, varied, parser):
    """Raise :class:`~utils.errors.UserError` if an option after ``--`` is one that the grid sets or varies."""
    for name in sorted(parser.given_options(train_words)):
        if name in GRID_OPTIONS:
            raise UserError(f'--{name} after -- would be the same for all runs: use {GRID_OPTIONS[name]} before --')
        if name in parser.options_with(Effect.INVOCATION):
            raise UserError(f"{parser.actions()[name].option_strings[0]} after -- does not apply to a grid's runs; "
                            'leave it out')
        if name in varied:
            raise UserError(f'--{name} is both varied and given after --; leave one out')


def flag_words(action, value):
    """The words of a varied flag on train.py's command line."""
    flag = action.option_strings[0]
    if isinstance(action, BooleanOptionalAction):
        if value.lower() not in ('true', 'false'):
            raise UserError(f"--vary {action.dest}: '{value}' must be true or false")
        return [flag] if value.lower() == 'true' else [action.option_strings[1]]
    return [flag, *(value.split() if action.nargs else [value])]


def cell_folder_name(args, parser):
    """The name of a run's folder: its losses, its seed, and a checksum of its options.

    The checksum covers only options that differ from their defaults. An option that a later version adds therefore
    does not change the folder of an old run.
    """
    settings, defaults = parser.options_with(Effect.RESULT), parser.defaults_in_code
    options = {name: value for name, value in as_dict(args).items()
               if name in settings and value != to_plain_value(defaults[name])}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return f"{args.loss_names.replace(' ', '')}_seed{args.seed}_{digest}"


# -- the runs --------------------------------------------------------------------------------------------------------

class StopSignals:
    """A context that forwards signals to the running train.py, which saves its state and exits.

    Attributes:
        received: the signal that stops the grid; None if there is none.
    """

    def __init__(self):
        self.received, self.process, self._previous = None, None, {}

    def __enter__(self):
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.received = signal.Signals(number)
        self._forward()

    def _forward(self):
        # SIGTERM also ends a train.py that has not begun to train. Only train.py gets it, and it ends its own workers.
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait_for(self, process):
        """Wait for a process, and return its exit status."""
        self.process = process
        if self.received:
            self._forward()
        status = process.wait()
        self.process = None
        return status


def train_all(cells, table, stop, keep):
    """Train all unfinished cells, and write the table after each run."""
    todo = [cell for cell in cells if not cell.is_finished]
    finished_count = len(cells) - len(todo)
    if finished_count:
        print_progress(f'{finished_count} of {len(cells)} runs are finished already')
    durations = []
    for number, cell in enumerate(todo, 1):
        if stop.received:
            return
        title = f'[{finished_count + number}/{len(cells)}] {cell.label}'
        with lock_cell(cell) as lock_file:
            if not lock_file:
                print_progress(f'{title}: another process trains it')
                continue
            if cell.is_finished:  # another process has finished it meanwhile
                continue
            print_progress(f"{title}: {'resumed' if cell.last_checkpoint else 'started'}")
            start_time = time.monotonic()
            result = train_cell(cell, lock_file, stop, keep)
            seconds = time.monotonic() - start_time
        if not result:
            return
        if 'metrics' in result:
            durations.append(seconds)
        remaining = statistics.mean(durations) * (len(todo) - number) if durations else 0
        eta = f', about {format_duration(remaining)} left' if remaining else ''
        print_progress(f'{title}: {format_result(result)}, after {format_duration(seconds)}{eta}')
        table.write()


def format_result(result):
    if 'error' in result:
        return f"failed: {result['error']}"
    measure = find_measure(result['metrics'])
    return f"finished, {measure.label} {result['metrics'][measure.key]:.2f} at epoch {result['epoch']}"


def format_duration(seconds):
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def lock_cell(cell):
    """The open lock file of a cell's folder, or None if another process has locked it.

    train.py inherits the lock. If ablate.py is killed, the folder stays locked until train.py ends.
    """
    try:
        os.makedirs(cell.folder, exist_ok=True)
        file = open(cell.path('.lock'), 'wb')
    except OSError as error:
        raise UserError(f'cannot write into {cell.folder}: {error.strerror}; choose another --output_dir') from None
    with file:
        yield file if try_lock(file, is_inherited=True) else None


def train_cell(cell, lock_file, stop, keep):
    """Run train.py for a cell until it ends, and write result.json.

    Returns:
        The result; None if a signal stopped the grid.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(cell.path('result.json'))  # the error of an earlier attempt
    resume = ['--resume', '--resume_ckpt_file', cell.last_checkpoint] if cell.last_checkpoint else []
    command = [sys.executable, os.path.join(ROOT, 'train.py'), *cell.argv, '--output_dir', cell.folder, *resume]
    with open(cell.path('output.txt'), 'wb') as output:
        # train.py has its own session, so that Ctrl-C reaches it only once: through StopSignals.
        inherited = {'pass_fds': [lock_file.fileno()]} if os.name == 'posix' else {}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True, **inherited)
        status = stop.wait_for(process)
    if status and stop.received:
        return None
    if status:
        result = {'error': failure_reason(status, cell.path('output.txt'))}
    else:
        result = read_best_evaluation(run_folder(cell))
    with atomic_write(cell.path('result.json')) as file:
        json.dump(result, file, indent=1)
    if 'metrics' in result:
        remove_checkpoints(run_folder(cell), keep)
    return result


def run_folder(cell):
    """The folder that train.py has made."""
    return os.path.dirname(cell.last_checkpoint)


def read_best_evaluation(folder):
    """The evaluation of a run's best epoch, whose weights best.pth holds."""
    from processor.history import summarize_evaluations
    from processor.results import read_evaluations
    summary = summarize_evaluations(read_evaluations(folder))
    if not summary:
        return {'error': f"{os.path.join(folder, 'metrics.jsonl')} has no evaluations"}
    epoch, = summary['best'].pop('epochs')
    return {'metrics': summary['best'], 'epoch': epoch, 'split': summary['split']}


def failure_reason(status, output):
    """A sentence about a train.py that failed, from the last lines of its output."""
    if status < 0:
        return f'train.py was ended by {signal.Signals(-status).name}'
    if status in (130, 143):
        return 'another program stopped train.py; start the grid again to continue the run'
    with open(output, encoding='utf-8', errors='replace') as file:
        lines = [line.strip() for line in file if line.strip()]
    marker = 'train.py: error: '
    messages = [line.removeprefix(marker) for line in lines if line.startswith(marker)]
    return (messages or lines or [f'train.py exited with status {status}'])[-1]


def remove_checkpoints(folder, keep):
    """Remove the checkpoints of a finished run that ``--keep`` does not name."""
    for name in {'all': (), 'best': ('last.pth',), 'none': ('last.pth', 'best.pth')}[keep]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))


# -- the table -------------------------------------------------------------------------------------------------------

class Table:
    """The grid's table: a row for each setting with the mean and the standard deviation over its seeds."""

    def __init__(self, folder, names, cells, epoch='best'):
        self.folder, self.names, self.cells, self.epoch = folder, names, cells, epoch
        self.stem = 'table' if epoch == 'best' else f'table_{epoch}'
        self.settings = {}
        for cell in cells:
            self.settings.setdefault(cell.setting, []).append(cell)
        datasets = args_of_each_dataset(cells)
        self.baselines = [row for args in datasets for row in compute_baseline_rows(args)]
        self.split_notes = list(filter(None, dict.fromkeys(map(evaluated_split_note, datasets))))

    @property
    def columns(self):
        """The names of the metrics in the table."""
        return metric_columns(metrics for setting in self.settings for metrics in self.metrics(setting))

    @property
    def is_complete(self):
        return all(cell.is_finished for cell in self.cells)

    @property
    def heading(self):
        all_args = args_of_each_dataset(self.cells)
        datasets, splits = (' and '.join(sorted({getattr(args, name) for args in all_args}))
                            for name in ('dataset_name', 'val_dataset'))
        measures = ' or '.join(measure.label for measure in MEASURES if measure.key in self.columns)
        heading = (f'{datasets}: mean ± standard deviation over n seeds, in percent; '
                   f'{EPOCH_HEADINGS[self.epoch].format(measure=measures, split=splits)}')
        return '; '.join([heading, *self.split_notes])

    def write(self):
        """Write the four files, and return the table as text."""
        header = [*self.names, 'n', *self.columns, 'note']
        other_rows = [row for setting in self.settings for row in self.other_dataset_rows(setting)]
        rows = [*map(self.setting_row, self.settings), *other_rows, *map(self.baseline_row, self.baselines)]
        writers = {'txt': format_text, 'md': format_markdown, 'tex': format_latex}
        contents = {ending: writer(self.heading, header, rows) for ending, writer in writers.items()}
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise UserError(f'cannot make the folder {self.folder}: {error.strerror}; '
                            'choose another --output_dir') from None
        for ending, content in contents.items():
            with atomic_write(os.path.join(self.folder, f'{self.stem}.{ending}')) as file:
                file.write(f'{content}\n')
        with atomic_write(os.path.join(self.folder, f'{self.stem}.csv')) as file:
            write_csv(file, self.csv_rows())
        return contents['txt']

    def setting_row(self, setting):
        metrics = self.metrics(setting)
        return [*setting, str(len(metrics)), *format_means(metrics, self.columns), self.format_note(setting)]

    def other_dataset_rows(self, setting):
        """Yield a row for each other dataset on which test.py has evaluated the setting's best.pth."""
        by_dataset = {}
        for cell in self.settings[setting] if self.epoch == 'best' else ():
            for dataset, metrics in read_other_results(cell).items():
                by_dataset.setdefault(dataset, []).append(metrics)
        columns = self.columns
        for dataset, metrics in sorted(by_dataset.items()):
            if columns[0] in metrics[0]:    # attributes are no columns of a table of retrieval
                note = f'tested on {dataset}, test split'
                yield [*setting, str(len(metrics)), *format_means(metrics, columns), note]

    def baseline_row(self, baseline):
        name, metrics, note = baseline
        columns = [f'{metrics[metric]:.2f}' if metric in metrics else '-' for metric in self.columns]
        return [name, *[''] * len(self.names), *columns, note]

    def metrics(self, setting):
        """The metrics of a setting's finished runs."""
        evaluations = [cell.evaluation(self.epoch) for cell in self.settings[setting]]
        return [metrics for metrics, _ in evaluations if metrics]

    def format_note(self, setting):
        """Why a row has a '-': 'seeds 1, 2: there is no file x', or the setting has a single seed."""
        seeds = {}
        for cell in self.settings[setting]:
            reason = shorten(missing_reason(cell), 200, placeholder=' ...')
            seeds.setdefault(reason, []).append(str(cell.seed))
        notes = [f"seed{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {reason}"
                 for reason, numbers in seeds.items() if reason]
        return '; '.join(notes) or 'one seed has no deviation' * (len(self.metrics(setting)) == 1)

    def csv_rows(self):
        """Yield the CSV file's rows in full precision. The kind of a row is mean, run or baseline.

        A mean's row has standard deviations. A run's row has its seed, its epochs and its folder.
        """
        names = self.columns
        std_names = [f'{metric}_std' for metric in names]
        yield ['kind', *self.names, 'seed', 'n', *names, *std_names, 'epoch', 'folder', 'note']
        for setting in self.settings:
            seeds = self.metrics(setting)
            columns = [[metrics[metric] for metrics in seeds if metric in metrics] for metric in names]
            means = [statistics.mean(column) if column else '' for column in columns]
            deviations = [statistics.stdev(column) if len(column) > 1 else '' for column in columns]
            yield ['mean', *setting, '', len(seeds), *means, *deviations, '', '', self.format_note(setting)]
        for cell in self.cells:
            metrics, epochs = cell.evaluation(self.epoch)
            values = [(metrics or {}).get(metric, '') for metric in names]
            yield ['run', *cell.setting, cell.seed, '', *values, *[''] * len(names), ' '.join(map(str, epochs)),
                   cell.folder, missing_reason(cell)]
        for name, metrics, note in self.baselines:
            values = [metrics.get(metric, '') for metric in names]
            yield ['baseline', name, *[''] * (len(self.names) - 1), '', '', *values, *[''] * len(names), '', '', note]


def read_other_results(cell):
    """``{dataset: metrics}`` that test.py has written next to the best.pth of a finished run, for other datasets."""
    from processor.results import find_other_results
    checkpoint = cell.newest('best.pth') if cell.is_finished else None
    others = find_other_results(checkpoint, cell.args.dataset_name) if checkpoint else []
    return {results.dataset: results.metrics for results in others}


def evaluated_split_note(args):
    """A sentence if a run is not evaluated on a published split; '' if it is, or if the data are gone."""
    from datasets.build import build_dataset
    from datasets.joined import first_dataset_name
    name = args.eval_dataset or first_dataset_name(args.dataset_name)
    try:
        if not dataset_class(name).published:
            return ''
        dataset = build_dataset(name, args.root_dir, verbose=False, splits=())
        return published_split_note(name, dataset.counts(args.val_dataset), args.val_dataset)
    except UserError:
        return ''


def format_means(metrics, columns):
    """The mean of each column's metric over a list of metrics, as texts."""
    return [format_mean([values[metric] for values in metrics if metric in values]) for metric in columns]


def format_mean(values):
    """'61.20 ± 0.35' with the sample standard deviation; '61.20 ± -' for one value."""
    if not values:
        return '-'
    return f'{statistics.mean(values):.2f} ± ' + (f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-')


def missing_reason(cell):
    """Why a cell has no metrics; '' if it has."""
    if cell.is_finished:
        return ''
    return cell.result.get('error') or ('not finished' if cell.last_checkpoint else 'not trained yet')


def compute_baseline_rows(args):
    """``[(name, metrics, note), ...]`` of baselines without learning on synthetic pedestrians; [] for other data."""
    from datasets.build import build_dataset_from_args
    from datasets.synthpedes import is_synthetic
    from processor.report import compute_baselines
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return []
    note = f'without learning, {args.dataset_name} {args.val_dataset}'
    try:
        dataset = build_dataset_from_args(args, verbose=False, splits=(args.val_dataset,))
        split = Namespace(**getattr(dataset, args.val_dataset))
        return [(f'color words, {name}', metrics, note)
                for name, metrics in compute_baselines(args, split, split).items()]
    except UserError as error:
        return [('color words', {}, str(error))]


if __name__ == '__main__':
    start(main)

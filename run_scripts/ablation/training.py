"""Train the runs of a grid: one process and one folder each, with a lock that other processes of the grid respect."""
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import timedelta

from run_scripts import ROOT, program_words
from run_scripts.ablation.grid import args_of_each_dataset, build_grid
from run_scripts.ablation.table import Table
from utils.commands import program_name
from utils.errors import UserError
from utils.file_lock import try_lock
from utils.iotools import atomic_write
from utils.measures import find_measure

STOP_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


def run_grid(args, train_words, command):
    """Train the runs of a grid that are not finished, and print the table.

    Args:
        args: the options of ablate.py.
        train_words: the options of every train.py.
        command: what continues a stopped grid, for a message.

    Returns:
        The exit status: 0 if every run is finished, 1 if not, 130 if a signal stopped the grid.
    """
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
        print_progress(f'stopped by {stop.received.name}; continue with: {command}')
        return 130
    return 0 if table.is_complete else 1


def check_datasets(cells):
    """Raise :class:`~utils.errors.UserError` for missing data, before the first run."""
    from datasets.build import build_dataset_from_args
    for args in args_of_each_dataset(cells):
        build_dataset_from_args(args, verbose=False, splits=('train', args.val_dataset), skip_broken=args.skip_broken)


def print_progress(line):
    print(line, file=sys.stderr, flush=True)


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
    # The grid removes checkpoints itself, after it has read the evaluations.
    command = [sys.executable, *program_words('train', ROOT), *cell.argv, '--output_dir', cell.folder, '--keep', 'all',
               *resume]
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
    marker = f"{program_name('train.py')}: error: "
    messages = [line.removeprefix(marker) for line in lines if line.startswith(marker)]
    return (messages or lines or [f'train.py exited with status {status}'])[-1]


def remove_checkpoints(folder, keep):
    """Remove the checkpoints of a finished run that ``--keep`` does not name."""
    for name in {'all': (), 'best': ('last.pth',), 'none': ('last.pth', 'best.pth')}[keep]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))

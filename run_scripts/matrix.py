"""Test runs on several datasets and print the matrix of results.

    python -m run_scripts.matrix --runs logs/... --datasets CUHK-PEDES ICFG-PEDES RSTPReid \\
        --root_dir data

The matrix has a row for each run and a column for each test dataset. Each cell is evaluated once, as test.py evaluates
it, and stored next to the checkpoint (metrics.json, metrics_<dataset>.json). An interrupted matrix continues, and one
with more runs or datasets evaluates only the new cells. If a run's embeddings depend on the batch, its cells show the
results of embedding one by one.
"""
import io
import os
import sys
from dataclasses import dataclass, field

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from processor.run_folders import find_run_folders
from utils.csv_files import write_csv
from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.iotools import atomic_write
from utils.options import Parser, build_test_parser, parse_test_options
from utils.measures import metric_columns
from utils.tables import ATTRIBUTE_METRICS, FORMATS, METRICS


@dataclass
class Cell:
    """The results of a run on the test split of a dataset.

    Attributes:
        run: the name of the run's folder.
        trained_on, tested_on: names of datasets.
        metrics: ``{'R1': percent, ...}``; empty if the run could not be evaluated.
        intervals: ``{'R1': [low, high], ...}``.
        note: why there are no metrics, or how they were computed.
        split_note: a note if the test split is not the published one.
    """
    run: str
    trained_on: str
    tested_on: str
    metrics: dict = field(default_factory=dict)
    intervals: dict = field(default_factory=dict)
    note: str = ''
    split_note: str = ''

    def text(self, metric):
        """'61.20 [59.10, 63.30]', with a star if there is a note."""
        if metric not in self.metrics:
            return '-'
        star = '*' if self.note else ''
        interval = ' [{:.2f}, {:.2f}]'.format(*self.intervals[metric]) if metric in self.intervals else ''
        return f'{self.metrics[metric]:.2f}{star}{interval}'


def main(argv=None):
    args = build_matrix_parser().parse(sys.argv[1:] if argv is None else argv)
    datasets = list(dict.fromkeys(args.datasets))
    overrides = [word for name in ('root_dir', 'device') if getattr(args, name)
                 for word in (f'--{name}', getattr(args, name))]
    folders = [folder for logs in args.runs for folder in find_run_folders(logs)]
    runs = {run_name(folder): [read_options(folder, dataset, overrides) for dataset in datasets] for folder in folders}
    check_datasets([options for row in runs.values() for options in row if not isinstance(options, str)])
    cells = [evaluate_cell(name, dataset, options)
             for name, row in runs.items() for dataset, options in zip(datasets, row)]
    texts = {name: format_tables(cells, args.metrics, FORMATS[name]) for name in FORMATS} | {'csv': format_csv(cells)}
    if args.out:
        for name, ending in (('text', 'txt'), ('markdown', 'md'), ('latex', 'tex'), ('csv', 'csv')):
            with atomic_write(f'{args.out}.{ending}') as file:
                file.write(f'{texts[name]}\n')
    print('\n\n'.join(texts[name] for name in args.format))
    return 0 if all(cell.metrics for cell in cells) else 1


def build_matrix_parser():
    parser = Parser(prog='matrix.py', description=__doc__,
                    usage='%(prog)s --runs FOLDER ... --datasets NAME ... [--<option> VALUE ...]')
    parser.add_argument('--runs', nargs='+', required=True,
                        help='folders or names of runs, or folders with runs at any depth')
    parser.add_argument('--datasets', nargs='+', required=True, help='names of the datasets to test on')
    parser.add_argument('--root_dir', help="folder with the datasets' folders (default: as in the runs' configs.yaml)")
    parser.add_argument('--device', help="auto, cpu, mps, cuda or cuda:<n> (default: as in the runs' configs.yaml)")
    parser.add_argument('--metrics', nargs='+', choices=[*METRICS, *ATTRIBUTE_METRICS], default=['R1', 'mAP'],
                        help='metrics to print, a table for each')
    parser.add_argument('--format', nargs='+', choices=[*FORMATS, 'csv'], default=['text'],
                        help='formats of the printed tables')
    parser.add_argument('--out', metavar='NAME', help='name of four files: NAME.txt, NAME.md, NAME.tex and NAME.csv')
    parser.run_options = {'runs'}
    return parser


def run_name(folder):
    return os.path.basename(os.path.abspath(folder))


@retry_with_pytorch
def read_options(folder, dataset, overrides):
    """The options of a run's test on a dataset, or the text of the error if it cannot be tested."""
    words = ['--config_file', os.path.join(folder, 'configs.yaml'), '--dataset_name', dataset, *overrides]
    try:
        return parse_test_options(build_test_parser('matrix.py', ''), words)
    except UserError as error:
        return str(error)


def check_datasets(all_options):
    """Raise :class:`~utils.errors.UserError` for a missing dataset, before hours of evaluation."""
    from datasets.build import build_dataset
    for name, root in dict.fromkeys((options.dataset_name, options.root_dir) for options in all_options):
        build_dataset(name, root, verbose=False, splits=('test',))


def evaluate_cell(name, dataset, options):
    """The :class:`Cell` of a run on a dataset, from stored results if there are any.

    Args:
        name: the name of the run's folder.
        dataset: the name of the test dataset.
        options: what :func:`read_options` returns; a text becomes the note of a cell without metrics.
    """
    from processor.report import find_or_compute_results
    from processor.results import ONE_BY_ONE
    if isinstance(options, str):
        return Cell(name, '?', dataset, note=options)
    cell = Cell(name, options.config.data.trained_on, dataset)
    try:
        results = find_or_compute_results(options, with_intervals=True)
    except UserError as error:
        cell.note = str(error)
        return cell
    cell.metrics, cell.intervals = results.metrics, results.metric_intervals()
    if results.tables and not results.is_independent:
        cell.metrics, cell.intervals = results.one_by_one, results.metric_intervals(ONE_BY_ONE)
        cell.note = 'embeddings depend on the batch: these are one by one'
    if 'R1' not in cell.metrics:
        cell.note = '; '.join(filter(None, [f"it has other metrics: --metrics {' '.join(cell.metrics)}", cell.note]))
    cell.split_note = results.split_note
    return cell


# -- the tables ------------------------------------------------------------------------------------------------------

def format_tables(cells, metrics, write):
    """A table for each metric, followed by the notes. ``write`` is one of :data:`~utils.tables.FORMATS`."""
    datasets = list(dict.fromkeys(cell.tested_on for cell in cells))
    rows = {}
    for cell in cells:
        rows.setdefault((cell.run, cell.trained_on), []).append(cell)
    texts = [write(f'{metric} in percent with 95% intervals: trained on (rows), tested on (columns)',
                   ['run', 'trained on', *datasets],
                   [[*row, *(cell.text(metric) for cell in columns)] for row, columns in rows.items()])
             for metric in metrics]
    notes = [f'{cell.run} on {cell.tested_on}: {cell.note}' for cell in cells if cell.note]
    notes += dict.fromkeys(f'{cell.split_note}; compare with no published figure' for cell in cells if cell.split_note)
    return '\n\n'.join([*texts, *(['\n'.join(notes)] if notes else [])])


def format_csv(cells):
    """A line for each cell, in full precision."""
    text = io.StringIO()
    columns, bounds = metric_columns(cell.metrics for cell in cells), ['R1_low', 'R1_high', 'mAP_low', 'mAP_high']
    write_csv(text, [['run', 'trained_on', 'tested_on', *columns, *bounds, 'note']])
    for cell in cells:
        bounds = [bound for metric in ('R1', 'mAP') for bound in cell.intervals.get(metric, ('', ''))]
        metrics = [cell.metrics.get(metric, '') for metric in columns]
        note = '; '.join(filter(None, [cell.note, cell.split_note]))
        write_csv(text, [[cell.run, cell.trained_on, cell.tested_on, *metrics, *bounds, note]])
    return text.getvalue().rstrip('\n')


if __name__ == '__main__':
    run_program(main)

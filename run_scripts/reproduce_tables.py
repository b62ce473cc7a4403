"""Print measured results next to published ones.

    python -m run_scripts.reproduce_tables --logs logs/ --root_dir data

Each folder below --logs with a configs.yaml is a run. The tool evaluates its best.pth on the test split of its own
dataset, or reads the metrics.json of an earlier evaluation of the same checkpoint. It compares the result with the row
of configs/published/<dataset>.yaml that has the same losses and backbone. If no such row is published, or if the test
split is not the published one, the note says so. If a folder cannot be evaluated, the note says why.

A run whose embeddings depend on the batch has a second row with the results of embedding one by one. Results of
test.py --dataset_name on other datasets are rows in the tables of those datasets.

The test split selects the best epoch, as in the papers. The best of 60 noisy evaluations is above the run's usual
level, so the table also has Rank-1 of the last epoch and the mean of the last five.
"""
import os
import sys
from dataclasses import dataclass, field

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from processor.run_folders import find_run_folders
from run_scripts.published_results import (
    published_metrics, published_row, read_published_rows, read_run_options, unpublished_reason)
from utils.errors import UserError, run_program
from utils.measures import metric_columns
from utils.options import Parser
from utils.tables import FORMATS, METRICS

BATCH_DEPENDENT = 'EMBEDDINGS DEPEND ON THE BATCH'


@dataclass
class Row:
    """A row of a table.

    Attributes:
        run: the run's folder below --logs.
        dataset: the name of the test dataset.
        method: the name of the method in the published row; '' if no row is published.
        losses: the run's --loss_names.
        measured: ``{'R1': percent, ...}``.
        published: the same, without the metrics that the paper does not report.
        training: :func:`processor.history.summarize_evaluations`, if the test split was evaluated during training.
        note: text of the last column.
    """
    run: str
    dataset: str = 'not evaluated'
    method: str = ''
    losses: str = ''
    measured: dict = field(default_factory=dict)
    published: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    note: str = ''

    def cell(self, metric):
        """'measured / published (difference)', as far as these exist."""
        if metric not in self.measured:
            return f'/ {self.published[metric]:.2f}' if metric in self.published else '-'
        measured, published = self.measured[metric], self.published.get(metric)
        if published is None:
            return f'{measured:.2f}'
        return f'{measured:.2f} / {published:.2f} ({measured - published:+.2f})'

    def cells(self, columns=METRICS):
        """The texts of the row, for a table with columns of some metrics (:func:`table_header`)."""
        measure = columns[0]
        ends = [f'{self.training[which][measure]:.2f}' if measure in self.training.get(which, ()) else '-'
                for which in ('last', 'mean')]
        return [self.run, self.method or '-', self.losses or '-', *map(self.cell, columns), *ends, self.note]


def main(argv=None):
    args = build_reproduction_parser().parse(sys.argv[1:] if argv is None else argv)
    overrides = [word for name in ('root_dir', 'device') if getattr(args, name)
                 for word in (f'--{name}', getattr(args, name))]
    rows = [row for folder in find_run_folders(args.logs) for row in run_rows(folder, args.logs, overrides)]
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    if args.published:
        rows += [row for dataset in datasets for row in published_only_rows(dataset)]
    for name in args.format:
        print('\n\n'.join(format_table(dataset, [row for row in rows if row.dataset == dataset], FORMATS[name])
                          for dataset in datasets))


def format_table(dataset, rows, write):
    """The table of a dataset. ``write`` is one of :data:`~utils.tables.FORMATS`."""
    columns = metric_columns(row.measured for row in rows)
    return write(f'{dataset}: measured / published (difference), in percent', table_header(columns),
                 [row.cells(columns) for row in rows])


def table_header(columns=METRICS):
    """The header of a table of metrics, the first of which selects the best epoch."""
    return ['run', 'method', 'losses', *columns, f'{columns[0]} last', f'{columns[0]} mean of last 5', 'note']


def build_reproduction_parser():
    parser = Parser(prog='reproduce_tables.py', description=__doc__, usage='%(prog)s [--<option> VALUE ...]')
    parser.add_argument('--logs', default='logs', help='folder with the runs, at any depth')
    parser.add_argument('--root_dir', help="folder with the datasets' folders (default: as in the runs' configs.yaml)")
    parser.add_argument('--device', help="auto, cpu, mps, cuda or cuda:<n> (default: as in the runs' configs.yaml)")
    parser.add_argument('--published', action='store_true',
                        help='also print all published results on the datasets of the runs')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='formats of the printed tables')
    return parser


def run_rows(folder, logs, overrides=()):
    """The rows of a run.

    Returns:
        A row of its test split. If its embeddings depend on the batch, also one with the results of embedding one by
        one. A row for each other dataset that test.py was run on. If the run cannot be evaluated, only a row with the
        reason.
    """
    from processor.report import find_or_compute_results
    from processor.results import find_other_results
    row = Row(os.path.relpath(folder, logs))
    try:
        args = read_run_options(folder, overrides)
        row.dataset, row.losses = args.dataset_name, args.loss_names
        published = published_row(args)
        row.method = published.get('method', '')
        row.published = published_metrics(published)
        results = find_or_compute_results(args)
        other_rows = [other_dataset_row(row, args, other)
                      for other in find_other_results(args.checkpoint, args.config.data.trained_on)]
    except Exception as error:  # the table of the other runs must not depend on one broken run
        row.note = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        return [row]
    row.note = results.split_note if row.method else unpublished_reason(args)
    if results.split_note:
        row.published = {}
    row.measured, row.training = results.metrics, read_training_metrics(args)
    if results.is_independent:
        return [row, *other_rows]
    row.note = '; '.join(filter(None, [BATCH_DEPENDENT, row.note]))
    if not results.one_by_one:      # attributes are recognized once only
        return [row, *other_rows]
    one_by_one = Row(f'{row.run}, one by one', row.dataset, row.method, row.losses, results.one_by_one, row.published)
    return [row, one_by_one, *other_rows]


def other_dataset_row(row, args, results):
    """The row of a run's results on another dataset than the one of its training."""
    note = 'trained on another dataset; no row is published for that'
    return Row(f'{row.run}, trained on {args.config.data.trained_on}', results.dataset, losses=row.losses,
               measured=results.metrics, note=note if results.is_independent else f'{BATCH_DEPENDENT}; {note}')


def read_training_metrics(args):
    """Metrics of the best, the last and the mean of the last epochs; {} if they are of another split or dataset."""
    from processor.history import summarize_evaluations
    from processor.results import read_evaluations
    evaluations = read_evaluations(os.path.dirname(args.checkpoint))
    is_test_split = args.dataset_name == args.config.data.trained_on and all(
        evaluation.values.get('split') == 'test' for evaluation in evaluations)
    return summarize_evaluations(evaluations) if is_test_split else {}


def published_only_rows(dataset):
    """A row without a run for each published result on a dataset."""
    return [Row('published', dataset, row['method'], row.get('loss_names', ''), published=published_metrics(row),
                note=str(row.get('year', ''))) for row in read_published_rows(dataset)]


if __name__ == '__main__':
    run_program(main)

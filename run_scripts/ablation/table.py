"""The table of a grid: means and standard deviations over seeds."""
import os
import statistics
from argparse import Namespace
from textwrap import shorten

from datasets.registry import dataset_class, published_split_note
from run_scripts.ablation.grid import args_of_each_dataset
from utils.csv_files import write_csv
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.measures import MEASURES, RANK1, find_measure, metric_columns
from utils.tables import format_latex, format_markdown, format_text

# The heading of a table for each --epoch, with places for the names of the measure and the split.
EPOCH_HEADINGS = {'best': 'each run at the epoch with its best {measure} on the {split} split, whose metrics these are',
                  'last': 'each run after its last epoch, on the {split} split',
                  'mean': "the mean of each run's evaluations in its last five epochs, on the {split} split"}


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
        found = [find_measure(metrics) for setting in self.settings for metrics in self.metrics(setting)] or [RANK1]
        measures = ' or '.join(measure.label for measure in MEASURES if measure in found)
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

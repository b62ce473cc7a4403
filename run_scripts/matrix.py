"""Runs tested across datasets: ``python -m run_scripts.matrix --runs logs/... --datasets CUHK-PEDES ICFG-PEDES RSTPReid --root_dir data``.

A row for each run below --runs, which says what it was trained on, and a column for each dataset that it is tested on. Each cell is
evaluated once, as test.py does it, and kept beside the checkpoint (metrics.json, metrics_<dataset>.json): a matrix that was interrupted
goes on, and one with more runs or datasets evaluates what is new. A run whose embeddings depend on the batch is given one by one.
"""
import io
import os
import sys
from dataclasses import dataclass, field

from run_scripts import start
from datasets.build import build_dataset
from datasets.registry import published_split_note
from processor.report import ONE_BY_ONE, beside_checkpoint, counts_in, evaluate, save_results
from processor.runs import open_run
from run_scripts.reproduce_tables import run_folders
from utils.checkpoint import sha256_of
from utils.csv_files import write_csv
from utils.errors import UserError
from utils.iotools import atomic_write, read_json
from utils.options import Parser, build_test_parser, parse_test_options
from utils.tables import FORMATS, METRICS


@dataclass
class Cell:
    """A run on a dataset's test split."""
    run: str
    trained_on: str
    tested_on: str
    metrics: dict = field(default_factory=dict)     # {'R1': percent, ...}
    intervals: dict = field(default_factory=dict)   # {'R1': [low, high], ...}
    note: str = ''
    split_note: str = ''                            # if the test split is not the published one

    def text(self, metric):
        """'61.20 [59.10, 63.30]'"""
        if not self.metrics:
            return '-'
        star = '*' if self.note else ''
        interval = ' [{:.2f}, {:.2f}]'.format(*self.intervals[metric]) if metric in self.intervals else ''
        return f'{self.metrics[metric]:.2f}{star}{interval}'


def main(argv=None):
    args = build_matrix_parser().parse(sys.argv[1:] if argv is None else argv)
    overrides = [word for name in ('root_dir', 'device') if getattr(args, name) for word in (f'--{name}', getattr(args, name))]
    folders = [folder for logs in args.runs for folder in run_folders(logs)]
    runs = {name_of(folder): [options_of(folder, dataset, overrides) for dataset in dict.fromkeys(args.datasets)] for folder in folders}
    check_datasets([options for columns in runs.values() for options in columns if not isinstance(options, str)])
    cells = []
    for name, columns in runs.items():
        cells += [cell_of(name, dataset, options) for dataset, options in zip(dict.fromkeys(args.datasets), columns)]
    texts = {form: tables(cells, args.metrics, FORMATS[form]) for form in FORMATS} | {'csv': as_csv(cells)}
    if args.out:
        for form, ending in (('text', 'txt'), ('markdown', 'md'), ('latex', 'tex'), ('csv', 'csv')):
            with atomic_write(f'{args.out}.{ending}') as file:
                file.write(f'{texts[form]}\n')
    print('\n\n'.join(texts[form] for form in args.format))
    return 0 if all(cell.metrics for cell in cells) else 1


def build_matrix_parser():
    parser = Parser(prog='matrix.py', description=__doc__)
    parser.add_argument('--runs', nargs='+', required=True, help="runs' folders, or folders with runs at any depth")
    parser.add_argument('--datasets', nargs='+', required=True, help='what all are tested on')
    parser.add_argument('--root_dir', help="the folder with the datasets' folders (default: as in the runs' configs)")
    parser.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n> (default: as in the configs)')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=['R1', 'mAP'], help='a table for each')
    parser.add_argument('--format', nargs='+', choices=[*FORMATS, 'csv'], default=['text'], help='what is printed')
    parser.add_argument('--out', metavar='NAME', help='also write NAME.txt, NAME.md, NAME.tex and NAME.csv')
    return parser


def name_of(folder):
    return os.path.basename(os.path.abspath(folder))


def options_of(folder, dataset, overrides):
    """The options of a run's test on a dataset, or why it has none."""
    words = ['--config_file', os.path.join(folder, 'configs.yaml'), '--dataset_name', dataset, *overrides]
    try:
        return parse_test_options(build_test_parser('matrix.py', ''), words)
    except UserError as error:
        return str(error)


def check_datasets(all_options):
    """A dataset that isn't there is told before hours of evaluating."""
    for name, root in dict.fromkeys((options.dataset_name, options.root_dir) for options in all_options):
        build_dataset(name, root, verbose=False, splits=('test',))


def cell_of(name, dataset, options):
    """The cell of a run on a dataset: kept, or evaluated now. One that cannot be says why."""
    if isinstance(options, str):
        return Cell(name, '?', dataset, note=options)
    cell = Cell(name, options.trained_on, dataset)
    try:
        content = kept(options) or evaluated(options)
    except UserError as error:
        cell.note = str(error)
        return cell
    how = next(iter(content['results']))
    if not content['independence']['holds']:
        how, cell.note = ONE_BY_ONE, 'embeddings depend on the batch: these are one by one'
    cell.split_note = published_split_note(dataset, counts_in(content['produced_by']))
    cell.metrics, cell.intervals = content['results'][how]['t2i'], content['intervals'][how]['t2i']
    return cell


def kept(options):
    """What save_results wrote for this checkpoint on this dataset; None if it has not, or not whole."""
    try:
        content = read_json(f"{beside_checkpoint(options, 'metrics')}.json")
        by, tables = content['produced_by'], content['results']
        whole = content['intervals'].keys() == tables.keys() and all(metric in one['t2i'] for one in tables.values() for metric in METRICS)
        of_this = (by['checkpoint_sha256'], by['dataset']) == (sha256_of(options.checkpoint), options.dataset_name)
        return content if whole and of_this and (content['independence']['holds'] or ONE_BY_ONE in tables) else None
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def evaluated(options):
    print(f'evaluating {options.checkpoint} on {options.dataset_name}', file=sys.stderr)
    run = open_run(options)
    save_results(evaluate(options, run.model, run.images, run.captions, run.checkpoint), options)
    content = kept(options)
    if not content:
        raise UserError(f"the results cannot be kept beside {options.checkpoint}")
    return content


# -- the tables ----------------------------------------------------------------------------------------------------------

def tables(cells, metrics, write):
    """A table for each metric, and what the notes say."""
    datasets = list(dict.fromkeys(cell.tested_on for cell in cells))
    rows = {}
    for cell in cells:
        rows.setdefault((cell.run, cell.trained_on), []).append(cell)
    texts = [write(f'{metric} in percent with 95% intervals: trained on (rows), tested on (columns)', ['run', 'trained on', *datasets],
                   [[*row, *(cell.text(metric) for cell in columns)] for row, columns in rows.items()]) for metric in metrics]
    notes = [f'{cell.run} on {cell.tested_on}: {cell.note}' for cell in cells if cell.note]
    notes += dict.fromkeys(f'{cell.split_note}; compare with no published figure' for cell in cells if cell.split_note)
    return '\n\n'.join([*texts, *(['\n'.join(notes)] if notes else [])])


def as_csv(cells):
    """A line for each cell, in full precision."""
    text = io.StringIO()
    write_csv(text, [['run', 'trained_on', 'tested_on', *METRICS, 'R1_low', 'R1_high', 'mAP_low', 'mAP_high', 'note']])
    for cell in cells:
        bounds = [bound for metric in ('R1', 'mAP') for bound in cell.intervals.get(metric, ('', ''))]
        found = [cell.metrics.get(metric, '') for metric in METRICS]
        note = '; '.join(filter(None, [cell.note, cell.split_note]))
        write_csv(text, [[cell.run, cell.trained_on, cell.tested_on, *found, *bounds, note]])
    return text.getvalue().rstrip('\n')


if __name__ == '__main__':
    start(main)

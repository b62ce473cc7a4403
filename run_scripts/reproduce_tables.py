"""Published results beside measured ones: ``python run_scripts/reproduce_tables.py --logs logs/ [--root_dir data]``.

Every folder below --logs with a configs.yaml is a run. Its best.pth is evaluated on the test split of its own dataset (or its
metrics.json is taken, if that is of the same checkpoint) and set beside the row of configs/published/<dataset>.yaml with its
losses and backbone. If no such row is published, or if the test split is not the published one, no figure is beside it, and the note says
why. A run whose embeddings depend on the batch has a second row: the same, one by one. What test.py --dataset_name found on other
datasets (metrics_<dataset>.json) is a row in that dataset's table. A folder that cannot be evaluated is a row that says why.

Beside the best epoch, which the test split chose as in the papers, stand Rank-1 of the last epoch and the mean of the last five: the best
of 60 noisy figures lies above what a run reaches as a rule.
"""
import argparse
import glob
import os
import re
import sys
from dataclasses import dataclass, field

from run_scripts import ROOT, start
from model.heads import parse_loss_names
from processor.history import best_last_mean, read_evaluations
from processor.report import ONE_BY_ONE, SavedResults, beside_checkpoint, counts_in, evaluate, read_results, save_results
from processor.runs import open_run
from utils.checkpoint import sha256_of
from utils.errors import UserError
from utils.iotools import walk_folders
from utils.options import build_test_parser, parse_test_options, read_yaml
from utils.tables import FORMATS, METRICS

PUBLISHED = os.path.join(ROOT, 'configs', 'published')
DEPENDS = 'EMBEDDINGS DEPEND ON THE BATCH'
HEADER = ['run', 'method', 'losses', *METRICS, 'R1 last', 'R1 mean of last 5', 'note']


@dataclass
class Row:
    run: str
    dataset: str = 'not evaluated'
    method: str = ''                                  # as the published row names it; '' where there is none: the note says why
    losses: str = ''
    measured: dict = field(default_factory=dict)      # {'R1': percent, ...}
    published: dict = field(default_factory=dict)     # the same, without what the paper doesn't give
    training: dict = field(default_factory=dict)      # processor.history.best_last_mean, where the test split was looked at
    note: str = ''

    def cell(self, metric):
        """'measured / published (difference)', as far as there are such."""
        if metric not in self.measured:
            return f'/ {self.published[metric]:.2f}' if metric in self.published else '-'
        measured, published = self.measured[metric], self.published.get(metric)
        return f'{measured:.2f}' if published is None else f'{measured:.2f} / {published:.2f} ({measured - published:+.2f})'

    def cells(self):
        ends = [f"{self.training[which]['R1']:.2f}" if which in self.training else '-' for which in ('last', 'mean')]
        return [self.run, self.method or '-', self.losses or '-', *map(self.cell, METRICS), *ends, self.note]


def main(argv=None):
    parser = argparse.ArgumentParser(prog='reproduce_tables.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--logs', default='logs', help="the folder with the runs' folders, at any depth")
    parser.add_argument('--root_dir', help="the folder with the datasets' folders (default: as in the runs' configs)")
    parser.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n> (default: as in the configs)')
    parser.add_argument('--published', action='store_true', help="list all that is published on the runs' datasets, too")
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='how the tables are printed')
    args = parser.parse_args(argv)
    overrides = [word for name in ('root_dir', 'device') if getattr(args, name) for word in (f'--{name}', getattr(args, name))]
    rows = [row for folder in run_folders(args.logs) for row in rows_of(folder, args.logs, overrides)]
    if args.published:
        rows += [row for dataset in dict.fromkeys(row.dataset for row in rows) for row in only_published(dataset)]
    for name in args.format:
        print('\n\n'.join(FORMATS[name](title(dataset), HEADER, [row.cells() for row in rows if row.dataset == dataset])
                          for dataset in dict.fromkeys(row.dataset for row in rows)))


def title(dataset):
    return f'{dataset}: measured / published (difference), in percent'


def run_folders(logs):
    """The folders with a configs.yaml, in order."""
    if not os.path.isdir(logs):
        raise UserError(f'no folder {logs}: point --logs at the folder that holds the runs')
    folders = sorted(folder for folder, _, files in walk_folders(logs) if 'configs.yaml' in files)
    if not folders:
        raise UserError(f'no run below {logs}: a run is a folder with a configs.yaml and a best.pth')
    return folders


def rows_of(folder, logs, overrides=()):
    """A run's rows: what its test found, once more one by one where its embeddings depend on the batch, and what was found on other
    datasets; or the one that says why there are no figures."""
    row = Row(os.path.relpath(folder, logs))
    try:
        args = parse_test_options(build_test_parser('reproduce_tables.py', ''),
                                  ['--config_file', os.path.join(folder, 'configs.yaml'), *overrides])
        row.dataset, row.losses = args.dataset_name, args.loss_names
        published = published_row(args)
        row.method = published.get('method', '')
        row.published = {metric: value for metric, value in zip(METRICS, published.get('values', ())) if value is not None}
        results = kept_results(args) or evaluated(args)
        elsewhere = results_elsewhere(args)
    except Exception as error:  # one broken run must not cost the table of all the others
        row.note = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        return [row]
    row.note = results.split_note if row.method else why_unpublished(args)
    if results.split_note:
        row.published = {}
    others = [Row(f'{row.run}, trained on {args.trained_on}', dataset, losses=row.losses, measured=found['t2i'], note=note)
              for dataset, found, note in elsewhere]
    row.measured = next(iter(results.tables.values()))['t2i']
    evaluations = read_evaluations(os.path.dirname(args.checkpoint))
    if args.dataset_name == args.trained_on and all(one.get('split') == 'test' for one in evaluations):
        row.training = best_last_mean(evaluations)
    if results.independent:
        return [row, *others]
    row.note = '; '.join(filter(None, [DEPENDS, row.note]))
    alone = Row(f'{row.run}, one by one', row.dataset, row.method, row.losses, results.tables[ONE_BY_ONE]['t2i'], row.published)
    return [row, alone, *others]


def kept_results(args):
    """The :class:`~processor.report.SavedResults` beside the checkpoint if they are of that checkpoint; else None."""
    kept = read_results(f"{beside_checkpoint(args, 'metrics')}.json", sha256_of(args.checkpoint))
    return kept if kept and kept.dataset == args.dataset_name else None


def results_elsewhere(args):
    """[(dataset, {task: summary}, note)] of the checkpoint on other datasets than the run's own, as far as test.py was run on them."""
    paths = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(args.checkpoint)), 'metrics_*.json')))
    checksum = sha256_of(args.checkpoint) if paths else None
    found = [kept for path in paths if (kept := read_results(path, checksum)) and kept.dataset != args.trained_on]
    note = 'another dataset than it was trained on, which no row is published for'
    return [(kept.dataset, next(iter(kept.tables.values())), '; '.join([DEPENDS] * (not kept.independent) + [note])) for kept in found]


def evaluated(args):
    """The :class:`~processor.report.SavedResults` of the checkpoint on the test split, also written as metrics.json."""
    print(f'evaluating {args.checkpoint} on {args.dataset_name}', file=sys.stderr)
    run = open_run(args)
    report = evaluate(args, run.model, run.images, run.captions, run.checkpoint)
    save_results(report, args)
    return SavedResults(args.dataset_name, report.tables, report.independent, counts_in(report.produced_by))


# -- which published row a run belongs to --------------------------------------------------------------------------------

def published_rows(dataset):
    """All that is published on a dataset."""
    path = os.path.join(PUBLISHED, f'{dataset.lower()}.yaml')
    return read_yaml(path)['results'] if os.path.exists(path) else []


def published_row(args):
    """The published row of a run's dataset, start, backbone, PHP parts and losses; {} if there is none."""
    rows = published_rows(args.dataset_name)
    start = start_of(args, {row['start'] for row in rows if 'start' in row})
    losses = set(parse_loss_names(args.loss_names))
    for row in rows:
        alike = row.get('start') == start and row.get('noisy_rate', 0) == getattr(args, 'noisy_rate', 0) and \
            php_parts(row) == args.php_parts and \
            row['backbone'] in ('ViT-B/16' if start else None, backbone(args.pretrain_choice))
        named = [row[key] for key in ('loss_names', 'also') if key in row]
        if alike and (any(set(parse_loss_names(names)) == losses for names in named) or not named and row['key'] == 'php'):
            return row   # without losses: the ablation of PHP's parts
    return {}


def start_of(args, known):
    """The pedestrian CLIP that a run started from: the name in the path of --init_from or --pretrain_choice; None for any other."""
    words = re.split('[^a-z]+', f'{args.init_from} {args.pretrain_choice}'.lower())
    return next((name for name in sorted(known) if name.lower() in words), None)


def only_published(dataset):
    """The rows of all that is published on a dataset, without a run."""
    return [Row('published', dataset, row['method'], row.get('loss_names', ''), published={
        metric: value for metric, value in zip(METRICS, row['values']) if value is not None}, note=str(row.get('year', '')))
            for row in published_rows(dataset)]


def why_unpublished(args):
    """Why a run has no published row."""
    path = os.path.join('configs', 'published', f'{args.dataset_name.lower()}.yaml')
    if not os.path.exists(os.path.join(ROOT, path)):
        return f'nothing is published on {args.dataset_name}'
    parts = f' and PHP {args.php_parts}' if args.php_parts else ''
    return f'no row in {path} with these losses, {args.pretrain_choice}{parts}'


def php_parts(row):
    return row.get('php_parts', 'crfm+efp' if row['key'] == 'php' else None)


def backbone(pretrain_choice):
    """OpenAI's name, also of a file such as ``weights/ViT-B-16.pt``."""
    return re.sub(r'^(ViT-[BL])-(\d+)', r'\1/\2', os.path.splitext(os.path.basename(pretrain_choice))[0]) \
        if pretrain_choice.endswith(('.pt', '.safetensors')) else pretrain_choice


if __name__ == '__main__':
    start(main)

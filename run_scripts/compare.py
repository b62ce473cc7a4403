"""Compare runs on the same test split: ``python -m run_scripts.compare RUN_A RUN_B [...]``.

    python -m run_scripts.compare logs/RSTPReid/<run a> logs/RSTPReid/<run b>
    python -m run_scripts.compare 'logs/ablation/irra_rstpreid/sdm_seed*' 'logs/ablation/irra_rstpreid/sdm+id_seed*'

A RUN is a folder with the metrics.json that test.py wrote, or such a file. A folder with several below it, a quoted pattern, or names
with commas between them are the seeds of one model. Each model is compared with the first, caption by caption: the difference, its 95%
interval (identities are drawn anew with all their captions, and so are seeds), and p: with one seed of each, of flipping the sign of
identities' differences; with several, of Student's t. Holm's correction is over the pairs of a metric. Then: which captions one finds and
the other doesn't.
"""
import functools
import glob
import itertools
import os
import sys
from dataclasses import dataclass

import numpy as np

from run_scripts import start
from datasets.registry import published_split_note
from processor.report import counts_in
from utils.checkpoint import sha256_of
from utils.csv_files import write_csv
from utils.errors import UserError, unknown
from utils.iotools import atomic_write, read_json, walk_folders
from utils.options import Effect, Parser, build_parser, whole
from utils.queries import Queries, read_queries
from utils.statistics import difference, holm, interval
from utils.tables import METRICS, FORMATS

# What may differ between the seeds of a model, beside the options without an effect on a result.
OF_A_SEED = {'seed', 'root_dir', 'checkpoint', 'i2t', 'one_by_one', 'eval_period', 'amp', 'micro_batch'}


@functools.lru_cache(maxsize=None)
def may_differ():
    """The options that say nothing of a model."""
    return OF_A_SEED | build_parser().without(Effect.RESULT)


@dataclass
class Run:
    """One training's results on a test split."""
    path: str            # of its metrics.json
    produced_by: dict
    queries: Queries
    independent: bool

    @property
    def options(self):
        return {name: value for name, value in self.produced_by.get('options', {}).items() if name not in may_differ()}


@dataclass
class Model:
    """The seeds of a model."""
    name: str
    runs: list

    def reaches(self, metric):
        """[S, Q] in percent."""
        return np.stack([run.queries.reaches(metric) for run in self.runs])

    def finds(self):
        """[Q] whether at least half of the seeds rank a match first."""
        return self.reaches('R1').mean(axis=0) >= 50


def main(argv=None):
    args = build_compare_parser().parse(sys.argv[1:] if argv is None else argv)
    if len(args.runs) < 2:
        raise UserError('a comparison needs two runs or more')
    models = [read_model(word, args) for word in args.runs]
    queries = refuse_different_splits([run for model in models for run in model.runs])
    pairs = list(itertools.combinations(models, 2)) if args.all_pairs else [(models[0], other) for other in models[1:]]
    texts = [*tables(args, models, pairs, queries.pids), *notes(models), *(captions(a, b, queries, args.captions) for a, b in pairs)]
    if args.out:
        write_captions(args.out, models, queries)
    print('\n\n'.join(texts))


def build_compare_parser():
    parser = Parser(prog='compare.py', description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='a folder, a metrics.json, or several of one model')
    parser.add_argument('--results', default='metrics.json', help="the file in runs' folders: metrics_<dataset>.json for another dataset's")
    parser.add_argument('--how', default='as loaded', help="which rankings: 'as loaded', 'shuffled', 'one by one' or, say, 're-ranked 128'")
    parser.add_argument('--task', default='t2i', help='t2i, i2t, or <part>-t2i: by a part of the embedding alone')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=['R1', 'mAP'], help='what is compared')
    parser.add_argument('--all_pairs', action='store_true', help='each model with each other, not only with the first')
    parser.add_argument('--captions', type=whole, default=3, help='how many of the captions that only one finds are shown')
    parser.add_argument('--out', metavar='FILE', help='write every caption and the share of seeds that find it, as CSV')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='how the tables are printed')
    return parser


# -- reading -------------------------------------------------------------------------------------------------------------

def read_model(word, args):
    """The :class:`Model` that a word of the command line names."""
    paths = [path for pattern in word.split(',') for path in results_in(pattern, args.results)]
    runs = [read_run(path, args.how, args.task) for path in paths]
    for run in runs[1:]:
        differing = [name for name in runs[0].options if run.options.get(name) != runs[0].options[name]]
        if differing:
            raise UserError(f"{runs[0].path} and {run.path} are no seeds of one model: they differ in {', '.join(differing)}")
    seen = {}
    for run in runs:
        other = seen.setdefault(run.produced_by.get('checkpoint_sha256', run.path), run)
        if other is not run:
            raise UserError(f'{other.path} and {run.path} are of the same weights; a model is to be named once')
    return Model(word.rstrip('/'), runs)


def results_in(pattern, name):
    """The paths of the results files in or below what a pattern names."""
    places = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not os.path.exists(pattern) else [pattern]
    found = []
    for place in places:
        if os.path.isfile(place):
            found.append(place)
        elif os.path.isfile(os.path.join(place, name)):
            found.append(os.path.join(place, name))
        else:
            found += sorted(os.path.join(folder, name) for folder, _, files in walk_folders(place) if name in files)
    if not found:
        lacking = f'there is no {name} in or below {pattern}' if places and os.path.exists(places[0]) else f'there is no run {pattern}'
        raise UserError(f'{lacking}: name a folder that test.py has evaluated (python test.py --config_file <run>/configs.yaml)')
    return found


def read_run(path, how, task):
    content = read_json(path)
    try:
        file, checksum, produced_by = content['queries']['file'], content['queries']['sha256'], content['produced_by']
        independent, _ = content['independence']['holds'], produced_by['split_sha256']
    except (KeyError, TypeError):
        raise UserError(f'{path} has no per-caption results: run test.py again, which writes them beside it') from None
    queries = os.path.join(os.path.dirname(path), file)
    if not os.path.isfile(queries) or sha256_of(queries) != checksum:
        raise UserError(f'{queries} is not there or of another evaluation than {path}: run test.py again')
    rankings = read_queries(queries)
    if (how, task) not in rankings:
        raise unknown(f'ranking in {queries}:', f'{how}, {task}', [', '.join(key) for key in rankings])
    return Run(path, produced_by, rankings[how, task], independent)


def refuse_different_splits(runs):
    """The queries that all runs share. Runs of other queries or galleries raise :class:`UserError`."""
    first = runs[0]
    for run in runs[1:]:
        if run.produced_by['split_sha256'] != first.produced_by['split_sha256']:
            raise UserError(f'{first.path} and {run.path} were tested on different galleries ({in_words(first)}; {in_words(run)}): '
                            'test both on the same split')
        if run.queries.names != first.queries.names or (run.queries.pids != first.queries.pids).any():
            raise UserError(f"{first.path} and {run.path} hold other queries although their galleries are the same: run test.py again")
    return first.queries


def in_words(run):
    by = run.produced_by
    return f"{by['dataset']}: {by['images']} images, {by['captions']} captions, sha256 {str(by['split_sha256'])[:8]}"


# -- what is told --------------------------------------------------------------------------------------------------------

def tables(args, models, pairs, pids):
    """The tables in each format: each model's metrics, and the differences."""
    by = models[0].runs[0].produced_by
    sides = f"{by['dataset']}: {len(pids)} {'images' if args.task == 'i2t' else 'captions'} of {len(set(pids.tolist()))} identities"
    metrics = [[model.name, str(len(model.runs)), *(metric_cell(model, metric, pids) for metric in args.metrics)] for model in models]
    differences = [row for metric in args.metrics for row in difference_rows(metric, pairs, pids)]
    heading = 'differences in percent points, 95% intervals; p, and p after Holm over the pairs of a metric'
    for name in args.format:
        yield FORMATS[name](f'{sides}; {args.how}, in percent with 95% intervals', ['model', 'n', *args.metrics], metrics)
        yield FORMATS[name](heading, ['models', 'metric', 'difference', 'interval', 'p', 'p (Holm)'], differences)


def metric_cell(model, metric, pids):
    values = model.reaches(metric)
    return '{:.2f} [{:.2f}, {:.2f}]'.format(values.mean(), *interval(values, pids))


def difference_rows(metric, pairs, pids):
    """A row for each pair: what the second has more than the first."""
    found = [difference(b.reaches(metric), a.reaches(metric), pids) for a, b in pairs]
    return [[f'{b.name} - {a.name}', metric, f'{one.value:+.2f}', f'[{one.low:+.2f}, {one.high:+.2f}]', as_p(one.p), as_p(adjusted)]
            for (a, b), one, adjusted in zip(pairs, found, holm([one.p for one in found]))]


def as_p(p):
    return f'{p:.3f}' if p >= 0.001 else f'{p:.4f}'


def notes(models):
    """What the tables cannot say for themselves."""
    single = [model.name for model in models if len(model.runs) == 1]
    dependent = [run.path for model in models for run in model.runs if not run.independent]
    splits = {str(run.produced_by.get('chosen_by_split')) for model in models for run in model.runs}
    by = models[0].runs[0].produced_by
    split_note = published_split_note(by.get('dataset'), counts_in(by))
    lines = [f'{split_note}; compare with no published figure'] * bool(split_note)
    if single:
        lines.append(f"one seed alone of {', '.join(single)}: what another seed would give is not in these intervals")
    if dependent:
        lines.append(f"EMBEDDINGS DEPEND ON THE BATCH in {', '.join(dependent)}: compare with --how 'one by one'")
    if len(splits) > 1:
        lines.append(f"the epochs were not chosen alike: by the splits {', '.join(sorted(splits))}")
    return ['\n'.join(lines)] if lines else []


def captions(a, b, queries, most):
    """How many captions one model finds and the other doesn't, and the first of them."""
    by_a, by_b = a.finds(), b.finds()
    alone = {f'only {a.name}': by_a & ~by_b, f'only {b.name}': by_b & ~by_a}
    counts = {'both': by_a & by_b, **alone, 'neither': ~(by_a | by_b)}
    lines = ['ranked first: ' + ', '.join(f'{who} {int(which.sum())}' for who, which in counts.items())]
    for who, which in alone.items():
        lines += [f'  {who}: pid {queries.pids[place]}, {queries.names[place]}' for place in np.flatnonzero(which)[:most]]
    return '\n'.join(lines)


def write_captions(path, models, queries):
    """Every caption, and the percentage of each model's seeds that rank a match first."""
    found = [model.reaches('R1').mean(axis=0).tolist() for model in models]
    with atomic_write(path) as file:
        write_csv(file, [['pid', 'query', *(model.name for model in models)]])
        write_csv(file, zip(queries.pids.tolist(), queries.names, *found))


if __name__ == '__main__':
    start(main)

"""Compare runs on the same test split, with confidence intervals and significance tests.

    python -m run_scripts.compare logs/RSTPReid/<run a> logs/RSTPReid/<run b>
    python -m run_scripts.compare 'logs/ablation/irra_rstpreid/sdm_seed*' \\
        'logs/ablation/irra_rstpreid/sdm+id_seed*'

A RUN is a folder with the metrics.json that test.py wrote, such a file, or a name such as RSTPReid/irra, the newest
run of this name below logs. Several runs are the seeds of one model: a folder with several runs in it, a quoted
pattern, or names with commas between them.

The tool compares each model with the first, caption by caption. It prints the options that differ between them, and the
difference of each metric with its 95% interval and p. The
interval comes from a bootstrap over identities (with all their captions) and over seeds. With one seed per model, p
comes from flipping the signs of the differences of identities. With several seeds, p comes from Student's t. Holm's
correction is over the pairs of a metric. Finally the tool prints captions that only one of two models finds.
"""
import functools
import glob
import itertools
import os
import sys
from dataclasses import dataclass

import numpy as np

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from datasets.registry import published_split_note
from utils.csv_files import write_csv
from utils.errors import UserError, run_program
from utils.iotools import atomic_write, walk_folders
from utils.option_types import non_negative_int
from utils.options import Effect, Parser, build_parser, to_plain_value
from utils.run_aliases import LOGS, find_run_folder, remove_time
from utils.statistics import compare_means, holm_correction, bootstrap_interval
from utils.tables import FORMATS, METRICS

# Options that may differ between the seeds of a model, besides the options without an effect on a result.
SEED_OPTIONS = {'seed', 'root_dir', 'checkpoint', 'split', 'distractors', 'i2t', 'one_by_one', 'eval_period', 'amp',
                'micro_batch', 'by', 'lexicon'}


@functools.lru_cache(maxsize=None)
def ignored_options():
    """The names of the options that do not define a model."""
    return SEED_OPTIONS | build_parser().options_without(Effect.RESULT)


@functools.lru_cache(maxsize=None)
def default_options():
    """{option: default} of the options that define a model."""
    return {name: to_plain_value(value) for name, value in build_parser().defaults_in_code.items()
            if name not in ignored_options()}


@dataclass
class Run:
    """The results of one training run on a test split.

    Attributes:
        path: the file of its metrics.json.
        produced_by: the provenance in that file.
        queries: the :class:`~utils.queries.QueryResults` of its test.
        independent: whether its embeddings do not depend on the batch.
    """
    path: str
    produced_by: dict
    queries: object
    independent: bool

    @property
    def options(self):
        """The options that define the model."""
        ignored = ignored_options()
        return {name: value for name, value in self.produced_by.get('options', {}).items() if name not in ignored}


@dataclass
class Model:
    """A model.

    Attributes:
        word: what the command line names it.
        name: its name in the tables.
        runs: a :class:`Run` per seed.
    """
    word: str
    name: str
    runs: list

    @property
    def options(self):
        """The options that define the model, with their defaults in runs of an older version."""
        return {**default_options(), **self.runs[0].options}

    def metric_values(self, metric):
        """The metric of each seed and query, [S, Q] in percent."""
        return np.stack([run.queries.metric_values(metric) for run in self.runs])

    def is_found(self):
        """[Q] whether at least half of the seeds rank a match first."""
        return self.metric_values('R1').mean(axis=0) >= 50


def main(argv=None):
    args = build_compare_parser().parse(sys.argv[1:] if argv is None else argv)
    if len(args.runs) < 2:
        raise UserError(f'a comparison needs two runs or more, and the command line names {len(args.runs)}')
    models = [read_model(word, name, args) for word, name in zip(args.runs, short_names(args.runs))]
    queries = require_same_split([run for model in models for run in model.runs])
    pairs = (list(itertools.combinations(models, 2)) if args.all_pairs
             else [(models[0], other) for other in models[1:]])
    texts = [*format_options(args, models), *format_tables(args, models, pairs, queries.pids), *format_notes(models),
             *(format_captions(a, b, queries, args.captions) for a, b in pairs)]
    if args.out:
        write_captions(args.out, models, queries)
    print('\n\n'.join(texts))


def build_compare_parser():
    parser = Parser(prog='compare.py', description=__doc__, usage='%(prog)s RUN RUN [RUN ...] [--<option> VALUE ...]')
    parser.add_argument('runs', nargs='+', metavar='RUN',
                        help='folder, metrics.json or name of a run, or of the seeds of a model')
    parser.add_argument('--results', default='metrics.json',
                        help="name of the results file in a run's folder; metrics_<dataset>.json for another dataset")
    parser.add_argument('--how', default='as loaded',
                        help="rankings to compare: 'as loaded', 'shuffled', 'one by one' or 're-ranked <K>'")
    parser.add_argument('--task', default='t2i',
                        help='retrieval task: t2i, i2t, or <part>-t2i for one part of the embedding')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=['R1', 'mAP'], help='metrics to compare')
    parser.add_argument('--all_pairs', action='store_true',
                        help='compare each model with each other model, not only with the first')
    parser.add_argument('--captions', type=non_negative_int, default=3,
                        help='number of captions to print that only one of two models finds')
    parser.add_argument('--out', metavar='FILE',
                        help='CSV file of all captions, with the percentage of seeds that find each')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='formats of the printed tables')
    parser.run_options = {'runs'}
    return parser


# -- reading ---------------------------------------------------------------------------------------------------------

def short_names(words):
    """The names of models in tables: the ends of their paths, as long as they differ.

    Example:
        >>> short_names(['logs/RSTPReid/20260131_120000_irra/', 'logs/RSTPReid/20260131_130000_sen'])
        ['irra', 'sen']
        >>> short_names(['logs/RSTPReid/20260131_120000_irra', 'logs/RSTPReid/20260131_130000_irra'])
        ['20260131_120000_irra', '20260131_130000_irra']
        >>> short_names(['a/sdm_seed1,a/sdm_seed2', 'b/sdm_seed1,b/sdm_seed2'])
        ['a/sdm_seed1,a/sdm_seed2', 'b/sdm_seed1,b/sdm_seed2']
    """
    paths = [[path.rstrip('/').split('/') for path in word.split(',')] for word in words]
    longest = max(len(parts) for model in paths for parts in model)
    candidates = [[','.join('/'.join([*parts[-length:-1], shorten(parts[-1])]) for parts in model) for model in paths]
                  for length in range(1, longest + 1) for shorten in (remove_time, str)]
    return next((names for names in candidates if len(set(names)) == len(names)), words)


def read_model(word, name, args):
    """The :class:`Model` that a word of the command line names.

    Raises:
        UserError: the runs are not seeds of one model, or two of them have the same weights.
    """
    paths = [path for pattern in word.split(',') for path in find_results(pattern, args.results)]
    runs = [read_run(path, args.how, args.task) for path in paths]
    first = runs[0].options
    for run in runs[1:]:
        differing = [name for name in first if run.options.get(name) != first[name]]
        if differing:
            raise UserError(f"{runs[0].path} and {run.path} are not seeds of one model: they differ in "
                            f"{', '.join(differing)}; name them as two models, with a space between them")
    by_checkpoint = {}
    for run in runs:
        other = by_checkpoint.setdefault(run.produced_by.get('checkpoint_sha256', run.path), run)
        if other is not run:
            raise UserError(f'{other.path} and {run.path} have the same weights; name each run once')
    return Model(word.rstrip('/'), name, runs)


def find_results(pattern, name):
    """The paths of the results files in or below the folders that a pattern names."""
    is_pattern = glob.has_magic(pattern) and not os.path.exists(pattern)
    is_path = is_pattern or os.path.exists(pattern)
    path = pattern if is_path else find_run_folder(pattern) or pattern
    matches = sorted(glob.glob(pattern)) if is_pattern else [path]
    paths = []
    for match in matches:
        if os.path.isfile(match):
            paths.append(match)
        elif os.path.isfile(os.path.join(match, name)):
            paths.append(os.path.join(match, name))
        else:
            paths += sorted(os.path.join(folder, name) for folder, _, files in walk_folders(match) if name in files)
    if not paths:
        problem = (f'there is no {name} in or below {pattern}' if matches and os.path.exists(matches[0])
                   else f'there is no run {pattern}, and none of this name below {LOGS}')
        raise UserError(f'{problem}: name a folder that test.py has evaluated '
                        '(python test.py --config_file <run>/configs.yaml)')
    return paths


def read_run(path, how, task):
    """The :class:`Run` of a metrics.json. Raises :class:`~utils.errors.UserError`."""
    from processor.results import read_evaluated_queries
    results, queries = read_evaluated_queries(path, how, task)
    return Run(path, results.provenance, queries, results.is_independent)


def require_same_split(runs):
    """The queries that all runs share.

    Raises:
        UserError: the runs have different queries or galleries.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.produced_by['split_sha256'] != first.produced_by['split_sha256']:
            raise UserError(f'{first.path} and {run.path} were tested on different galleries '
                            f'({describe_split(first)}; {describe_split(run)}): test both on the same split')
        if run.queries.names != first.queries.names or (run.queries.pids != first.queries.pids).any():
            raise UserError(f'{first.path} and {run.path} have the same gallery but different queries: '
                            'run test.py again for both')
    return first.queries


def describe_split(run):
    by = run.produced_by
    return f"{by['dataset']}: {by['images']} images, {by['captions']} captions, sha256 {str(by['split_sha256'])[:8]}"


# -- output ----------------------------------------------------------------------------------------------------------

def format_options(args, models):
    """Yield a table of the options that differ between models, in each format; nothing if none differs."""
    options = [model.options for model in models]
    names = sorted({name for values in options for name in values
                    if any(other.get(name) != values[name] for other in options)})
    rows = [[name, *(format_value(values.get(name)) for values in options)] for name in names]
    for name in args.format if rows else ():
        yield FORMATS[name]('options that differ', ['option', *(model.name for model in models)], rows)


def format_value(value):
    """An option's value as a user types it."""
    return ' '.join(map(str, value)) if isinstance(value, list) else '' if value is None else str(value)


def format_tables(args, models, pairs, pids):
    """Yield the tables in each format: the metrics of each model, and the differences."""
    from processor.provenance import evaluated_split
    by = models[0].runs[0].produced_by
    split = '' if evaluated_split(by) == 'test' else f' {evaluated_split(by)}'
    kind, identities = 'images' if args.task == 'i2t' else 'captions', len(set(pids.tolist()))
    title = (f"{by['dataset']}{split}: {len(pids)} {kind} of {identities} identities; "
             f'{args.how}, in percent with 95% intervals')
    metrics = [[model.name, str(len(model.runs)), *(format_metric(model, metric, pids) for metric in args.metrics)]
               for model in models]
    differences = [row for metric in args.metrics for row in difference_rows(metric, pairs, pids)]
    difference_title = 'differences in percent points, 95% intervals; p, and p after Holm over the pairs of a metric'
    for name in args.format:
        yield FORMATS[name](title, ['model', 'n', *args.metrics], metrics)
        yield FORMATS[name](difference_title, ['models', 'metric', 'difference', 'interval', 'p', 'p (Holm)'],
                            differences)


def format_metric(model, metric, pids):
    values = model.metric_values(metric)
    return '{:.2f} [{:.2f}, {:.2f}]'.format(values.mean(), *bootstrap_interval(values, pids))


def difference_rows(metric, pairs, pids):
    """A row for each pair: the second model minus the first."""
    results = [compare_means(b.metric_values(metric), a.metric_values(metric), pids) for a, b in pairs]
    adjusted = holm_correction([result.p for result in results])
    return [[f'{b.name} - {a.name}', metric, f'{result.value:+.2f}', f'[{result.low:+.2f}, {result.high:+.2f}]',
             format_p(result.p), format_p(p)] for (a, b), result, p in zip(pairs, results, adjusted)]


def format_p(p):
    return f'{p:.3f}' if p >= 0.001 else f'{p:.4f}'


def format_notes(models):
    """Limits of the comparison as one text, in a list; an empty list if there are none."""
    from processor.provenance import evaluated_split, split_counts
    single = [model.name for model in models if len(model.runs) == 1]
    dependent = [run.path for model in models for run in model.runs if not run.independent]
    splits = {str(run.produced_by.get('chosen_by_split')) for model in models for run in model.runs}
    by = models[0].runs[0].produced_by
    split_note = published_split_note(by.get('dataset'), split_counts(by), evaluated_split(by))
    lines = [f'{split_note}; compare with no published figure'] * bool(split_note)
    if single:
        lines.append(f"only one seed of {', '.join(single)}: these intervals do not cover the variation between seeds")
    if dependent:
        lines.append(f"EMBEDDINGS DEPEND ON THE BATCH in {', '.join(dependent)}: compare with --how 'one by one'")
    if len(splits) > 1:
        lines.append(f"the best epochs were selected on different splits: {', '.join(sorted(splits))}")
    return ['\n'.join(lines)] if lines else []


def format_captions(a, b, queries, limit):
    """How many captions only one model finds, and the first ``limit`` of them."""
    by_a, by_b = a.is_found(), b.is_found()
    only_one = {f'only {a.name}': by_a & ~by_b, f'only {b.name}': by_b & ~by_a}
    masks = {'both': by_a & by_b, **only_one, 'neither': ~(by_a | by_b)}
    lines = ['ranked first: ' + ', '.join(f'{name} {int(mask.sum())}' for name, mask in masks.items())]
    for name, mask in only_one.items():
        lines += [f'  {name}: pid {queries.pids[index]}, {queries.names[index]}'
                  for index in np.flatnonzero(mask)[:limit]]
    return '\n'.join(lines)


def write_captions(path, models, queries):
    """Write every caption, and the percentage of each model's seeds that rank a match first."""
    percentages = [model.metric_values('R1').mean(axis=0).tolist() for model in models]
    with atomic_write(path) as file:
        write_csv(file, [['pid', 'query', *(model.word for model in models)]])
        write_csv(file, zip(queries.pids.tolist(), queries.names, *percentages))


if __name__ == '__main__':
    run_program(main)

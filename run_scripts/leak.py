"""Measure how much attention across the batch raises the metrics, on synthetic pedestrians.

    bash run_scripts/quickstart.sh
    python -m run_scripts.leak --init_from logs/synthpedes/<quickstart's run>/best.pth

The tool trains the quickstart's losses without and with PHP's parsing, three seeds each. PHP's attention runs within a
sample (slots) or, as in its reference implementation, across the batch (batch). The tool tests every run. It tests runs
whose embeddings depend on the batch in three orders: as the loaders sort them, which is by identity, shuffled, and one
by one. It writes leak.md and leak.png with the metrics and their differences. The 95% intervals come from a bootstrap
over identities and seeds.

All options after -- go to every train.py. After an interruption, the same command continues.
"""
import glob
import os
import sys

import numpy as np

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts import ROOT
from run_scripts.ablation.grid import build_ablation_parser, build_grid
from run_scripts.ablation.training import run_grid
from utils.commands import command_line
from utils.errors import UserError, run_program
from utils.figures import import_pyplot, save_figure
from utils.iotools import atomic_write
from utils.option_types import non_negative_int
from utils.options import Parser, build_test_parser, parse_test_options
from utils.parser import split_at_dashes
from utils.statistics import compare_means, bootstrap_interval
from utils.tables import format_markdown

RECIPE = os.path.join(ROOT, 'configs', 'synthpedes', 'quickstart.yaml')
# PHP's parts at the size of the quickstart's model.
PHP_OPTIONS = ['--moe_layers', '2', '--moe_heads', '2', '--num_experts', '4', '--moe_lr_factor', '1',
               '--transformer_lr_factor', '1']
GRIDS = {'plain': ['--loss_names', 'sdm+itc'],
         'php': ['--loss_names', 'sdm+itc+aux', '--vary', 'php_attention', 'slots', 'batch']}
MODELS = {'sdm+itc': ('plain', ('sdm+itc',)),      # {name: (grid, setting of its cells)}
          'slots': ('php', ('sdm+itc+aux', 'slots')),
          'batch': ('php', ('sdm+itc+aux', 'batch'))}
ORDERS = ('as loaded', 'shuffled', 'one by one')


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    tool_words, train_words = split_at_dashes(argv)
    args = build_leak_parser().parse(tool_words)
    init_from = ['--init_from', args.init_from] if args.init_from else []
    common = ['--root_dir', args.root_dir, *init_from, *PHP_OPTIONS, *train_words]
    cells = {}
    for name, settings in GRIDS.items():
        grid_args = build_ablation_parser().parse([
            '--config_file', RECIPE, *settings, '--seeds', *map(str, args.seeds),
            '--output_dir', os.path.join(args.out, name)])
        status = run_grid(grid_args, common, command_line(__file__, argv))
        if status:
            return status
        cells[name] = build_grid(grid_args, common)[1]
    runs = {name: [evaluate_cell(cell) for cell in cells[grid] if cell.setting == setting]
            for name, (grid, setting) in MODELS.items()}
    text = format_report(runs)
    with atomic_write(os.path.join(args.out, 'leak.md')) as file:
        file.write(f'{text}\n')
    save_figure(draw_metrics(runs), os.path.join(args.out, 'leak.png'), dpi=100)
    print(text)
    return 0


def build_leak_parser():
    parser = Parser(prog='leak.py', description=__doc__,
                    usage='%(prog)s [--<option> VALUE ...] [-- <options of train.py>]')
    parser.add_argument('--root_dir', default='data', help='folder with synthpedes')
    parser.add_argument('--init_from', help='checkpoint whose weights all runs start from')
    parser.add_argument('--seeds', nargs='+', type=non_negative_int, default=[1, 2, 3],
                        help='random seeds of each model')
    parser.add_argument('--out', default=os.path.join('logs', 'leak'),
                        help='folder of the runs, the table and the figure')
    return parser


def evaluate_cell(cell):
    """``{order: QueryResults}`` of a trained cell; three orders if its embeddings depend on the batch."""
    from processor.report import evaluate_and_save
    from processor.results import read_queries, result_path
    configs = glob.glob(os.path.join(glob.escape(cell.folder), '*', '*', 'configs.yaml'))
    if len(configs) != 1:
        raise UserError(f'{cell.folder} has {len(configs)} runs, expected 1: remove it and start again')
    options = parse_test_options(build_test_parser('leak.py', ''), ['--config_file', configs[0]])
    path = result_path(options, 'queries.csv')
    if not os.path.exists(path):
        print(f'testing {options.checkpoint}', file=sys.stderr)
        evaluate_and_save(options)
    return {order: queries for (order, task), queries in read_queries(path).items() if task == 't2i'}


# -- the report ------------------------------------------------------------------------------------------------------
# ``runs`` is {model name: [{order: QueryResults} of each seed]}.

def query_metrics(seeds, order, metric):
    """The metric of each seed and query, [S, Q] in percent."""
    return np.stack([queries[order].metric_values(metric) for queries in seeds])


def format_report(runs):
    """Two tables in Markdown: the metrics of each model in each order, and the differences between them."""
    first = next(iter(runs.values()))
    pids = first[0]['as loaded'].pids
    metrics = [[name, order, *(format_metric(query_metrics(seeds, order, metric), pids) for metric in ('R1', 'mAP'))]
               for name, seeds in runs.items() for order in seeds[0]]
    differences = [[name, *(format_difference(a(metric), b(metric), pids) for metric in ('R1', 'mAP'))]
                   for name, a, b in list_differences(runs)]
    title = (f'mean of {len(first)} seeds in percent, {len(pids)} captions of {len(set(pids.tolist()))} people, '
             '95% intervals')
    return '\n\n'.join([format_markdown(title, ['model', 'embedded', 'R1', 'mAP'], metrics),
                        format_markdown('differences in percent points', ['', 'R1', 'mAP'], differences)])


def list_differences(runs):
    """``[(name, a, b), ...]``; a and b are functions from a metric to values of queries, and a - b is the difference.

    Two orders of the same weights are paired by seed: a holds the differences of the seeds, and b is 0.
    """
    def metrics_of(name, order):
        return lambda metric: query_metrics(runs[name], order, metric)

    def change(order, other):
        return lambda metric: (query_metrics(runs['batch'], order, metric)
                               - query_metrics(runs['batch'], other, metric))

    def zeros(metric):
        return np.zeros(len(runs['batch'][0]['as loaded'].pids))
    return [('batch: as loaded - one by one', change('as loaded', 'one by one'), zeros),
            ('batch: as loaded - shuffled', change('as loaded', 'shuffled'), zeros),
            ('batch: shuffled - one by one', change('shuffled', 'one by one'), zeros),
            ('batch as loaded - slots', metrics_of('batch', 'as loaded'), metrics_of('slots', 'as loaded')),
            ('batch one by one - slots', metrics_of('batch', 'one by one'), metrics_of('slots', 'as loaded')),
            ('slots - sdm+itc', metrics_of('slots', 'as loaded'), metrics_of('sdm+itc', 'as loaded'))]


def format_metric(values, pids):
    low, high = bootstrap_interval(values, pids)
    return f'{values.mean():.2f} [{low:.2f}, {high:.2f}]'


def format_difference(a, b, pids):
    result = compare_means(a, b, pids)
    return f'{result.value:+.2f} [{result.low:+.2f}, {result.high:+.2f}]'


def draw_metrics(runs):
    """A figure of Rank-1 of each model in each order, with intervals, and a dot for each seed."""
    plt = import_pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.2), layout='constrained')
    for position, (name, seeds) in enumerate(runs.items()):
        for order in seeds[0]:
            number = ORDERS.index(order)
            values = query_metrics(seeds, order, 'R1')
            mean, (low, high) = values.mean(), bootstrap_interval(values, seeds[0][order].pids)
            x, color = position + 0.22 * (number - 1) * (len(seeds[0]) > 1), f'C{number}'
            axes.errorbar(x, mean, [[mean - low], [high - mean]], fmt='s', color=color, capsize=4,
                          label=order if name == 'batch' else None)
            axes.plot([x + 0.05] * len(values), values.mean(axis=1), '.', color=color, alpha=0.6)
    axes.set_xticks(range(len(runs)), runs)
    axes.set_ylabel('Rank-1 in percent')
    axes.set_ylim(bottom=0)
    axes.legend(title='embedded', frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    return figure


if __name__ == '__main__':
    run_program(main)

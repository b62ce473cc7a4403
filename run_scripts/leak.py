"""What attention across the batch adds to the figures, measured on synthetic pedestrians.

    bash run_scripts/quickstart.sh
    python -m run_scripts.leak --init_from logs/synthpedes/<quickstart's run>/best.pth

Trains the quickstart's losses alone and with PHP's parsing, whose attention runs within a sample (slots) or, as released, across the
batch (batch), with three seeds each. Tests every run, and those whose embeddings depend on the batch three ways: as the loaders are
ordered, which is by identity, shuffled, and one by one. Writes leak.md and leak.png: metrics and differences with 95% intervals, for which
identities and seeds are drawn anew. What follows -- goes to every train.py. Interrupted, the same command goes on.
"""
import glob
import os
import sys

import numpy as np

from run_scripts import ROOT, ablate, start
from processor.report import beside_checkpoint, evaluate, save_results
from processor.runs import open_run
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.options import Parser, build_test_parser, parse_test_options, whole
from utils.pictures import pyplot, save_picture
from utils.queries import read_queries
from utils.statistics import difference, interval
from utils.tables import as_markdown

RECIPE = os.path.join(ROOT, 'configs', 'synthpedes', 'quickstart.yaml')
# PHP's parts at the size of the quickstart's model.
PHP = ['--moe_layers', '2', '--moe_heads', '2', '--num_experts', '4', '--moe_lr_factor', '1', '--transformer_lr_factor', '1']
GRIDS = {'plain': ['--loss_names', 'sdm+itc'], 'php': ['--loss_names', 'sdm+itc+aux', '--vary', 'php_attention', 'slots', 'batch']}
MODELS = {'sdm+itc': ('plain', ('sdm+itc',)), 'slots': ('php', ('sdm+itc+aux', 'slots')), 'batch': ('php', ('sdm+itc+aux', 'batch'))}
WAYS = ('as loaded', 'shuffled', 'one by one')


def main(argv=None):
    own, after = ablate.split_at_dashes(list(sys.argv[1:] if argv is None else argv))
    args = build_leak_parser().parse(own)
    common = ['--root_dir', args.root_dir, *(['--init_from', args.init_from] if args.init_from else []), *PHP, *after]
    cells = {}
    for name, settings in GRIDS.items():
        command = ['--config_file', RECIPE, *settings, '--seeds', *map(str, args.seeds), '--output_dir', os.path.join(args.out, name)]
        status = ablate.main([*command, '--', *common])
        if status:
            return status
        cells[name] = ablate.build_grid(ablate.build_ablation_parser().parse(command), common)[1]
    found = {name: [tested(cell) for cell in cells[grid] if cell.setting == setting] for name, (grid, setting) in MODELS.items()}
    text = report(found)
    with atomic_write(os.path.join(args.out, 'leak.md')) as file:
        file.write(f'{text}\n')
    save_picture(draw(found), os.path.join(args.out, 'leak.png'), dpi=100)
    print(text)
    return 0


def build_leak_parser():
    parser = Parser(prog='leak.py', description=__doc__)
    parser.add_argument('--root_dir', default='data', help='the folder with synthpedes')
    parser.add_argument('--init_from', help='weights that all start from')
    parser.add_argument('--seeds', nargs='+', type=whole, default=[1, 2, 3], help='of each model')
    parser.add_argument('--out', default=os.path.join('logs', 'leak'), help='the folder of the runs, the table and the figure')
    return parser


def tested(cell):
    """{way: Queries} of a trained cell; three ways where its embeddings depend on the batch."""
    configs = glob.glob(os.path.join(glob.escape(cell.folder), '*', '*', 'configs.yaml'))
    if len(configs) != 1:
        raise UserError(f'{cell.folder} holds {len(configs)} runs where it should hold one; remove it and start again')
    options = parse_test_options(build_test_parser('leak.py', ''), ['--config_file', configs[0]])
    path = f"{beside_checkpoint(options, 'queries')}.csv"
    if not os.path.exists(path):
        print(f'testing {options.checkpoint}', file=sys.stderr)
        run = open_run(options)
        save_results(evaluate(options, run.model, run.images, run.captions, run.checkpoint), options)
    return {way: queries for (way, task), queries in read_queries(path).items() if task == 't2i'}


# -- what is told --------------------------------------------------------------------------------------------------------

def reached(runs, way, metric):
    """[S, Q] what the queries of each seed reach."""
    return np.stack([run[way].reaches(metric) for run in runs])


def report(found):
    """Two tables in Markdown: the metrics of each model each way, and the differences that matter."""
    pids = next(iter(found.values()))[0]['as loaded'].pids
    metrics = [[name, way, *(in_words(*mean_and_interval(reached(runs, way, metric), pids)) for metric in ('R1', 'mAP'))]
               for name, runs in found.items() for way in runs[0]]
    lines = [[what, *(difference_in_words(a(metric), b(metric), pids) for metric in ('R1', 'mAP'))] for what, a, b in differences(found)]
    seeds, people = len(next(iter(found.values()))), len(set(pids.tolist()))
    heading = f'mean of {seeds} seeds in percent, {len(pids)} captions of {people} people, 95% intervals'
    return '\n\n'.join([as_markdown(heading, ['model', 'embedded', 'R1', 'mAP'], metrics),
                        as_markdown('differences in percent points', ['', 'R1', 'mAP'], lines)])


def differences(found):
    """(what, the one's values by metric, the other's). Of the same weights embedded in two ways, seeds are paired as captions are."""
    def of(name, way):
        return lambda metric: reached(found[name], way, metric)

    def change(way, other):
        return lambda metric: reached(found['batch'], way, metric) - reached(found['batch'], other, metric)

    def nothing(metric):
        return np.zeros(len(found['batch'][0]['as loaded'].pids))
    return [('batch: as loaded - one by one', change('as loaded', 'one by one'), nothing),
            ('batch: as loaded - shuffled', change('as loaded', 'shuffled'), nothing),
            ('batch: shuffled - one by one', change('shuffled', 'one by one'), nothing),
            ('batch as loaded - slots', of('batch', 'as loaded'), of('slots', 'as loaded')),
            ('batch one by one - slots', of('batch', 'one by one'), of('slots', 'as loaded')),
            ('slots - sdm+itc', of('slots', 'as loaded'), of('sdm+itc', 'as loaded'))]


def mean_and_interval(values, pids):
    return values.mean(), *interval(values, pids)


def in_words(mean, low, high):
    return f'{mean:.2f} [{low:.2f}, {high:.2f}]'


def difference_in_words(a, b, pids):
    one = difference(a, b, pids)
    return f'{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]'


def draw(found):
    """Rank-1 of each model each way, with intervals, and each seed as a dot."""
    plt = pyplot()
    picture, axes = plt.subplots(figsize=(7, 3.2), layout='constrained')
    for place, (name, runs) in enumerate(found.items()):
        for way in runs[0]:
            number = WAYS.index(way)
            values = reached(runs, way, 'R1')
            mean, low, high = mean_and_interval(values, runs[0][way].pids)
            x, colour = place + 0.22 * (number - 1) * (len(runs[0]) > 1), f'C{number}'
            axes.errorbar(x, mean, [[mean - low], [high - mean]], fmt='s', color=colour, capsize=4, label=way if name == 'batch' else None)
            axes.plot([x + 0.05] * len(values), values.mean(axis=1), '.', color=colour, alpha=0.6)
    axes.set_xticks(range(len(found)), found)
    axes.set_ylabel('Rank-1 in percent')
    axes.set_ylim(bottom=0)
    axes.legend(title='embedded', frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    return picture


if __name__ == '__main__':
    start(main)

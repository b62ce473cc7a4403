"""List published checkpoints, and check whether a downloaded one gives the published figures.

    python -m run_scripts.zoo list
    python -m run_scripts.zoo verify RUN --root_dir data
    python -m run_scripts.zoo verify configs/tbps-clip.yaml --checkpoint checkpoint_best.pth
    python -m run_scripts.zoo verify --backbone aptm --checkpoint checkpoint_best.pth

list prints the published checkpoints with their figures, their recipe and the repository that links to them. Pedestal
downloads none of them.

verify is for a folder that you downloaded. It prints which method and dataset its options are of, the size and the
sha256 of its checkpoint, and its test next to the published row. The last line says matches, differs or unknown.
Options of test.py, such as --root_dir, follow RUN. The exit status is 0 if it matches, and 1 if not.
"""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from model.loss_names import parse_loss_names
from run_scripts import ROOT
from run_scripts.published_results import published_metrics, published_row, read_published_rows, unpublished_reason
from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program, unknown_name_error
from utils.options import Parser, build_test_parser, parse_test_options, read_yaml, replace_options
from utils.recipes import is_reference_config, read_options
from utils.rerank_options import read_rerank_settings
from utils.tables import FORMATS

ZOO = os.path.join(ROOT, 'configs', 'zoo.yaml')
# In percent points: the rounding of a table, and two captions whose rank half precision changes.
TOLERANCE = 0.05
RERANKED_IMAGES = 128     # that the published figures with re-ranking score again
COMMANDS = ('list', 'verify')


def main(argv=None):
    command, *words = (sys.argv[1:] if argv is None else argv) or ['list']
    if command == 'verify':
        return verify(words)
    if not command.startswith('-') and command not in COMMANDS:
        raise unknown_name_error('command', command, COMMANDS)
    args = build_list_parser().parse(words if command == 'list' else [command, *words])
    print_list(args)
    return 0


def build_list_parser():
    parser = Parser(prog='zoo.py', description=__doc__,
                    usage='%(prog)s [list [--<option> VALUE ...] | verify RUN [--<option of test.py> VALUE ...]]')
    parser.add_argument('--dataset_name', help='dataset whose checkpoints to list (default: all)')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='formats of the printed table')
    return parser


def read_zoo():
    """The entries of configs/zoo.yaml, a list of dicts."""
    return read_yaml(ZOO)['checkpoints']


# -- list ------------------------------------------------------------------------------------------------------------

def print_list(args):
    header = ['dataset', 'method', 'weights', 'file', 'size', 'sha256', 'R1', 'mAP', 'recipe', 'source']
    rows = [list_row(entry, dataset) for entry in read_zoo() for dataset in entry['files']]
    datasets = sorted({row[0] for row in rows})
    if args.dataset_name:
        if args.dataset_name not in datasets:
            raise unknown_name_error('--dataset_name', args.dataset_name, datasets)
        datasets = [args.dataset_name]
    for name in args.format:
        print('\n\n'.join(FORMATS[name](f'{dataset}: published checkpoints (? is unknown), Rank-1 and mAP in percent',
                                        header[1:], [row[1:] for row in rows if row[0] == dataset])
                          for dataset in datasets))


def list_row(entry, dataset):
    """The cells of an entry on a dataset."""
    file, metrics = entry['files'][dataset] or {}, published_metrics(find_row(entry['method'], dataset))
    figures = [f'{metrics[name]:.2f}' if name in metrics else '?' for name in ('R1', 'mAP')]
    size = file.get('bytes')
    return [dataset, entry['method'], entry['weights'] or '?', entry['file'] or '?', f'{size:,}' if size else '?',
            (file.get('sha256') or '?')[:8], *figures, entry['recipe'], entry['source'] or '?']


def find_row(method, dataset):
    """The published row of a method on a dataset, or {}."""
    return next((row for row in read_published_rows(dataset) if row['method'] == method), {})


# -- verify ----------------------------------------------------------------------------------------------------------

def verify(words):
    """Verify a downloaded run, and return the exit status."""
    is_run = words and not words[0].startswith('-')
    if not is_run and not {'-h', '--help', '--backbone'} & set(words):
        raise UserError("verify needs a run: zoo verify RUN, the folder that you downloaded, or its configs.yaml; give "
                        'the options of test.py after it')
    args = read_run(words)
    if args.checkpoint is None:
        raise UserError('verify needs a checkpoint: name the folder that you downloaded')
    row, entry = identify(args)
    if entry.get('rerank') and not args.rerank:
        args = replace_options(args, rerank=RERANKED_IMAGES, rerank_score=entry['rerank'])
    print('\n'.join(describe_file(args, row, entry)))
    verdict, lines = compare_with_row(args, row)
    print('\n'.join([*lines, verdict]))
    return 0 if verdict.startswith('matches') else 1


@retry_with_pytorch
def read_run(words):
    """The options of test.py for a run; the first word is the run, or a flag if the checkpoint has no configs.yaml."""
    parser = build_test_parser('zoo.py', __doc__)
    return parse_test_options(parser, words if words[0].startswith('-') else ['--config_file', *words])


def identify(args):
    """The published row and the entry of the zoo that a run belongs to: ``(row, entry)``, {} for each that is unknown.

    A method whose published row names no losses is found by its recipe.
    """
    row, entries = published_row(args), read_zoo()
    if row:
        return row, next((entry for entry in entries if entry['method'] == row['method']), {})
    entry = next((entry for entry in entries if is_of_recipe(args, entry['recipe'])), {})
    return find_row(entry.get('method'), args.dataset_name), entry


def is_of_recipe(args, recipe):
    """Whether a run has the losses, the backbone and the tuning of a recipe without noise in its captions."""
    options = read_yaml(os.path.join(ROOT, 'configs', recipe))
    backbone, tuning = options.get('backbone', 'clip'), options.get('tuning', 'none')
    if (args.backbone, args.tuning, args.noisy_rate, args.init_from) != (backbone, tuning, 0, ''):
        return False
    losses = [set(parse_loss_names(names, backbone, tuning)) for names in (args.loss_names, options['loss_names'])]
    return losses[0] == losses[1]


def describe_file(args, row, entry):
    """Lines on a run's options and its checkpoint."""
    from utils.weight_files import compute_sha256
    is_reference = args.config_file and is_reference_config(read_options(args.config_file))
    source = 'a reference implementation' if is_reference else 'Pedestal, or a recipe'
    method = row.get('method') or entry.get('method') or f'unknown ({unpublished_reason(args)})'
    yield f'options: {args.config_file or "of the checkpoint"}, written by {source}; --loss_names {args.loss_names}'
    yield f'method: {method}; trained on {args.config.data.trained_on}, tested on {args.dataset_name}'
    checksum, known = compute_sha256(args.checkpoint), (entry.get('files', {}).get(args.dataset_name) or {})
    expected = known.get('sha256')
    comparison = ('the zoo has no checksum of this file yet' if not expected else
                  'the published file' if expected == checksum else f'another file than the published one, {expected}')
    yield f'file: {args.checkpoint}, {os.path.getsize(args.checkpoint):,} bytes'
    yield f'sha256: {checksum}: {comparison}'


def compare_with_row(args, row):
    """Test a run and compare it with its published row.

    Returns:
        ``(verdict, lines)``. The verdict begins with matches, differs or unknown.
    """
    published = published_metrics(row)
    try:
        results, title = compute_results(args)
    except UserError as error:
        return f'unknown: the run cannot be tested here: {error}', []
    measured = results.tables[title]['t2i'] if title else results.metrics
    if not published:
        return f'unknown: {unpublished_reason(args)}', [format_metrics(measured)]
    intervals = results.metric_intervals(title)
    rows = [compare_metric(name, measured[name], published[name], intervals.get(name))
            for name in published if name in measured]
    lines = [FORMATS['text'](f"{row['method']} on {args.dataset_name}, in percent",
                             ['metric', 'measured', 'published', 'difference', '95% interval'], rows)]
    if not results.is_independent:
        lines.append('EMBEDDINGS DEPEND ON THE BATCH: the figures also depend on --test_batch_size')
    if results.split_note:
        return f'unknown: {results.split_note}', lines
    differing = [name for name, value in published.items()
                 if name in measured and abs(measured[name] - value) > TOLERANCE]
    if differing:
        return (f"differs: {', '.join(differing)} by more than {TOLERANCE} points: it is another checkpoint of the "
                'method, or its options differ', lines)
    return f'matches: every published figure within {TOLERANCE} points', lines


def compute_results(args):
    """Test a run, or read the results of an earlier test of the same checkpoint.

    Returns:
        ``(results, title)``: the title of the table to compare, the re-ranked one if ``args`` re-rank. It is None for
        attribute recognition.
    """
    from processor.report import evaluate_and_save, find_or_compute_results
    from processor.results import RERANKED
    settings = read_rerank_settings(args)

    def find_title(results):
        titles = [f'{RERANKED}{settings.title}'] if settings else results.tables
        return next((title for title in results.tables if title in titles), None)
    results = find_or_compute_results(args, with_intervals=True)
    if settings and not find_title(results):
        results = evaluate_and_save(args).results
    return results, find_title(results)


def compare_metric(name, measured, published, interval):
    """A row of the comparison."""
    return [name, f'{measured:.2f}', f'{published:.2f}', f'{measured - published:+.2f}',
            '{:.2f} to {:.2f}'.format(*interval) if interval else '']


def format_metrics(metrics):
    return 'measured: ' + ', '.join(f'{name} {value:.2f}' for name, value in metrics.items() if name != 'ties')


if __name__ == '__main__':
    run_program(main)

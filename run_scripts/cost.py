"""Measure the cost of recipes: parameters, FLOPs, time and memory.

    python -m run_scripts.cost --recipes configs/irra.yaml configs/rde.yaml
    python -m run_scripts.cost --count              # parameters and FLOPs only, a few seconds for each recipe
    python -m run_scripts.cost --memory             # counted memory of a step at several batch sizes
    python -m run_scripts.cost --recipes configs/irra.yaml --tunings none lora adapter prefix

The default is every method's recipe for CUHK-PEDES. For each recipe the tool prints:

    - the number of parameters, and of those that are trained (--tunings compares tunings of a recipe);
    - GFLOPs to embed an image and a caption;
    - milliseconds and memory of a training step;
    - milliseconds and memory of a query: embed a caption and compare it with the test gallery.

Models have random weights, and the images are synthetic pedestrians, which cost as much as photos. PyTorch counts the
FLOPs of matrix products and convolutions. It counts a multiplication and an addition as two; papers that count
multiply-adds print half. Each recipe is measured in its own process. Its memory is the peak including the weights; on a
CPU without the memory that the process held before it made the model. All options after -- go to every recipe.

--count and --memory compute nothing: the model and the step run on tensors that have shapes and no values. --memory
counts all tensors that exist at the same time in a step: weights, gradients, optimizer, and what the forward pass
saves, in the precision of --amp (bf16), without and with --grad_checkpoint. It runs the smallest and the largest batch;
in between, each tensor grows linearly. Gaps between tensors and the CUDA context (about 0.5 GiB) come on top.
"""
import concurrent.futures
import itertools
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts.benchmark.child import measure_in_child, preload
from utils.csv_files import write_csv
from utils.errors import UserError, run_program
from utils.iotools import atomic_write
from utils.option_types import positive_int
from utils.options import Parser
from utils.parser import split_at_dashes
from utils.paths import relative_path
from utils.recipes import find_recipes
from utils.tables import FORMATS

# {key of a row: (title of the column, unit)}
COLUMNS = {'parameters': ('parameters, M', 1e6), 'trained': ('trained, M', 1e6),
           'image_flops': ('GFLOPs per image', 1e9), 'caption_flops': ('GFLOPs per caption', 1e9),
           'step_seconds': ('ms per step', 1e-3), 'step_bytes': ('GiB per step', 2 ** 30),
           'query_seconds': ('ms per query', 1e-3), 'query_bytes': ('GiB per query', 2 ** 30)}
COUNTED = ('parameters', 'trained', 'image_flops', 'caption_flops')     # the columns of --count
TASK_BYTES = 3 * 2 ** 30    # memory of a process that counts
MAX_OTHER_LOAD = 0.1   # fraction of the cores that other programs may use before the note says so
CPU_BATCH_SIZE = 4     # on a CPU a step with the recipe's batch would take minutes


def main(argv=None):
    tool_words, recipe_words = split_at_dashes(list(sys.argv[1:] if argv is None else argv))
    args = build_cost_parser().parse(tool_words)
    # imported here, because they import PyTorch, and wrong options are reported at once
    from run_scripts.benchmark.machine import describe_machine
    from run_scripts.benchmark.recipe_cost import measure_recipe
    if args.count or args.memory:
        return count_without_computing(args, recipe_words)
    preload('run_scripts.benchmark.recipe_cost')
    machine = measure_in_child(describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    if machine['device'] == 'cpu' and not args.batch_size:
        args.batch_size = CPU_BATCH_SIZE
    rows = []
    variants = list(itertools.product(args.recipes, list_tunings(args.tunings)))
    for number, (path, tuning_words) in enumerate(variants, 1):
        name, words = ' '.join([path, *tuning_words]), [*recipe_words, *tuning_words]
        print(f'measuring {name} ({number} of {len(variants)})', file=sys.stderr, flush=True)
        rows.append({'recipe': name, **measure_in_child(measure_recipe, path, words, args, machine['device'])})
        print(f'    {format_progress(rows[-1])}', file=sys.stderr, flush=True)
    write_table(args.csv, rows, ['recipe', 'batch', *COLUMNS, 'others', 'error'])
    processor, batch_size = machine.get('gpu', machine['cpu']), args.batch_size or 'of the recipe'
    heading = (f"{processor}, {machine['precision']}, batch {batch_size}; "
               'a multiplication and an addition are two FLOPs')
    header = ['recipe', 'batch', *(title for title, _ in COLUMNS.values()), 'note']
    lines = [format_row(row) for row in rows]
    print('\n\n'.join(FORMATS[name](heading, header, lines) for name in args.format))
    return 0 if all('error' not in row for row in rows) else 1


def count_without_computing(args, recipe_words):
    """Print the table of --count or --memory, and return the exit status."""
    from run_scripts.benchmark.simulated_step import count_recipe, count_step_memory
    preload('run_scripts.benchmark.simulated_step')
    amp = 'bf16' if args.amp == 'auto' else args.amp
    sizes = sorted(set(args.batch_sizes))
    tasks = {}
    for path, tuning_words in itertools.product(args.recipes, list_tunings(args.tunings)):
        words = ['--config_file', path, *recipe_words, *tuning_words, '--amp', amp]
        name = ' '.join([os.path.splitext(os.path.basename(path))[0], *tuning_words])
        if args.count:
            tasks[name, ''] = count_recipe, words
        else:
            tasks[name, 'plain'] = count_step_memory, words, sizes
            tasks[name, 'checkpointed'] = count_step_memory, [*words, '--grad_checkpoint'], sizes
    results = count_in_parallel(tasks)
    rows = [{'recipe': name, **{variant: results[name, variant] for _, variant in tasks if (name, variant) in results}}
            for name in dict.fromkeys(name for name, _ in tasks)]
    if args.count:
        rows = [{'recipe': row['recipe'], **row['']} for row in rows]
        header = ['recipe', *(COLUMNS[name][0] for name in COUNTED), 'note']
        lines, heading = [format_counts(row) for row in rows], 'a multiplication and an addition are two FLOPs'
        write_table(args.csv, rows, ['recipe', *COUNTED, 'error'])
    else:
        rows = [arrange_memory(row, sizes) for row in rows]
        names = [name for name in rows[0] if name not in ('recipe', 'error')]
        header, lines = ['recipe', *names], [format_memory(row, names) for row in rows]
        heading = f'GiB of a training step, counted, {amp if amp != "off" else "float32"}; c: with --grad_checkpoint'
        write_table(args.csv, rows, ['recipe', *names, 'error'])
    print('\n\n'.join(FORMATS[name](heading, header, lines) for name in args.format))
    failures = [f"{row['recipe']}: {row['error']}" for row in rows if 'error' in row]
    if args.memory and failures:     # the table of --count has a column for them
        print('\n'.join(failures))
    return 1 if failures else 0


def count_in_parallel(tasks):
    """Call functions in processes of their own, as many at a time as there are cores, and print their progress.

    Args:
        tasks: ``{(recipe, variant): (function, *arguments)}``.

    Returns:
        ``{(recipe, variant): result}``.
    """
    from utils.machine import available_memory, core_count
    count = max(min(core_count(), available_memory() // TASK_BYTES), 1)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = {pool.submit(measure_in_child, *task): name for name, task in tasks.items()}
        results = {}
        for future in concurrent.futures.as_completed(futures):
            name = futures[future]
            results[name] = future.result()
            print(f"{len(results)} of {len(tasks)}: {' '.join(filter(None, name))} "
                  f"{results[name].get('error', 'counted')}", file=sys.stderr, flush=True)
    return results


def arrange_memory(row, batch_sizes):
    """A row of --memory: bytes between two steps, and bytes of a step at each batch size without and with 'c'."""
    errors = [row[name]['error'] for name in ('plain', 'checkpointed') if 'error' in row[name]]
    result = {'recipe': row['recipe'], 'weights and optimizer': row['plain'].get('state_bytes')}
    for name, prefix in (('plain', ''), ('checkpointed', 'c ')):
        result.update({f'{prefix}{size}': row[name].get('peak_bytes', {}).get(size) for size in batch_sizes})
    return {**result, 'error': errors[0]} if errors else result


def build_cost_parser():
    parser = Parser(prog='cost.py', description=__doc__,
                    usage='%(prog)s [--<option> VALUE ...] [-- <options of train.py>]')
    recipes = [relative_path(path) for path in find_recipes('CUHK-PEDES')]
    parser.add_argument('--recipes', nargs='+', default=recipes, metavar='RECIPE',
                        help="recipes to measure (default: every method's for CUHK-PEDES)")
    parser.add_argument('--tunings', nargs='+', metavar='TUNING',
                        help="values of --tuning to measure each recipe with (default: the recipe's)")
    parser.add_argument('--batch_size', type=positive_int,
                        help=f"captions per training step (default: the recipe's; {CPU_BATCH_SIZE} on a CPU)")
    parser.add_argument('--count', action='store_true',
                        help='count parameters and FLOPs only, without computing anything')
    parser.add_argument('--memory', action='store_true',
                        help='count the memory of a training step at --batch_sizes, without computing anything')
    parser.add_argument('--batch_sizes', nargs='+', type=positive_int, default=[16, 32, 64, 128],
                        help='batch sizes of --memory (default: 16 32 64 128)')
    parser.add_argument('--repeats', type=positive_int, default=5,
                        help='number of repeats of a step and of a query; the table shows the median')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:<n>')
    parser.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'],
                        help='precision of the forward pass')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='formats of the printed table')
    parser.add_argument('--csv', metavar='FILE', help='CSV file of the results in full precision')
    return parser


def list_tunings(names):
    """The words of train.py for each value of --tunings; one empty list if there are none."""
    return [['--tuning', name] for name in names] if names else [[]]


# -- the table -------------------------------------------------------------------------------------------------------

def format_row(row):
    if 'error' in row:
        return [row['recipe'], *['-'] * (1 + len(COLUMNS)), row['error']]
    note = ''
    if row['others'] > MAX_OTHER_LOAD:
        note = f"other programs used {row['others']:.0%} of the cores: the times are too long"
    columns = [f'{row[name] / unit:.2f}' for name, (_, unit) in COLUMNS.items()]
    return [row['recipe'], str(row['batch']), *columns, note]


def format_progress(row):
    return row['error'] if 'error' in row else f"{1000 * row['step_seconds']:.4g} ms per step of {row['batch']}"


def format_counts(row):
    if 'error' in row:
        return [row['recipe'], *['-'] * len(COUNTED), row['error']]
    return [row['recipe'], *(f'{row[name] / COLUMNS[name][1]:.2f}' for name in COUNTED), '']


def format_memory(row, names):
    """A line of --memory in GiB. The reason of a missing value follows below the table, and is in the CSV file."""
    return [row['recipe'], *('-' if row[name] is None else f'{row[name] / 2 ** 30:.1f}' for name in names)]


def write_table(path, rows, names):
    """Write the CSV file of --csv, if a path is given."""
    if path:
        with atomic_write(path) as file:
            write_csv(file, [names, *([row.get(name, '') for name in names] for row in rows)])


if __name__ == '__main__':
    run_program(main)

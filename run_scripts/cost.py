"""Measure the cost of recipes: parameters, FLOPs, time and memory.

    python -m run_scripts.cost --recipes configs/irra.yaml configs/rde.yaml
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
"""
import io
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
MAX_OTHER_LOAD = 0.1   # fraction of the cores that other programs may use before the note says so
CPU_BATCH_SIZE = 4     # on a CPU a step with the recipe's batch would take minutes


def main(argv=None):
    tool_words, recipe_words = split_at_dashes(list(sys.argv[1:] if argv is None else argv))
    args = build_cost_parser().parse(tool_words)
    # imported here, because they import PyTorch, and wrong options are reported at once
    from run_scripts.benchmark.machine import describe_machine
    from run_scripts.benchmark.recipe_cost import measure_recipe
    preload('run_scripts.benchmark.recipe_cost')
    machine = measure_in_child(describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    if machine['device'] == 'cpu' and not args.batch_size:
        args.batch_size = CPU_BATCH_SIZE
    rows = []
    for path, tuning_words in itertools.product(args.recipes, list_tunings(args.tunings)):
        name, words = ' '.join([path, *tuning_words]), [*recipe_words, *tuning_words]
        print(f'measuring {name}', file=sys.stderr, flush=True)
        rows.append({'recipe': name, **measure_in_child(measure_recipe, path, words, args, machine['device'])})
    if args.csv:
        with atomic_write(args.csv) as file:
            file.write(format_csv(rows))
    processor, batch_size = machine.get('gpu', machine['cpu']), args.batch_size or 'of the recipe'
    heading = (f"{processor}, {machine['precision']}, batch {batch_size}; "
               'a multiplication and an addition are two FLOPs')
    header = ['recipe', 'batch', *(title for title, _ in COLUMNS.values()), 'note']
    lines = [format_row(row) for row in rows]
    print('\n\n'.join(FORMATS[name](heading, header, lines) for name in args.format))
    return 0 if all('error' not in row for row in rows) else 1


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


def format_csv(rows):
    text, names = io.StringIO(), ['recipe', 'batch', *COLUMNS, 'others', 'error']
    write_csv(text, [names, *([row.get(name, '') for name in names] for row in rows)])
    return text.getvalue()


if __name__ == '__main__':
    run_program(main)

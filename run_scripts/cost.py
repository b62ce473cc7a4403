"""Measure the cost of recipes: parameters, FLOPs, time and memory.

    python -m run_scripts.cost --recipes configs/irra/cuhk-pedes.yaml configs/rde/cuhk-pedes.yaml

The default is all recipes of CUHK-PEDES. For each recipe the tool prints:

    - the number of parameters, and of those that are trained;
    - GFLOPs to embed an image and a caption;
    - milliseconds and memory of a training step;
    - milliseconds and memory of a query: embed a caption and compare it with the test gallery.

Models have random weights, and the images are synthetic pedestrians, which cost as much as photos. PyTorch counts the
FLOPs of matrix products and convolutions. It counts a multiplication and an addition as two; papers that count
multiply-adds print half. Each recipe is measured in its own process. Its memory is the peak including the weights; on a
CPU without the memory that the process held before it made the model. All options after -- go to every recipe.
"""
import glob
import io
import os
import statistics
import sys
import tempfile

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from run_scripts import ROOT, start
from datasets import build_dataloader
from datasets.build import dataset_class
from datasets.synthpedes import generate
from model import build_model
from model.backbones import backbone_class
from model.build import total_loss
from processor.step import Step
from run_scripts.ablate import split_at_dashes
from run_scripts.benchmark.child import measure_in_child
from run_scripts.benchmark.machine import describe_machine, measure_time, peak_bytes
from solver import build_optimizer
from utils.csv_files import write_csv
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.option_types import positive_int
from utils.options import Parser, get_args
from utils.seeding import seed_all
from utils.tables import FORMATS

# {key of a row: (title of the column, unit)}
COLUMNS = {'parameters': ('parameters, M', 1e6), 'trained': ('trained, M', 1e6),
           'image_flops': ('GFLOPs per image', 1e9), 'caption_flops': ('GFLOPs per caption', 1e9),
           'step_seconds': ('ms per step', 1e-3), 'step_bytes': ('GiB per step', 2 ** 30),
           'query_seconds': ('ms per query', 1e-3), 'query_bytes': ('GiB per query', 2 ** 30)}
MAX_OTHER_LOAD = 0.1   # fraction of the cores that other programs may use before the note says so
CPU_BATCH_SIZE = 4     # on a CPU a step with the recipe's batch would take minutes
END_TOKEN = 49407      # CLIP takes the embedding of a caption from this token


def main(argv=None):
    tool_words, recipe_words = split_at_dashes(list(sys.argv[1:] if argv is None else argv))
    args = build_cost_parser().parse(tool_words)
    machine = measure_in_child(describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    if machine['device'] == 'cpu' and not args.batch_size:
        args.batch_size = CPU_BATCH_SIZE
    rows = []
    for path in args.recipes:
        print(f'measuring {path}', file=sys.stderr, flush=True)
        rows.append({'recipe': path, **measure_in_child(measure_recipe, path, recipe_words, args, machine['device'])})
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
    paths = glob.glob(os.path.join(ROOT, 'configs', '*', 'cuhk-pedes.yaml'))
    recipes = sorted(os.path.relpath(path) for path in paths if os.path.basename(os.path.dirname(path)) != 'published')
    parser.add_argument('--recipes', nargs='+', default=recipes, metavar='RECIPE',
                        help='recipes to measure (default: configs/*/cuhk-pedes.yaml)')
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


# -- measurement -----------------------------------------------------------------------------------------------------

def measure_recipe(path, recipe_words, args, device):
    """Measure one recipe.

    Args:
        path: the file of the recipe.
        recipe_words: further options of train.py.
        args: the options of cost.py.
        device: the name of the device.

    Returns:
        ``{name: number}`` with the keys of :data:`COLUMNS`, 'batch' and 'others', the load of other programs.
    """
    recipe = get_args(['--config_file', path, *recipe_words])
    identities, gallery_size = published_sizes(recipe.dataset_name)
    with tempfile.TemporaryDirectory() as folder:
        size = args.batch_size or recipe.batch_size
        generate(folder, size + 2, images_per_id=2, size=recipe.img_size, format=recipe.dataset_name, val_ids=0,
                 test_ids=1, workers=0, progress=False)
        options = get_args(['--config_file', path, *recipe_words, '--root_dir', folder, '--batch_size', str(size),
                            '--device', device, '--amp', args.amp, '--num_workers', '0',
                            '--pretrain_choice', random_weights_choice(recipe.pretrain_choice)])
        batch = next(iter(build_dataloader(options, backbone_class(options))[0]))
    seed_all(options.seed)
    initial_bytes = 0 if device.startswith('cuda') else peak_bytes()
    model = build_model(options, identities).to(device)
    sizes = {'batch': len(batch['pids']), 'parameters': sum(parameter.numel() for parameter in model.parameters()),
             'trained': sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
             **count_flops(model, options)}
    query = measure_query(model, options, gallery_size, args.repeats)
    query['query_bytes'] = read_and_reset_peak(device) - initial_bytes
    step = measure_step(model, options, batch, args.repeats)
    step['step_bytes'] = read_and_reset_peak(device) - initial_bytes
    return {**sizes, **query, **step}


def read_and_reset_peak(device):
    """The peak of memory in bytes; on a GPU since the last call."""
    peak = peak_bytes(device)
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats(device)
    return peak


def published_sizes(dataset):
    """``(training identities, images in the test gallery)`` of a published dataset."""
    published = dataset_class(dataset).published
    if not published:
        raise UserError(f'--dataset_name {dataset}: the dataset has no published sizes; '
                        'use a recipe of CUHK-PEDES, ICFG-PEDES or RSTPReid')
    return published['train'][0], published['test'][1]


def random_weights_choice(pretrain_choice):
    """A --pretrain_choice of the same shape that needs no download."""
    if os.path.exists(pretrain_choice) or ':' in pretrain_choice:
        return pretrain_choice
    return f"scratch:{pretrain_choice.replace('/', '-').replace('@', '-')}"


@torch.no_grad()
def count_flops(model, options):
    """FLOPs to embed one image, and one caption of the full length.

    PyTorch's counter does not see fused attention, so this uses the unfused kernel.
    """
    model.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, *options.img_size, device=next(model.parameters()).device))
        image_flops = counter.get_total_flops()
        model.encode_text(dummy_caption(model, options))
    return {'image_flops': image_flops, 'caption_flops': counter.get_total_flops() - image_flops}


def dummy_caption(model, options):
    """Token ids [1, L] of a caption of the full length."""
    ids = torch.ones(1, options.text_length, dtype=torch.long)
    ids[0, -1] = END_TOKEN
    return ids.to(next(model.parameters()).device)


@torch.no_grad()
def measure_query(model, options, gallery_size, repeats):
    """Embed a caption and find the ten most similar images of a gallery whose embeddings exist already."""
    model.eval()
    device, caption = next(model.parameters()).device, dummy_caption(model, options)
    width = model.encode_text(caption).shape[1]
    gallery = torch.nn.functional.normalize(torch.randn(gallery_size, width, device=device), dim=1)    # [G, D]

    def query():
        return (gallery @ torch.nn.functional.normalize(model.encode_text(caption), dim=1)[0]).topk(10)
    timing, _ = measure_time(query, device, repeats, patience=60)
    return {'query_seconds': statistics.median(timing['seconds'])}


def measure_step(model, options, batch, repeats):
    """A training step as in train.py: from a batch in memory to updated weights and a loss on the host."""
    model.train()
    step = Step(model, build_optimizer(options, model), options.micro_batch)
    timing, _ = measure_time(lambda: total_loss(step(dict(batch))).item(), next(model.parameters()).device, repeats,
                      patience=120)
    return {'step_seconds': statistics.median(timing['seconds']), 'others': timing['others']}


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
    start(main)

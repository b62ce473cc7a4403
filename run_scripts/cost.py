"""What recipes cost: ``python -m run_scripts.cost [--recipes configs/irra/cuhk-pedes.yaml ...]``, by default all of CUHK-PEDES.

For each recipe: parameters and those that are trained, GFLOPs to embed an image and a caption, and milliseconds and memory of a training
step and of a query, which is to embed one caption and to compare it with the dataset's whole test gallery. Models have random weights, and
the images are synthetic pedestrians, which cost as much. PyTorch counts the FLOPs of products and convolutions, a multiplication and
an addition as two: papers that count multiply-adds print half. Each recipe is measured in a process of its own; its memory is the
peak with the weights, on a CPU beyond what the process held before it made the model. What follows -- goes to every recipe.
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
from model.build import total_loss
from processor.step import Step
from run_scripts.ablate import split_at_dashes
from run_scripts.benchmark.child import in_child
from run_scripts.benchmark.machine import describe_machine, peak_bytes, timed
from solver import build_optimizer
from utils.csv_files import write_csv
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.options import Parser, count, get_args
from utils.seeding import seed_all
from utils.tables import FORMATS

COLUMNS = {'parameters': ('parameters, M', 1e6), 'trained': ('trained, M', 1e6), 'image_flops': ('GFLOPs an image', 1e9),
           'caption_flops': ('GFLOPs a caption', 1e9), 'step_seconds': ('ms a step', 1e-3), 'step_bytes': ('GiB a step', 2 ** 30),
           'query_seconds': ('ms a query', 1e-3), 'query_bytes': ('GiB a query', 2 ** 30)}
DISTURBED = 0.1   # of the cores, taken by other programs
ON_CPU = 4   # samples a step where the recipe's batch would take minutes


def main(argv=None):
    own, args_of_all = split_at_dashes(list(sys.argv[1:] if argv is None else argv))
    args = build_cost_parser().parse(own)
    machine = in_child(describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    if machine['device'] == 'cpu' and not args.batch_size:
        args.batch_size = ON_CPU
    rows = []
    for path in args.recipes:
        print(f'measuring {path}', file=sys.stderr, flush=True)
        rows.append({'recipe': path, **in_child(measure, path, args_of_all, args, machine['device'])})
    heading = (f"{machine.get('gpu', machine['cpu'])}, {machine['precision']}, batch {args.batch_size or 'of the recipe'}; "
               'a multiplication and an addition are two FLOPs')
    header, lines = ['recipe', 'batch', *(title for title, _ in COLUMNS.values()), 'note'], [cells_of(row) for row in rows]
    if args.csv:
        with atomic_write(args.csv) as file:
            file.write(as_csv(rows))
    print('\n\n'.join(FORMATS[name](heading, header, lines) for name in args.format))
    return 0 if all('error' not in row for row in rows) else 1


def build_cost_parser():
    parser = Parser(prog='cost.py', description=__doc__)
    recipes = sorted(os.path.relpath(path) for path in glob.glob(os.path.join(ROOT, 'configs', '*', 'cuhk-pedes.yaml'))
                     if os.path.basename(os.path.dirname(path)) != 'published')
    parser.add_argument('--recipes', nargs='+', default=recipes, help='files in configs')
    parser.add_argument('--batch_size', type=count, help=f"of a step (default: the recipe's; {ON_CPU} on a CPU)")
    parser.add_argument('--repeats', type=count, default=5, help='of a step and of a query; the median is shown')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:<n>')
    parser.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'], help='precision of the forward pass')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='how the table is printed')
    parser.add_argument('--csv', metavar='FILE', help='also write all in full precision')
    return parser


def measure(path, flags, args, device):
    """The row of a recipe with some flags."""
    known = get_args(['--config_file', path, *flags])
    identities, gallery = sizes_of(known.dataset_name)
    with tempfile.TemporaryDirectory() as folder:
        size = args.batch_size or known.batch_size
        generate(folder, size + 2, images_per_id=2, size=known.img_size, format=known.dataset_name, val_ids=0, test_ids=1, workers=0,
                 progress=False)
        options = get_args(['--config_file', path, *flags, '--root_dir', folder, '--batch_size', str(size), '--device', device,
                            '--amp', args.amp, '--num_workers', '0', '--pretrain_choice', random_weights(known.pretrain_choice)])
        batch = next(iter(build_dataloader(options)[0]))
    seed_all(options.seed)
    before = 0 if device.startswith('cuda') else peak_bytes()
    model = build_model(options, identities).to(device)
    counted = {'batch': len(batch['pids']), 'parameters': sum(parameter.numel() for parameter in model.parameters()),
               'trained': sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
               **flops_of(model, options)}
    query = cost_of_query(model, options, gallery, args.repeats)
    peaks = {'query_bytes': peak(device) - before}
    step = cost_of_step(model, options, batch, args.repeats)
    return {**counted, **query, **step, **peaks, 'step_bytes': peak(device) - before}


def peak(device):
    """The peak so far; on a GPU since it was last asked for."""
    found = peak_bytes(device)
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats(device)
    return found


def sizes_of(dataset):
    """(training identities, images in the test gallery) as published."""
    published = dataset_class(dataset).published
    if not published:
        raise UserError(f'{dataset} has no published sizes: name a recipe of a dataset that has')
    return published['train'][0], published['test'][1]


def random_weights(pretrain_choice):
    """The same shape without a download."""
    return pretrain_choice if os.path.exists(pretrain_choice) or ':' in pretrain_choice else \
        f"scratch:{pretrain_choice.replace('/', '-').replace('@', '-')}"


@torch.no_grad()
def flops_of(model, options):
    """FLOPs to embed one image, and one caption of the full length. PyTorch's counter sees no fused attention, so it is unfused here."""
    model.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, *options.img_size, device=next(model.parameters()).device))
        of_image = counter.get_total_flops()
        model.encode_text(a_caption(model, options))
    return {'image_flops': of_image, 'caption_flops': counter.get_total_flops() - of_image}


def a_caption(model, options):
    ids = torch.ones(1, options.text_length, dtype=torch.long)
    ids[0, -1] = 49407   # the end, which the embedding is taken from
    return ids.to(next(model.parameters()).device)


@torch.no_grad()
def cost_of_query(model, options, gallery, repeats):
    """Embed a caption and find the ten most alike of a whole gallery, whose embeddings are there already."""
    model.eval()
    device, caption = next(model.parameters()).device, a_caption(model, options)
    width = model.encode_text(caption).shape[1]
    images = torch.nn.functional.normalize(torch.randn(gallery, width, device=device), dim=1)    # [G, D]

    def query():
        return (images @ torch.nn.functional.normalize(model.encode_text(caption), dim=1)[0]).topk(10)
    timing, _ = timed(query, device, repeats, patience=60)
    return {'query_seconds': statistics.median(timing['seconds'])}


def cost_of_step(model, options, batch, repeats):
    """A step as train.py takes it, from a batch in memory to changed weights and losses that somebody has looked at."""
    model.train()
    learn = Step(model, build_optimizer(options, model), options.micro_batch)
    timing, _ = timed(lambda: total_loss(learn(dict(batch))).item(), next(model.parameters()).device, repeats, patience=120)
    return {'step_seconds': statistics.median(timing['seconds']), 'others': timing['others']}


# -- the table -----------------------------------------------------------------------------------------------------------

def cells_of(row):
    if 'error' in row:
        return [row['recipe'], *['-'] * (1 + len(COLUMNS)), row['error']]
    note = f"other programs took {row['others']:.0%} of the cores: times are too long" if row['others'] > DISTURBED else ''
    return [row['recipe'], str(row['batch']), *(f'{row[name] / unit:.2f}' for name, (_, unit) in COLUMNS.items()), note]


def as_csv(rows):
    text, names = io.StringIO(), ['recipe', 'batch', *COLUMNS, 'others', 'error']
    write_csv(text, [names, *([row.get(name, '') for name in names] for row in rows)])
    return text.getvalue()


if __name__ == '__main__':
    start(main)

"""Measure time and memory of training, data loading, encoding and ranking, and compare them with the reference.

    python -m run_scripts.benchmark --json benchmark.json     # all parts at full size
    python -m run_scripts.benchmark --quick                   # a small model, 2 minutes on 2 cores
    python -m run_scripts.benchmark --parts step profile --batch_size 32

The reference is the published code of IRRA, as run_scripts/benchmark/reference.py implements it. The training step is
IRRA's (configs/irra.yaml) with random weights on synthetic batches. Each row is measured in its own process
after a warm-up. A table shows the median of the repeats, and the JSON has all of them. If a row fails, its note says
why, and the other rows are measured. If other programs used the cores meanwhile, the note says so.

The exit status is 0 if every row was measured or is too large for the machine, and if all variants give the same
metrics; else 1.
"""
import sys
from dataclasses import replace

from run_scripts.benchmark.child import measure_in_child, preload
from run_scripts.benchmark.settings import ON_CPU, ON_GPU, PART_NAMES, QUICK
from utils.errors import UserError, run_program
from utils.option_types import positive_int
from utils.options import Parser


def main(argv=None):
    args = build_benchmark_parser().parse(sys.argv[1:] if argv is None else argv)
    # imported here, because they import PyTorch, and wrong options are reported at once
    from run_scripts.benchmark.machine import describe_machine
    from run_scripts.benchmark.report import Report
    from run_scripts.benchmark.rows import PARTS
    preload('run_scripts.benchmark.rows')
    machine = measure_in_child(describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    setting = choose_setting(args, machine)
    report = Report(args, machine, setting)
    report.write()      # if a file cannot be written, the error comes before hours of measurement
    for part in args.parts:
        for row in PARTS[part](setting):
            report.add({'part': part, **row})
    print(report.text())
    return 0 if report.is_complete else 1


def build_benchmark_parser():
    parser = Parser(prog='benchmark.py', description=__doc__, usage='%(prog)s [--<option> VALUE ...]')
    parser.add_argument('--parts', nargs='+', choices=PART_NAMES, default=PART_NAMES, help='parts to measure')
    parser.add_argument('--quick', action='store_true', help='use a small model, small batches and small galleries')
    parser.add_argument('--batch_size', type=positive_int,
                        help='captions per training step (default: 64 on a GPU, 8 on a CPU)')
    parser.add_argument('--repeats', type=positive_int, help='number of repeats of each measurement (default: 5)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:<n>')
    parser.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'],
                        help="precision of Pedestal's forward pass")
    parser.add_argument('--json', metavar='FILE', help='JSON file of all measurements')
    parser.add_argument('--markdown', metavar='FILE', help='Markdown file of the tables')
    return parser


def choose_setting(args, machine):
    setting = QUICK if args.quick else ON_CPU if machine['device'] == 'cpu' else ON_GPU
    sizes = {name: value for name in ('batch_size', 'repeats') if (value := getattr(args, name))}
    return replace(setting, device=machine['device'], amp=args.amp, **sizes)


if __name__ == '__main__':
    run_program(main)

"""How quick and how large training, reading, encoding and ranking are, beside the released way (benchmark/released_way.py).

    python -m run_scripts.benchmark --json benchmark.json          # everything, at full size
    python -m run_scripts.benchmark --quick                        # a small model and small sizes: under 2 minutes on 2 cores
    python -m run_scripts.benchmark --parts step profile --batch_size 32

The training step is IRRA's (configs/irra/cuhk-pedes.yaml) with random weights on synthetic batches. Each row is measured in a process
of its own, after a warm-up, and shows the median of its repeats; the JSON has all of them. A row that fails says why, and the others go
on; one that other programs disturbed says so. Exit status 0 if every row was measured, or is too large for the machine, and all ways
rank alike; else 1.
"""
import sys
from dataclasses import replace

from run_scripts import start
from run_scripts.benchmark.child import in_child
from run_scripts.benchmark.machine import describe_machine
from run_scripts.benchmark.report import Report
from run_scripts.benchmark.rows import PARTS
from run_scripts.benchmark.workload import Setting
from utils.errors import UserError
from utils.options import Parser, count

RANKINGS = (('CUHK-PEDES', 6156, 3074, 1000), ('ICFG-PEDES', 19848, 19848, 1000), ('RSTPReid', 2000, 1000, 200),
            ('100k images', 1000, 100_000, 10_000), ('1M images', 1000, 1_000_000, 100_000))
ON_GPU = Setting('ViT-B/16', batch_size=64, batches=20, steps=20, repeats=5, images=4096, captions=6156, ids=800, rankings=RANKINGS)
ON_CPU = Setting('ViT-B/16', batch_size=8, batches=4, steps=1, repeats=5, images=32, captions=128, ids=160, rankings=RANKINGS)
QUICK = Setting('tiny', batch_size=8, batches=4, steps=1, repeats=5, images=64, captions=256, ids=40, patience=3, quick=True,
                rankings=(('RSTPReid', 2000, 1000, 200), ('100k images', 100, 100_000, 10_000)))


def main(argv=None):
    args = build_benchmark_parser().parse(sys.argv[1:] if argv is None else argv)
    machine = in_child(describe_machine, args.device, args.amp)
    if 'error' in machine:
        raise UserError(machine['error'])
    setting = choose_setting(args, machine)
    report = Report(args, machine, setting)
    report.write()      # a file that cannot be written shows before hours of measuring
    for part in args.parts:
        for row in PARTS[part](setting):
            report.add({'part': part, **row})
    print(report.text())
    return 0 if report.whole else 1


def build_benchmark_parser():
    parser = Parser(prog='benchmark.py', description=__doc__)
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS), help='what is measured')
    parser.add_argument('--quick', action='store_true', help='a small model, small batches, small galleries')
    parser.add_argument('--batch_size', type=count, help='of a training step (default: 64 on a GPU, 8 on a CPU)')
    parser.add_argument('--repeats', type=count, help='of what is measured (default: 5, with --quick 3)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:<n>')
    parser.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'], help='precision of our way')
    parser.add_argument('--json', metavar='FILE', help='write all that was measured')
    parser.add_argument('--markdown', metavar='FILE', help='write the tables')
    return parser


def choose_setting(args, machine):
    setting = QUICK if args.quick else ON_CPU if machine['device'] == 'cpu' else ON_GPU
    given = {name: value for name in ('batch_size', 'repeats') if (value := getattr(args, name))}
    return replace(setting, device=machine['device'], amp=args.amp, **given)


if __name__ == '__main__':
    start(main)

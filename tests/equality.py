"""Measure how much several processes differ from one, recipe by recipe, in small models without dropout.

    python -m tests.equality --processes 4 --steps 20 --lr 1e-5
    python -m tests.equality --processes 1 --lr 1e-3      # one process against itself, with changed last bits of pixels

Batches alternately have 7 and 6 samples. Losses are compared relatively (those below 0.1 as if they were 0.1), weights
absolutely.
"""
import argparse
import pathlib
import tempfile

import torch

from tests.processor.test_several_processes import RECIPES, train_in_default_precision
from tests.several import Processes
from tests.support import golden_archive, golden_json
from utils.tables import format_markdown


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--lr', type=float, default=1e-5)
    parser.add_argument('--eps', type=float, default=1e-3, help='eps of AdamW')
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = [7 - step % 2 for step in range(args.steps)]
    processes = Processes(args.processes) if args.processes > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        archive = golden_archive(golden_json('irra_tiny'), pathlib.Path(folder) / 'clip.pt')
        rows = [compare(name, archive, sizes, args, processes) for name in args.recipes]
    if processes:
        processes.close()
    print(format_markdown(f'{args.processes} processes against one, {args.steps} steps, AdamW, lr {args.lr:g}, '
                          f'eps {args.eps:g}',
                          ['recipe', 'losses of the first step', 'losses of all steps', 'weights after the last step'],
                          rows))


def compare(name, archive, sizes, args, processes):
    """Compute the table's row of a recipe."""
    inputs = archive, RECIPES[name], sizes, None, args.lr, args.eps
    expected, _, weights = train_in_default_precision(*inputs)
    if processes:
        trained = processes.run(train_in_default_precision, *inputs)
    else:
        trained = [train_in_default_precision(*inputs, last_bit=True)]
    differences = [[max(abs(losses[loss] - value) / max(abs(value), 0.1) for loss, value in expected_losses.items())
                    for expected_losses, losses in zip(expected, steps)] for steps, _, _ in trained]
    weight_difference = max((own[part] - weight).abs().max().item()
                            for _, _, own in trained for part, weight in weights.items())
    first = max(steps[0] for steps in differences)
    return [name, f'{first:.1e}', f'{max(map(max, differences)):.1e}', f'{weight_difference:.1e}']


if __name__ == '__main__':
    main()

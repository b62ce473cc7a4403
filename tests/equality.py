"""How far several processes move from what one computes, recipe by recipe, in small models without dropout:

    python -m tests.equality --processes 4 --steps 20 --lr 1e-5
    python -m tests.equality --processes 1 --lr 1e-3      # one process against itself, its pixels changed in their last bit

Batches are of 7 and 6 samples in turn. Losses are compared relatively (below 0.1 as at 0.1), weights absolutely.
"""
import argparse
import pathlib
import tempfile

import torch

from tests.processor.test_several_processes import RECIPES, train_in_default_precision
from tests.several import Processes
from tests.support import golden_archive, golden_json
from utils.tables import as_markdown


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--lr', type=float, default=1e-5)
    parser.add_argument('--eps', type=float, default=1e-3, help="AdamW's")
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = [7 - step % 2 for step in range(args.steps)]
    others = Processes(args.processes) if args.processes > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        archive = golden_archive(golden_json('irra_tiny'), pathlib.Path(folder) / 'clip.pt')
        rows = [compare(name, archive, sizes, args, others) for name in args.recipes]
    if others:
        others.close()
    print(as_markdown(f'{args.processes} processes against one, {args.steps} steps, AdamW, lr {args.lr:g}, eps {args.eps:g}',
                      ['recipe', 'losses of the first step', 'losses of all steps', 'weights behind the last'], rows))


def compare(name, archive, sizes, args, others):
    """The row of a recipe."""
    inputs = archive, RECIPES[name], sizes, None, args.lr, args.eps
    told, _, weights = train_in_default_precision(*inputs)
    found = others.each(train_in_default_precision, *inputs) if others else [train_in_default_precision(*inputs, last_bit=True)]
    apart = [[max(abs(there[loss] - value) / max(abs(value), 0.1) for loss, value in here.items()) for here, there in zip(told, steps)]
             for steps, _, _ in found]
    moved = max((there[part] - weight).abs().max().item() for _, _, there in found for part, weight in weights.items())
    return [name, f'{max(steps[0] for steps in apart):.1e}', f'{max(map(max, apart)):.1e}', f'{moved:.1e}']


if __name__ == '__main__':
    main()

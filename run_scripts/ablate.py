"""Train a grid of ablations and print their table with means and standard deviations.

    python -m run_scripts.ablate --config_file configs/irra.yaml \\
        --loss_names sdm sdm+id+mlm --seeds 1 2 3 -- --dataset_name RSTPReid
    python -m run_scripts.ablate --config_file ... --vary lr 1e-5 3e-5 \\
        --vary temperature 0.02 0.05 -- --num_epoch 20

The grid is the product of loss strings, seeds and values of any flags over a recipe. All options after -- go to every
train.py. Each run is a process with its own folder, and the folder's name depends only on the run's options. The same
command therefore continues an interrupted grid: it skips finished runs, resumes interrupted ones and starts the others.
A second process of the same command, for example on another GPU, trains the runs that no other process trains.

The tool prints the table and writes it as table.txt, .md, .tex and .csv. ``--table_only --epoch last`` makes another
table of the same runs, table_last.txt and so on. The exit status is 0 if every run is finished, 1 if not, and 130 if a
signal stopped the grid.
"""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts.ablation.grid import build_ablation_parser
from run_scripts.ablation.training import run_grid
from utils.commands import command_line
from utils.errors import run_program
from utils.parser import split_at_dashes


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    grid_words, train_words = split_at_dashes(argv)
    args = build_ablation_parser(__doc__).parse(grid_words)
    return run_grid(args, train_words, command_line(__file__, argv))


if __name__ == '__main__':
    run_program(main)

"""Does a run that is killed again and again end as one that never was?

    python run_scripts/kill_and_resume.py --kills 20

Trains a tiny model on a small synthpedes folder, once undisturbed and once ended with ``kill -9`` at random moments and
resumed each time, and compares both runs' final weights, best checkpoints and metrics bit for bit. What follows ``--`` goes to
train.py (``-- --num_workers 2 --save_steps 1``). Exit status 0 if all agree.
"""
import argparse
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import torch  # noqa: E402

from utils.errors import UserError, run  # noqa: E402

DEFAULTS = ['--dataset_name', 'synthpedes', '--loss_names', 'sdm+mlm+id', '--pretrain_choice', 'scratch:tiny', '--img_size', '96', '48',
            '--img_aug', '--MLM', '--batch_size', '16', '--num_epoch', '3', '--save_steps', '2', '--num_workers', '0', '--log_period', '1',
            '--warmup_epochs', '1', '--device', 'cpu', '--lr', '1e-3', '--cmt_depth', '1']


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--ids', type=int, default=30, help='training identities')
    parser.add_argument('--folder', help='where to work and leave everything (default: a temporary folder, removed)')
    parser.add_argument('train_options', nargs='*', help='after --, for train.py')
    args = parser.parse_args(argv)
    if args.folder:
        os.makedirs(args.folder, exist_ok=True)
        return compare(args, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        return compare(args, folder)


def compare(args, folder):
    data = os.path.join(folder, 'data')
    call([sys.executable, '-m', 'datasets.synthpedes', '--out', data, '--ids', str(args.ids), '--val_ids', '0', '--test_ids', '8',
          '--size', '96', '48'])
    command = [sys.executable, os.path.join(ROOT, 'train.py'), *DEFAULTS, '--root_dir', data, *args.train_options]

    began = time.time()
    whole_output = os.path.join(folder, 'whole')
    process = start([*command, '--output_dir', whole_output])
    starting = time_until(process, lambda: glob.glob(os.path.join(whole_output, '*', '*', 'metrics.jsonl')))
    finish(process)
    took = time.time() - began
    print(f'undisturbed: {took:.1f} s, of which {starting:.1f} s until the first step')

    moments, kills, output = random.Random(args.seed), 0, os.path.join(folder, 'killed')
    while True:
        last = sorted(glob.glob(os.path.join(output, '*', '*', 'last.pth')))
        resume = ['--resume', '--resume_ckpt_file', last[-1]] if last else []
        process = start([*command, '--output_dir', output, *resume])
        if kills == args.kills:
            finish(process)
            break
        # About as many kills as asked for fit into the run: most while it trains, some while it starts.
        delay = starting * moments.uniform(0.8, 1.1) + moments.uniform(0, 2 * (took - starting) / args.kills)
        try:
            process.wait(delay)
            finish(process)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            print(f'kill {kills} after {delay:.1f} s, {where(last)}', flush=True)

    differences = list(different(only(whole_output), only(output)))
    print('\n'.join(differences) or f'the same weights, best checkpoint and metrics after {kills} kills')
    return 1 if differences else 0


def start(command):
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    if process.returncode:
        raise UserError(f'train.py left with status {process.returncode}: {errors[-2000:].strip()}')


def call(command):
    finish(start(command))


def time_until(process, happened):
    began = time.time()
    while process.poll() is None and not happened():
        time.sleep(0.05)
    return time.time() - began


def where(last):
    return f"resumed from {os.path.relpath(last[-1], ROOT)}" if last else 'of a new run'


def only(output):
    """The one run folder that has weights."""
    folders = [os.path.dirname(path) for path in glob.glob(os.path.join(output, '*', '*', 'last.pth'))]
    if len(folders) != 1:
        raise UserError(f'{len(folders)} runs with weights in {output}')
    return folders[0]


def different(one, other):
    """What differs between two runs' folders, a line each."""
    for name in ('last.pth', 'best.pth'):
        a, b = (torch.load(os.path.join(folder, name), weights_only=True) for folder in (one, other))
        for key in sorted(set(a) | set(b)):
            if key != 'random_states' and not same(a.get(key), b.get(key)):
                yield f'{name}: {key} differs'
    a, b = (journal(folder) for folder in (one, other))
    if a != b:
        yield f'metrics.jsonl: {sum(x != y for x, y in zip(a, b))} lines differ, {len(a)} and {len(b)} lines'


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def journal(folder):
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        lines = [json.loads(line) for line in file]
    return [{name: value for name, value in line.items() if name != 'samples_per_second'} for line in lines]


if __name__ == '__main__':
    run(main)

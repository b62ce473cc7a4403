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

import torch

from run_scripts import ROOT, start
from utils.errors import UserError

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

    whole_output, output = os.path.join(folder, 'whole'), os.path.join(folder, 'killed')
    finish(launch([*command, '--output_dir', whole_output]))
    steps = journal(only(whole_output))[-1]['step']
    print(f'undisturbed: {steps} steps')

    draw, kills = random.Random(args.seed), 0
    # Moments: a step by which the process is killed, and a fraction of a second more, to hit any part of a step or a write.
    for step in sorted(draw.randrange(steps * 9 // 10) for _ in range(args.kills)):
        process, resumed = launch([*command, '--output_dir', output, *resumption(output)]), bool(resumption(output))
        wait_for(step, output, process)
        time.sleep(draw.uniform(0, 0.4))
        ended_itself = process.poll() is not None
        process.kill()
        process.communicate()
        if ended_itself:
            break
        kills += 1
        print(f"kill {kills} of {'a resumed' if resumed else 'the new'} run at step {last_step(output)}", flush=True)
    finish(launch([*command, '--output_dir', output, *resumption(output)]))

    differences = list(different(only(whole_output), only(output)))
    print('\n'.join(differences) or f'the same weights, best checkpoint and metrics after {kills} kills')
    return 1 if differences else 0


def launch(command):
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    if process.returncode:
        raise UserError(f'train.py left with status {process.returncode}: {errors[-2000:].strip()}')


def call(command):
    finish(launch(command))


def resumption(output):
    """The flags that go on with the run in ``output``; none if it has not saved anything yet."""
    last = glob.glob(os.path.join(output, '*', '*', 'last.pth'))
    return ['--resume', '--resume_ckpt_file', last[0]] if last else []


def last_step(output):
    """The last step that the run in ``output`` has reported, or 0."""
    steps = [line['step'] for path in glob.glob(os.path.join(output, '*', '*', 'last.pth')) for line in journal(os.path.dirname(path))]
    return max(steps, default=0)


def wait_for(step, output, process):
    """Until the process is training and has reported ``step``, or has ended."""
    began = time.time()
    while process.poll() is None and (last_step(output) < step or not started_since(began, output)):
        time.sleep(0.01)


def started_since(moment, output):
    paths = glob.glob(os.path.join(output, '*', '*', 'metrics.jsonl'))
    return any(os.path.getmtime(path) > moment for path in paths)


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
    path = os.path.join(folder, 'metrics.jsonl')
    if not os.path.exists(path):
        return []
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.endswith('\n')]
    return [{name: value for name, value in line.items() if name != 'samples_per_second'} for line in lines]


if __name__ == '__main__':
    start(main)

"""Does a run that is killed again and again end as one that never was?

    python run_scripts/kill_and_resume.py --kills 20

Trains a tiny model on a small synthpedes folder, once undisturbed and once ended with ``kill -9`` at random moments and
resumed each time, and compares both runs' final weights, best checkpoints and metrics bit for bit. What follows ``--`` goes to
train.py (``-- --num_workers 2 --save_steps 1``). Exit status 0 if all agree.

With ``--processes 2`` torchrun starts both runs. Mostly one process is killed, drawn at random, and the others must end within a minute;
sometimes all are, with torchrun. With ``--resume_with 1`` the killed run goes on with another number of processes; then weights and losses
may differ by 1e-4, for sums are added up in another order.
"""
import argparse
import contextlib
import glob
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import torch

from run_scripts import ROOT, start
from utils.errors import UserError
from utils.option_types import count, whole

DEFAULTS = ['--dataset_name', 'synthpedes', '--loss_names', 'sdm+mlm+id', '--pretrain_choice', 'scratch:tiny', '--img_size', '96', '48',
            '--img_aug', '--MLM', '--batch_size', '16', '--num_epoch', '3', '--save_steps', '2', '--num_workers', '0', '--log_period', '1',
            '--warmup_epochs', '1', '--device', 'cpu', '--lr', '1e-3', '--cmt_depth', '1']

MINUTE = 60     # seconds that processes have to end after one of them
APART = 1e-4    # how far weights and losses may be apart after another number of processes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=count, default=20)
    parser.add_argument('--seed', type=whole, default=0, help='of the moments')
    parser.add_argument('--ids', type=count, default=30, help='training identities')
    parser.add_argument('--processes', type=count, default=1, help='how many train together')
    parser.add_argument('--resume_with', type=count, help='processes that go on with the killed run (default: as many)')
    parser.add_argument('--folder', help='where to work and leave everything (default: a temporary folder, removed)')
    parser.add_argument('train_options', nargs='*', help='after --, for train.py')
    args = parser.parse_args(argv)
    if not os.path.isdir('/proc/self/task'):
        raise UserError('kill_and_resume.py finds the processes that it kills in /proc, so it needs Linux')
    if args.folder:
        os.makedirs(args.folder, exist_ok=True)
        return compare(args, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        return compare(args, folder)


def compare(args, folder):
    data = os.path.join(folder, 'data')
    call([sys.executable, '-m', 'datasets.synthpedes', '--out', data, '--ids', str(args.ids), '--val_ids', '0', '--test_ids', '8',
          '--size', '96', '48'])
    options = [*DEFAULTS, '--root_dir', data, *args.train_options]

    whole_output, output = os.path.join(folder, 'whole'), os.path.join(folder, 'killed')
    finish(launch([*program(args.processes), *options, '--output_dir', whole_output]))
    steps = journal(only(whole_output))[-1]['step']
    print(f'undisturbed: {steps} steps', flush=True)

    def launch_killed():
        resumed = resumption(output)
        processes = (resumed and args.resume_with) or args.processes
        return launch([*program(processes), *options, '--output_dir', output, *resumed]), processes, bool(resumed)

    draw, kills, problems = random.Random(args.seed), 0, []
    # Moments: a step by which the process is killed, and a fraction of a second more, to hit any part of a step or a write.
    for step in sorted(draw.randrange(steps * 9 // 10) for _ in range(args.kills)):
        process, processes, resumed = launch_killed()
        wait_for(step, output, process)
        time.sleep(draw.uniform(0, 0.4))
        victim = draw.randrange(processes) if processes > 1 and draw.random() < 0.8 else None
        if process.poll() is not None or (processes > 1 and len(children(process.pid)) < processes):     # it ended itself
            process.communicate()
            break
        kills += 1
        who = '' if processes == 1 else ' all of' if victim is None else f' process {victim} of'
        print(f"kill {kills}:{who} {'a resumed' if resumed else 'the new'} run at step {last_step(output)}", flush=True)
        problems += [f'kill {kills}: {problem}' for problem in end(process, victim)]
    finish(launch_killed()[0])

    folders = only(whole_output), only(output)
    another = args.resume_with not in (None, args.processes)
    differences = [*problems, *(far_apart(*folders) if another else different(*folders))]
    same_as = f'weights and losses within {APART:g}' if another else 'the same weights, best checkpoint and metrics'
    print('\n'.join(differences) or f'{same_as} after {kills} kills')
    return 1 if differences else 0


def program(processes):
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node', str(processes)] if processes > 1 else []
    return [sys.executable, *torchrun, os.path.join(ROOT, 'train.py')]


def end(process, victim):
    """Kill the process of that number, or all for None, and yield what is wrong with how the others end."""
    if victim is None:
        return kill_all(process)
    os.kill(children(process.pid)[victim], signal.SIGKILL)
    try:
        _, errors = process.communicate(timeout=MINUTE)
    except subprocess.TimeoutExpired:
        kill_all(process)
        yield f'the others did not end within {MINUTE} s'
        return
    sentences = errors.count('train.py: error: ')
    if sentences != 1 or errors.count('Traceback') > 1:     # torchrun's own
        yield f'{sentences} sentences instead of one: {errors[-4000:]}'


def kill_all(process):
    for pid in (process.pid, *children(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def children(pid):
    """The processes that torchrun started, by their numbers; of a program that is no torchrun, those that read images."""
    with open(f'/proc/{pid}/task/{pid}/children', encoding='utf-8') as file:
        return sorted(map(int, file.read().split()))


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


def far_apart(one, other):
    """Where two runs' last weights or losses differ by more than :data:`APART`, a line each."""
    a, b = (torch.load(os.path.join(folder, 'last.pth'), weights_only=True)['model'] for folder in (one, other))
    if a.keys() != b.keys():
        yield 'last.pth: other weights'
    for name in sorted(set(a) & set(b)):
        if not torch.allclose(a[name].float(), b[name].float(), rtol=APART, atol=APART):
            yield f'last.pth: {name} differs by up to {(a[name].float() - b[name].float()).abs().max():.2g}'
    a, b = ([(line['step'], line['loss']) for line in journal(folder) if 'loss' in line] for folder in (one, other))
    if [step for step, _ in a] != [step for step, _ in b]:
        yield f'metrics.jsonl: {len(a)} and {len(b)} lines'
    apart = max((abs(x - y) / abs(x) for (_, x), (_, y) in zip(a, b)), default=0)
    if apart > APART:
        yield f'metrics.jsonl: losses differ by up to {apart:.2g} of their size'


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
    with open(path, encoding='utf-8') as file:
        lines = [json.loads(line) for line in file if line.endswith('\n')]
    return [{name: value for name, value in line.items() if name != 'samples_per_second'} for line in lines]


if __name__ == '__main__':
    start(main)

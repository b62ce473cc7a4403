"""Check that a run that is killed and resumed many times ends like an undisturbed run.

    python -m run_scripts.kill_and_resume --kills 20
    python -m run_scripts.kill_and_resume --kills 20 -- --num_workers 2 --save_steps 1

The tool trains a tiny model on a small synthpedes folder twice. It leaves the first run undisturbed. It ends the
second run with SIGKILL at random moments and resumes it each time. Then it compares the final weights, the best
checkpoints and the metrics of both runs bit by bit. The exit status is 0 if all are equal. All options after -- go to
train.py.

With --processes 2, torchrun starts both runs. Usually the tool kills one random process, and the others must end within
a minute. Sometimes it kills all processes, with torchrun. With --resume_with 1, the killed run continues with another
number of processes. Then weights and losses may differ by 1e-4, because the order of summation changes.
"""
import contextlib
import glob
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts import program_words
from utils.commands import program_name
from utils.errors import UserError, run_program
from utils.option_types import non_negative_int, positive_int
from utils.options import Parser
from utils.parser import split_at_dashes

DEFAULTS = ['--dataset_name', 'synthpedes', '--loss_names', 'sdm+mlm+id', '--pretrain_choice', 'scratch:tiny',
            '--img_size', '96', '48', '--img_aug', '--MLM', '--batch_size', '16', '--num_epoch', '3',
            '--save_steps', '2', '--num_workers', '0', '--log_period', '1', '--warmup_epochs', '1', '--device', 'cpu',
            '--lr', '1e-3', '--cmt_depth', '1']

EXIT_TIMEOUT = 60   # seconds in which the other processes must end after one is killed
TOLERANCE = 1e-4    # largest difference of weights and losses after another number of processes


def main(argv=None):
    tool_words, train_words = split_at_dashes(list(sys.argv[1:] if argv is None else argv))
    args = build_kill_parser().parse(tool_words)
    if not os.path.isdir('/proc/self/task'):
        raise UserError('kill_and_resume.py finds the processes to kill in /proc, so it needs Linux')
    if args.folder:
        os.makedirs(args.folder, exist_ok=True)
        return run_check(args, train_words, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        return run_check(args, train_words, folder)


def build_kill_parser():
    parser = Parser(prog='kill_and_resume.py', description=__doc__,
                    usage='%(prog)s [--<option> VALUE ...] [-- <options of train.py>]')
    parser.add_argument('--kills', type=positive_int, default=20, help='number of times that the run is killed')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='random seed of the moments')
    parser.add_argument('--ids', type=positive_int, default=30, help='number of training identities')
    parser.add_argument('--processes', type=positive_int, default=1, help='number of training processes')
    parser.add_argument('--resume_with', type=positive_int,
                        help='number of processes of the resumed run (default: as --processes)')
    parser.add_argument('--folder', help='folder of data and runs, which is kept (default: a temporary folder)')
    return parser


def run_check(args, train_words, folder):
    """Train both runs, print how they differ, and return the exit status."""
    data = os.path.join(folder, 'data')
    wait_for_success(launch([sys.executable, *program_words('synthpedes'), '--out', data, '--ids', str(args.ids),
                             '--val_ids', '0', '--test_ids', '8', '--size', '96', '48']))
    options = [*DEFAULTS, '--root_dir', data, *train_words]

    reference_output, output = os.path.join(folder, 'undisturbed'), os.path.join(folder, 'killed')
    wait_for_success(launch([*train_command(args.processes), *options, '--output_dir', reference_output]))
    reference_run = find_run_folder(reference_output)
    steps = read_metrics(reference_run)[-1].step
    print(f'undisturbed: {steps} steps', flush=True)

    def launch_killed():
        flags = resume_flags(output)
        processes = (flags and args.resume_with) or args.processes
        process = launch([*train_command(processes), *options, '--output_dir', output, *flags])
        return process, processes, bool(flags)

    rng, kills, problems = random.Random(args.seed), 0, []
    # A moment is a step, and up to 0.4 s after it, to hit any part of a step or of a write.
    for step in sorted(rng.randrange(steps * 9 // 10) for _ in range(args.kills)):
        process, processes, is_resumed = launch_killed()
        wait_for_step(step, output, process)
        time.sleep(rng.uniform(0, 0.4))
        victim = rng.randrange(processes) if processes > 1 and rng.random() < 0.8 else None
        has_ended = process.poll() is not None or (processes > 1 and len(child_pids(process.pid)) < processes)
        if has_ended:
            process.communicate()
            break
        kills += 1
        target = '' if processes == 1 else ' all of' if victim is None else f' process {victim} of'
        run = 'a resumed' if is_resumed else 'the new'
        print(f'kill {kills}:{target} {run} run at step {read_last_step(output)}', flush=True)
        problems += [f'kill {kills}: {problem}' for problem in kill(process, victim)]
    wait_for_success(launch_killed()[0])

    run = find_run_folder(output)
    has_other_sums = args.resume_with not in (None, args.processes)
    compare = compare_approximately if has_other_sums else compare_exactly
    differences = [*problems, *compare(reference_run, run)]
    agreement = (f'weights and losses within {TOLERANCE:g}' if has_other_sums
                 else 'the same weights, best checkpoint and metrics')
    print('\n'.join(differences) or f'{agreement} after {kills} kills')
    return 1 if differences else 0


# -- processes -------------------------------------------------------------------------------------------------------

def train_command(processes):
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node', str(processes)] if processes > 1 else []
    return [sys.executable, *torchrun, *program_words('train')]


def launch(command):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_success(process):
    _, errors = process.communicate()
    if process.returncode:
        raise UserError(f'train.py exited with status {process.returncode}: {errors[-2000:].strip()}')


def kill(process, victim):
    """Kill the child process with the number ``victim``, or all if it is None.

    Returns:
        An iterable of sentences about other processes that do not end as they must.
    """
    if victim is None:
        kill_all(process)
        return
    os.kill(child_pids(process.pid)[victim], signal.SIGKILL)
    try:
        _, errors = process.communicate(timeout=EXIT_TIMEOUT)
    except subprocess.TimeoutExpired:
        kill_all(process)
        yield f'the other processes did not end within {EXIT_TIMEOUT} s'
        return
    messages = errors.count(f"{program_name('train.py')}: error: ")
    if messages != 1 or errors.count('Traceback') > 1:     # torchrun prints one traceback itself
        yield f'{messages} error messages instead of one: {errors[-4000:]}'


def kill_all(process):
    for pid in (process.pid, *child_pids(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def child_pids(pid):
    """The child processes: training processes of torchrun, data loader workers of train.py."""
    with open(f'/proc/{pid}/task/{pid}/children', encoding='utf-8') as file:
        return sorted(map(int, file.read().split()))


def wait_for_step(step, output, process):
    """Wait until the process trains and the log has reached ``step``, or until the process ends."""
    launch_time = time.time()
    while process.poll() is None and (read_last_step(output) < step or not has_written_since(launch_time, output)):
        time.sleep(0.01)


# -- runs ------------------------------------------------------------------------------------------------------------

def resume_flags(output):
    """The flags that resume the run in ``output``; [] if it has not saved a checkpoint yet."""
    checkpoints = glob.glob(os.path.join(output, '*', '*', 'last.pth'))
    return ['--resume', '--resume_ckpt_file', checkpoints[0]] if checkpoints else []


def read_last_step(output):
    """The last step in the metrics of the run in ``output``, or 0."""
    folders = map(os.path.dirname, glob.glob(os.path.join(output, '*', '*', 'last.pth')))
    return max((record.step for folder in folders for record in read_metrics(folder)), default=0)


def has_written_since(moment, output):
    paths = glob.glob(os.path.join(output, '*', '*', 'metrics.jsonl'))
    return any(os.path.getmtime(path) > moment for path in paths)


def find_run_folder(output):
    """The folder of the one run with weights."""
    folders = [os.path.dirname(path) for path in glob.glob(os.path.join(output, '*', '*', 'last.pth'))]
    if len(folders) != 1:
        raise UserError(f'{output} has {len(folders)} runs with weights, expected 1')
    return folders[0]


def read_metrics(folder):
    """The records of metrics.jsonl without the speed."""
    from processor.results import read_metrics_log
    return [record._replace(values={name: value for name, value in record.values.items()
                                    if name != 'samples_per_second'}) for record in read_metrics_log(folder)]


# -- comparison ------------------------------------------------------------------------------------------------------

def compare_exactly(folder, other_folder):
    """Yield a line for each difference between the files of two runs."""
    import torch
    for name in ('last.pth', 'best.pth'):
        a, b = (torch.load(os.path.join(path, name), weights_only=True) for path in (folder, other_folder))
        for key in sorted(set(a) | set(b)):
            if key != 'random_states' and not is_equal(a.get(key), b.get(key)):
                yield f'{name}: {key} differs'
    a, b = read_metrics(folder), read_metrics(other_folder)
    if a != b:
        yield f'metrics.jsonl: {sum(x != y for x, y in zip(a, b))} lines differ, {len(a)} and {len(b)} lines'


def compare_approximately(folder, other_folder):
    """Yield a line for each difference above :data:`TOLERANCE` between the last weights or the losses of two runs."""
    import torch
    a, b = (torch.load(os.path.join(path, 'last.pth'), weights_only=True)['model'] for path in (folder, other_folder))
    if a.keys() != b.keys():
        yield 'last.pth: the names of the weights differ'
    for name in sorted(set(a) & set(b)):
        x, y = a[name].float(), b[name].float()
        if not torch.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE):
            yield f'last.pth: {name} differs by up to {(x - y).abs().max():.2g}'
    a, b = ([(record.step, record.values['loss']) for record in read_metrics(path) if 'loss' in record.values]
            for path in (folder, other_folder))
    if [step for step, _ in a] != [step for step, _ in b]:
        yield f'metrics.jsonl: {len(a)} and {len(b)} lines'
    difference = max((abs(x - y) / abs(x) for (_, x), (_, y) in zip(a, b)), default=0)
    if difference > TOLERANCE:
        yield f'metrics.jsonl: losses differ by up to {difference:.2g} of their size'


def is_equal(a, b):
    """Whether two contents of checkpoints are equal, bit by bit."""
    import torch
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return a == b


if __name__ == '__main__':
    run_program(main)

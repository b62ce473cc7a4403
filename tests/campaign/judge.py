"""Start a program in a new process, and judge how it exits and what files it leaves."""
import gc
import importlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import stat
import sys
import time
import zlib

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MEMORY = 6 << 30      # bytes that a program may allocate after its start
MAX_LENGTH = 1000     # characters of a readable sentence
STATUSES = {'datasets.check': (0, 1, 2), 'test.py': (0, 2, 3)}   # others: 0, 2
# What programs import, some of it late. A forked program finds it imported.
SLOW_MODULES = ('processor.training_run', 'processor.test_run', 'run_scripts.retrieve', 'run_scripts.search',
                'torch.utils.tensorboard', 'matplotlib.pyplot')
UNCHANGED_ENDINGS = ('best.pth', '.pt', '.jpg', '.json')     # no program that refuses its input changes these files


def preload_programs():
    """Import and read once what would take half of the time of each forked program."""
    from utils.simple_tokenizer import default_tokenizer
    for name in SLOW_MODULES:
        importlib.import_module(name)
    default_tokenizer()
    gc.freeze()     # the garbage collector of a forked program would copy the memory of all that has been imported


def launch(words, folder, seconds):
    """Run ``['train.py', ...]`` or ``['-m', 'datasets.check', ...]`` in ``folder`` as Python would.

    The process is forked from this one, which has imported PyTorch already. A case takes half a second instead of five.

    Returns:
        ``(status, output, errors, has_survivors)``. The status is None if the program was killed after ``seconds``.
        ``has_survivors`` says whether processes of the program still ran after it.
    """
    sys.stdout.flush()
    process = multiprocessing.get_context('fork').Process(target=in_child, args=(words, folder))
    process.start()
    try:
        process.join(seconds)
        status = process.exitcode
    finally:
        has_survivors = is_group_alive(process.pid) if process.exitcode is not None else False
        if process.exitcode is None or has_survivors:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    texts = []
    for name in ('output', 'errors'):
        with open(os.path.join(folder, name), encoding='utf-8', errors='backslashreplace') as file:
            texts.append(file.read())
    return status, *texts, has_survivors


def in_child(words, folder):
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, 'output'), (2, 'errors')):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    with open('/proc/self/statm') as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if words[0] == '-m':
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(os.path.join(ROOT, words[0]), run_name='__main__')


def is_group_alive(group):
    """Whether processes of a group still run a minute after its leader ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def snapshot(folder):
    """Compute the checksums of the files in a folder.

    Returns:
        ``{path: checksum}``, None for files that are not regular or may change.
    """
    checksums = {}
    for subfolder, folders, names in os.walk(folder):
        for path in (os.path.join(subfolder, name) for name in folders + names):
            checksums[path] = None
            if path.endswith(UNCHANGED_ENDINGS) and stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, 'rb') as file:
                    checksums[path] = zlib.crc32(file.read())
    return checksums


def find_problems(words, folder, before, seconds):
    """Run a program, and list the problems of its exit and its files: ``(problems, status, output, errors)``."""
    status, output, errors, has_survivors = launch(words, folder, seconds)
    problems = []
    if status is None:
        problems.append(f'still running after {seconds} seconds')
    elif status < 0:
        problems.append(f'ended by signal {-status}')
    elif status not in STATUSES.get(words[1] if words[0] == '-m' else words[0], (0, 2)):
        problems.append(f'status {status}')
    problems += ['its processes still run'] * has_survivors
    problems += ['a traceback'] * ('Traceback (most recent call last)' in output + errors)
    if status == 2:
        problems += check_error_message(errors) + find_changes(before, folder)
    return problems + find_leftovers(folder, before), status, output, errors


def check_error_message(errors):
    """Check that one readable line says what is wrong: a list of problems."""
    lines = [line for line in errors.split('\n') if 'error: ' in line]
    if len(lines) != 1 or errors.rstrip('\n').split('\n')[-1] != lines[0]:
        return [f'status 2 with {len(lines)} sentences']
    unprintable = [character for character in lines[0] if not character.isprintable()]
    return ([f'a sentence of {len(lines[0])} characters'] if len(lines[0]) > MAX_LENGTH else []) + \
        ([f'a sentence with {ascii(unprintable[0])} in it'] if unprintable else [])


def find_changes(before, folder):
    """List the files of a :func:`snapshot` that have changed."""
    after = snapshot(folder)
    return [f'{os.path.relpath(path, folder)} was changed' for path in before
            if before[path] is not None and after.get(path) != before[path]]


def find_leftovers(folder, before):
    """List half-written files, folders of runs without a run, and invalid new checkpoints and results."""
    problems = []
    for subfolder, _, names in os.walk(folder):
        problems += [f'{name} is left over' for name in names if name.endswith('.tmp')]
        if 'train_log.txt' in names and 'last.pth' not in names and os.path.join(subfolder, 'last.pth') not in before:
            problems.append(f'{os.path.relpath(subfolder, folder)} is left over')
        for name in names:
            path = os.path.join(subfolder, name)
            if path not in before and name.endswith('.pth'):
                problems += [f'{name} is damaged or not finite'] * (not is_valid_checkpoint(path))
            if path not in before and name.startswith('metrics') and name.endswith('.json'):
                problems += [f'{name} holds {constant}' for constant in find_invalid_constants(path)]
    return problems


def find_invalid_constants(path):
    """List the constants in a file that are no JSON: NaN, Infinity."""
    constants = []
    with open(path) as file:
        json.load(file, parse_constant=constants.append)
    return constants


def is_valid_checkpoint(path):
    """Whether a checkpoint can be read and all its numbers are finite."""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # any error means that it cannot be read
        return False
    pending = [content]
    while pending:
        value = pending.pop()
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            return False
    return True

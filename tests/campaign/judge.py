"""Start a program in a process of its own and judge how it ends and what it leaves."""
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
MEMORY = 6 << 30      # bytes that a program may ask for beyond what it starts with
LONGEST = 1000        # characters of a sentence that people still read
STATUSES = {'datasets.check': (0, 1, 2), 'test.py': (0, 2, 3)}   # others: 0, 2
KEPT = ('best.pth', '.pt', '.jpg', '.json')     # no program that refuses its input changes these


def launch(words, folder, seconds):
    """Run ``['train.py', ...]`` or ``['-m', 'datasets.check', ...]`` in ``folder`` as Python would: (status, output, errors, survivors).
    The status is None if it had to be ended after ``seconds``; survivors tells whether it left processes behind.

    The process is forked from this one, which has imported PyTorch already: a case takes half a second instead of five.
    """
    sys.stdout.flush()
    process = multiprocessing.get_context('fork').Process(target=in_child, args=(words, folder))
    process.start()
    try:
        process.join(seconds)
        status = process.exitcode
    finally:
        survivors = status_of_group(process.pid) if process.exitcode is not None else False
        if process.exitcode is None or survivors:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    texts = []
    for name in ('output', 'errors'):
        with open(os.path.join(folder, name), encoding='utf-8', errors='backslashreplace') as file:
            texts.append(file.read())
    return status, *texts, survivors


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


def status_of_group(group):
    """Whether processes of the group are still there a minute after its leader ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def snapshot(folder):
    """{path: checksum} of everything in a folder; None for what is no regular file, and for what may change."""
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in folders + names):
            found[path] = None
            if path.endswith(KEPT) and stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, 'rb') as file:
                    found[path] = zlib.crc32(file.read())
    return found


def complaints(words, folder, before, seconds):
    """(what is wrong with how the program ended and what it left, as sentences; its status, output and errors)."""
    status, output, errors, survivors = launch(words, folder, seconds)
    wrong = []
    if status is None:
        wrong.append(f'still running after {seconds} seconds')
    elif status < 0:
        wrong.append(f'ended by signal {-status}')
    elif status not in STATUSES.get(words[1] if words[0] == '-m' else words[0], (0, 2)):
        wrong.append(f'status {status}')
    wrong += ['left processes behind'] * survivors
    wrong += ['a traceback'] * ('Traceback (most recent call last)' in output + errors)
    if status == 2:
        wrong += sentence(errors) + changed(before, folder)
    return wrong + left_over(folder, before), status, output, errors


def sentence(errors):
    """Is there one line that says what is wrong, and is it one that people can read?"""
    lines = [line for line in errors.split('\n') if 'error: ' in line]
    if len(lines) != 1 or errors.rstrip('\n').split('\n')[-1] != lines[0]:
        return [f'status 2 with {len(lines)} sentences']
    unprintable = [character for character in lines[0] if not character.isprintable()]
    return ([f'a sentence of {len(lines[0])} characters'] if len(lines[0]) > LONGEST else []) + \
        ([f'a sentence with {ascii(unprintable[0])} in it'] if unprintable else [])


def changed(before, folder):
    after = snapshot(folder)
    return [f'{os.path.relpath(path, folder)} was changed' for path in before
            if before[path] is not None and after.get(path) != before[path]]


def left_over(folder, before):
    """Half-written files, runs' folders without a run, and new checkpoints and results that are not whole."""
    wrong = []
    for place, _, names in os.walk(folder):
        wrong += [f'{name} is left over' for name in names if name.endswith('.tmp')]
        if 'train_log.txt' in names and 'last.pth' not in names and os.path.join(place, 'last.pth') not in before:
            wrong.append(f'{os.path.relpath(place, folder)} is left over')
        for name in names:
            path = os.path.join(place, name)
            if path not in before and name.endswith('.pth'):
                wrong += [f'{name} is not whole'] * (not whole(path))
            if path not in before and name.startswith('metrics') and name.endswith('.json'):
                wrong += [f'{name} holds {word}' for word in not_numbers(path)]
    return wrong


def not_numbers(path):
    """What a JSON file holds that is no JSON: NaN, Infinity."""
    found = []
    with open(path) as file:
        json.load(file, parse_constant=found.append)
    return found


def whole(path):
    """Can a new checkpoint be read, and is all of it finite?"""
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # that it can be read is what is asked
        return False
    pending = [content]
    while pending:
        value = pending.pop()
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        if isinstance(value, torch.Tensor) and not value.isfinite().all():
            return False
    return True

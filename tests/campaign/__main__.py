"""Run cases: ``python -m tests.campaign --minutes 10 --seed 1``.

``--case 137 --folder here`` repeats one case and shows its output.
"""
import argparse
import collections
import os
import random
import shlex
import shutil
import sys
import tempfile
import time

os.environ['OMP_NUM_THREADS'] = '1'    # before PyTorch is imported: processes are forked from this one

from tests.campaign import cases, judge
from tests.support import small_vocabulary


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.campaign', description=__doc__)
    kinds = ', '.join(dict.fromkeys(kind.__name__ for kind in cases.KINDS))
    parser.add_argument('--minutes', type=float, default=10, help='minutes after which no new case starts')
    parser.add_argument('--cases', type=int, default=10 ** 9, help='maximum number of cases')
    parser.add_argument('--seed', type=int, default=0, help='seed of all cases')
    parser.add_argument('--case', type=int, help='number of the only case to run')
    parser.add_argument('--kind', help=f'the only kind of cases to run: {kinds}')
    parser.add_argument('--folder', help='folder to work in; the files of the case stay there')
    parser.add_argument('--show', action='store_true', help='also print the output of cases that passed')
    parser.add_argument('--seconds', type=float, default=60, help='seconds that a program may take')
    args = parser.parse_args()
    with small_vocabulary():
        return run(args)


def run(args):
    """Run one case or all, and return the exit status."""
    judge.preload_programs()
    folder = os.path.abspath(args.folder) if args.folder else tempfile.mkdtemp(prefix='campaign')
    os.environ['HOME'] = folder    # hides the pretrained CLIP of this machine
    try:
        return run_case(args, folder) if args.case is not None else run_cases(args, folder)
    finally:
        if not args.folder:
            shutil.rmtree(folder)


def run_cases(args, folder):
    base = prepare_base(folder)
    before, start = judge.snapshot(base), time.time()
    tried, failed = collections.Counter(), collections.Counter()
    for number in range(args.cases):
        if time.time() - start > 60 * args.minutes:
            break
        kind = get_kind(number)
        if args.kind not in (None, kind.__name__):
            continue
        tried[kind.__name__] += 1
        change, words, problems, output = try_case(args, base, os.path.join(folder, 'case'), number)
        if args.show and not problems:
            print(f'case {number}, {kind.__name__}: {change}: passed: {output.strip()[-200:]}', flush=True)
        if problems:
            failed[kind.__name__] += 1
            print(f'case {number}, {kind.__name__}: {change}: {"; ".join(problems)}\n  {format_command(words)}\n'
                  f'  again: python -m tests.campaign --seed {args.seed} --case {number} --folder <folder>', flush=True)
    changes = judge.find_changes(before, base)
    print(f'{tried.total()} cases in {time.time() - start:.0f} s, {tried.total() - failed.total()} passed, '
          f'{failed.total()} failed')
    for kind, count in sorted(tried.items()):
        print(f'  {kind}: {count} cases, {failed[kind]} failed')
    for line in changes:
        print(f'a program wrote into a file instead of replacing it: {line}')
    return 1 if failed or changes else 0


def run_case(args, folder):
    base = prepare_base(folder)
    change, words, problems, output = try_case(args, base, os.path.join(folder, 'case'), args.case,
                                               is_kept=bool(args.folder))
    print(f'case {args.case}, {get_kind(args.case).__name__}: {change}\n  {format_command(words)}\n{output}\n'
          f'{"; ".join(problems) or "passed"}')
    return 1 if problems else 0


def get_kind(number):
    return cases.KINDS[number % len(cases.KINDS)]


def prepare_base(folder):
    """Return the base folder; make it first if it does not exist."""
    base = os.path.join(folder, 'base')
    if not os.path.isdir(base):
        os.makedirs(base)
        cases.make_base(base)
        cases.check_base(base, os.path.join(folder, 'case'))
    return base


def try_case(args, base, folder, number, is_kept=False):
    """Run a case: ``(what was corrupted, the program's arguments, problems, output)``.

    A number and a seed always give the same case.
    """
    rng = random.Random(f'{args.seed} {number}')
    shutil.rmtree(folder, ignore_errors=True)
    cases.copy_base(base, folder)
    change, words, must_be_refused = get_kind(number)(rng, folder)
    problems, status, output, errors = judge.find_problems(words, folder, judge.snapshot(folder), args.seconds)
    if status == 0 and callable(must_be_refused):
        problems += must_be_refused()
    elif status == 0 and must_be_refused:
        problems.append('accepted without an error')
    if not is_kept:
        shutil.rmtree(folder)
    return change, words, problems, f'{output}\n{errors}'.encode('ascii', 'backslashreplace').decode()


def format_command(words):
    """Format a command for a shell, in ASCII, shortened for people."""
    text = shlex.join(['python', *words]).encode('ascii', 'backslashreplace').decode()
    return text if len(text) < 2000 else f'{text[:2000]} ...'


if __name__ == '__main__':
    sys.exit(main())

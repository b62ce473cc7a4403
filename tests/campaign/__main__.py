"""``python -m tests.campaign --minutes 10 --seed 1``; one case again, with what it printed: ``--case 137 --folder here``."""
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


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.campaign', description=__doc__)
    parser.add_argument('--minutes', type=float, default=10, help='no case is begun after so long')
    parser.add_argument('--cases', type=int, default=10 ** 9, help='at most so many')
    parser.add_argument('--seed', type=int, default=0, help='of all cases')
    parser.add_argument('--case', type=int, help='this one alone')
    parser.add_argument('--kind', help='of this kind alone: ' + ', '.join(dict.fromkeys(kind.__name__ for kind in cases.KINDS)))
    parser.add_argument('--folder', help='work here and keep what the case leaves')
    parser.add_argument('--show', action='store_true', help='also print how each case ended that passed')
    parser.add_argument('--seconds', type=float, default=60, help='that a program may take')
    args = parser.parse_args()
    folder = os.path.abspath(args.folder) if args.folder else tempfile.mkdtemp(prefix='campaign')
    os.environ['HOME'] = folder    # no pretrained CLIP of this machine is looked at
    try:
        return one(args, folder) if args.case is not None else many(args, folder)
    finally:
        if not args.folder:
            shutil.rmtree(folder)


def many(args, folder):
    base = prepared(folder)
    before, begun = judge.snapshot(base), time.time()
    tried, failed = collections.Counter(), collections.Counter()
    for number in range(args.cases):
        if time.time() - begun > 60 * args.minutes:
            break
        kind = kind_of(number)
        if args.kind not in (None, kind.__name__):
            continue
        tried[kind.__name__] += 1
        what, words, wrong, printed = try_case(args, base, os.path.join(folder, 'case'), number)
        if args.show and not wrong:
            print(f'case {number}, {kind.__name__}: {what}: passed: {printed.strip()[-200:]}', flush=True)
        if wrong:
            failed[kind.__name__] += 1
            print(f'case {number}, {kind.__name__}: {what}: {"; ".join(wrong)}\n  {command(words)}\n'
                  f'  again: python -m tests.campaign --seed {args.seed} --case {number} --folder <folder>', flush=True)
    changed = judge.changed(before, base)
    print(f'{tried.total()} cases in {time.time() - begun:.0f} s, {tried.total() - failed.total()} passed, {failed.total()} failed')
    for kind, count in sorted(tried.items()):
        print(f'  {kind}: {count} cases, {failed[kind]} failed')
    for line in changed:
        print(f'a program wrote into a file instead of replacing it: {line}')
    return 1 if failed or changed else 0


def one(args, folder):
    base = prepared(folder)
    what, words, wrong, printed = try_case(args, base, os.path.join(folder, 'case'), args.case, keep=bool(args.folder))
    print(f'case {args.case}, {kind_of(args.case).__name__}: {what}\n  {command(words)}\n{printed}\n{"; ".join(wrong) or "passed"}')
    return 1 if wrong else 0


def kind_of(number):
    return cases.KINDS[number % len(cases.KINDS)]


def prepared(folder):
    """The base folder, made unless it is there."""
    base = os.path.join(folder, 'base')
    if not os.path.isdir(base):
        os.makedirs(base)
        cases.make_base(base)
        cases.try_unspoilt(base, os.path.join(folder, 'case'))
    return base


def try_case(args, base, folder, number, keep=False):
    """(what was spoilt, the program's words, what is wrong, what was printed). The same for a number and a seed, always."""
    rng = random.Random(f'{args.seed} {number}')
    shutil.rmtree(folder, ignore_errors=True)
    cases.copy_base(base, folder)
    what, words, must_be_refused = kind_of(number)(rng, folder)
    wrong, status, output, errors = judge.complaints(words, folder, judge.snapshot(folder), args.seconds)
    if status == 0 and callable(must_be_refused):
        wrong += must_be_refused()
    elif status == 0 and must_be_refused:
        wrong.append('taken without a word')
    if not keep:
        shutil.rmtree(folder)
    return what, words, wrong, f'{output}\n{errors}'.encode('ascii', 'backslashreplace').decode()


def command(words):
    """The command as a shell reads it, in ASCII and of a length for people."""
    text = shlex.join(['python', *words]).encode('ascii', 'backslashreplace').decode()
    return text if len(text) < 2000 else f'{text[:2000]} ...'


if __name__ == '__main__':
    sys.exit(main())

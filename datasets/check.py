"""Is a copy of a dataset whole? ``python -m datasets.check --dataset_name CUHK-PEDES --root_dir data``

Compares the numbers of identities, images and captions with the published ones (of synthetic pedestrians: with those
that were written), reads every image, and lists all that is wrong. Exit status: 0 if nothing is, 1 if anything is.
"""
import argparse
import hashlib
import inspect
import operator
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from prettytable import PrettyTable
from tqdm import tqdm

from datasets.bases import (SPLITS, entry_problem, missing_files, repeated_images, shared_identities, special_captions,
                            count_entries)
from datasets.published_splits import KINDS, differing_counts
from datasets.registry import add_table_options, dataset_class, describe_names
from datasets.table import is_table
from utils.errors import UserError, run
from utils.images import SkippedFiles, find_images
from utils.option_types import split_dataset_path
from utils.iotools import read_image, read_json, refuse_irregular
from utils.terminal import one_line

# What is worth knowing of a copy that is whole.
NOTES = ('images that are converted when they are read', 'files below the images that are skipped')


def expected_counts(name, folder):
    """({split: (identities, images, captions)}, where they are from); ({}, '') if nobody knows."""
    mark = os.path.join(folder, 'synthpedes.json')
    if os.path.exists(mark) and not is_table(name):      # a table of one's own beside it holds what it likes
        try:
            counts, kinds = read_json(mark)['counts'], ('ids', 'images', 'captions')
            return {split: tuple(operator.index(counts[split][kind]) for kind in kinds) for split in SPLITS}, 'synthpedes.json'
        except (KeyError, TypeError):
            raise UserError(f'{mark} does not hold the counts that datasets.synthpedes writes') from None
    published = dataset_class(name).published
    return published, 'published' if published else ''


def compare_counts(counts, expected, source):
    """(table of the counts as text, list of differences)."""
    table, differences = PrettyTable(['split', *KINDS]), []
    for split in SPLITS:
        differing = differing_counts(counts[split], expected.get(split))
        verdicts = {kind: f' differs: {known}' for kind, _, known in differing}
        same = ' ok' if split in expected else ''
        table.add_row([split, *(f'{count}{verdicts.get(kind, same)}' for kind, count in zip(KINDS, counts[split]))])
        differences += [f'{split}: {count} {kind}, {source} {known}' for kind, count, known in differing]
    return table.get_string(), differences


def examine(path):
    """(digest of the file's bytes, what is wrong with the image or None, how its pixels are converted: phrases)."""
    digest, notes = hashlib.sha256(), []
    try:
        refuse_irregular(path)
        with open(path, 'rb') as file:
            while block := file.read(2 ** 20):
                digest.update(block)
    except OSError as error:
        return None, f'{path} cannot be read: {error.strerror}', notes
    except UserError as error:
        return None, str(error), notes
    digest = digest.digest()
    try:
        read_image(path, notes)
    except UserError as error:
        return digest, str(error), []
    return digest, None, notes


def examine_all(paths, workers):
    """:func:`examine` of each path, with a progress bar on a terminal."""
    pool = ThreadPoolExecutor(workers)  # decoding and hashing leave Python's lock to others
    try:
        return list(tqdm(pool.map(examine, paths), total=len(paths), unit='image', desc='reading', disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def identical_files(paths, digests):
    """Lines that each name the paths of files with the same bytes."""
    same = defaultdict(list)
    for path, digest in zip(paths, digests):
        if digest is not None:
            same[digest].append(path)
    return [' = '.join(found) for found in same.values() if len(found) > 1]


def check(name, root, workers, columns=None, split_seed=1):
    """(table of the counts as text, ``{kind of problem: [lines]}`` of what there is)."""
    if '+' in name:
        raise UserError(f'--dataset_name {name}: datasets are checked one by one')
    name, root = split_dataset_path(name, root)
    dataset = dataset_class(name, columns, split_seed)
    folder, annotation = dataset.locate(root)
    images = dataset.image_folder(folder)
    wrong = []
    entries = dataset.read(annotation, wrong) if 'wrong' in inspect.signature(dataset.read).parameters else dataset.read(annotation)
    found = [(entry, entry_problem(entry, dataset.image_key, dataset.has_captions)) for entry in entries]
    several = len(dataset.files(annotation)) > 1       # a number says little then
    problems = {'annotation': wrong + [f'entry {number} (counted from 0){f", {entry[dataset.image_key]}," if several else ""} {problem}'
                                       for number, (entry, problem) in enumerate(found) if problem]}
    entries = [entry for entry, problem in found if not problem]

    problems["captions that hold the tokenizer's own tokens as text"] = [
        f'{entries[number][dataset.image_key]}: {token}' for number, token in special_captions(entries)]

    expected, source = expected_counts(name, folder)
    counts = {split: count_entries([entry for entry in entries if entry['split'] == split]) for split in SPLITS}
    table, problems['counts that differ'] = compare_counts(counts, expected, source)
    problems['identities in several splits'] = [
        f'{pid}: {", ".join(splits)}' for pid, splits in shared_identities(entries).items()]

    paths = dict.fromkeys(os.path.join(images, os.path.normpath(entry[dataset.image_key])) for entry in entries)
    problems['images listed more than once'] = [f'{os.path.join(images, path)}: {count} times'
                                                for path, count in repeated_images(entries, dataset.image_key).items()]
    problems['missing images'] = missing_files(paths)
    absent = set(problems['missing images'])
    there = [path for path in paths if path not in absent]
    found = examine_all(there, workers)
    problems['broken images'] = [problem for _, problem, _ in found if problem]
    problems['images with the same bytes'] = identical_files(there, [digest for digest, _, _ in found])
    below, skipped = find_images(images)
    problems['images that the annotation does not list'] = [path for path in below if path not in paths]
    problems['folders that cannot be listed'] = skipped.folders
    problems[NOTES[0]] = [f'{path}: {", ".join(notes)}' for path, (_, _, notes) in zip(there, found) if notes]
    problems[NOTES[1]] = SkippedFiles(hidden=skipped.hidden, others=skipped.others).summary()
    return table, {kind: lines for kind, lines in problems.items() if lines}


def main(argv=None):
    parser = argparse.ArgumentParser(prog='datasets.check', description=__doc__.split('\n')[0])
    parser.add_argument('--dataset_name', default='CUHK-PEDES', help=describe_names())
    parser.add_argument('--root_dir', default='./data', help="the folder with the datasets' folders")
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='threads that read images')
    add_table_options(parser)
    args = parser.parse_args(argv)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    if not 1 <= args.workers <= 1024:
        raise UserError(f'--workers must be from 1 to 1024, not {args.workers}')
    table, problems = check(args.dataset_name, args.root_dir, args.workers, args.columns, args.split_seed)
    print(table)
    for kind, lines in problems.items():
        print(f'{kind} ({len(lines)}):')
        for line in lines:
            print(f'  {one_line(line)}')
    folder = dataset_class(args.dataset_name, args.columns, args.split_seed).locate(args.root_dir)[0]
    problems = {kind: lines for kind, lines in problems.items() if kind not in NOTES}
    if problems:
        print(f'{folder}: not whole: {", ".join(f"{len(lines)} {kind}" for kind, lines in problems.items())}')
        return 1
    print(f'{folder}: whole')
    return 0


if __name__ == '__main__':
    run(main)

"""Check that a copy of a dataset is complete.

    python -m datasets.check --dataset_name CUHK-PEDES --root_dir data

The program compares the numbers of identities, images and captions with the published ones (for synthetic pedestrians,
with those that were written), reads every image, and lists all problems. Exit status: 0 without problems, else 1.
"""
import hashlib
import inspect
import operator
import os
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import torch   # noqa: F401  (datasets.registry then imports the datasets, instead of reading their declarations)
from prettytable import PrettyTable
from tqdm import tqdm

from datasets.annotation_checks import (SPLITS, count_entries, entry_problem, gallery_notes, missing_files,
                                        repeated_images, shared_identities, special_captions)
from datasets.published_splits import KINDS, differing_counts
from datasets.registry import add_table_options, dataset_class, describe_names
from datasets.table import is_table
from utils.errors import UserError, is_out_of_files, run_program
from utils.images import SkippedFiles, find_images
from utils.option_types import split_dataset_path
from utils.iotools import read_image, read_json, check_regular_file
from utils.parser import Parser
from utils.terminal import escape_line

# Information, not problems.
NOTES = ('images that are converted when they are read', 'files below the images that are skipped')


def expected_counts(name, folder):
    """``({split: (identities, images, captions)}, their source)``; ``({}, '')`` if they are unknown."""
    marker = os.path.join(folder, 'synthpedes.json')
    if os.path.exists(marker) and not is_table(name):      # a user's table next to it has its own counts
        try:
            counts, kinds = read_json(marker)['counts'], ('ids', 'images', 'captions')
            expected = {split: tuple(operator.index(counts[split][kind]) for kind in kinds) for split in SPLITS}
            return expected, 'synthpedes.json'
        except (KeyError, TypeError):
            raise UserError(f'{marker} does not hold the counts that datasets.synthpedes writes') from None
    published = dataset_class(name).published
    return published, 'published' if published else ''


def compare_counts(counts, expected, source):
    """Compare counts with the expected ones: ``(table as text, list of differences)``."""
    table, differences = PrettyTable(['split', *KINDS]), []
    for split in SPLITS:
        differing = differing_counts(counts[split], expected.get(split))
        verdicts = {kind: f' differs: {known}' for kind, _, known in differing}
        default = ' ok' if split in expected else ''
        table.add_row([split, *(f'{count}{verdicts.get(kind, default)}' for kind, count in zip(KINDS, counts[split]))])
        differences += [f'{split}: {count} {kind}, {source} {known}' for kind, count, known in differing]
    return table.get_string(), differences


def examine(path):
    """Read an image: ``(digest of the file's bytes, its problem or None, phrases that describe pixel conversions)``."""
    digest, notes = hashlib.sha256(), []
    try:
        check_regular_file(path)
        with open(path, 'rb') as file:
            while block := file.read(2 ** 20):
                digest.update(block)
    except OSError as error:
        if is_out_of_files(error):
            raise
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
    """Apply :func:`examine` to each path, with a progress bar on a terminal."""
    pool = ThreadPoolExecutor(workers)  # decoding and hashing release Python's global interpreter lock
    try:
        return list(tqdm(pool.map(examine, paths), total=len(paths), unit='image', desc='reading', disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def identical_files(paths, digests):
    """Group files with the same bytes: a line with the paths of each group."""
    groups = defaultdict(list)
    for path, digest in zip(paths, digests):
        if digest is not None:
            groups[digest].append(path)
    return [' = '.join(group) for group in groups.values() if len(group) > 1]


def check(name, root, workers, columns=None, split_seed=1):
    """Check a dataset: ``(table of the counts as text, {kind of problem: [lines]})``."""
    if '+' in name:
        raise UserError(f'--dataset_name {name}: datasets are checked one by one')
    name, root = split_dataset_path(name, root)
    dataset = dataset_class(name, columns, split_seed)
    folder, annotation = dataset.locate(root)
    images = dataset.image_folder(folder)
    row_problems = []
    collects_problems = 'problems' in inspect.signature(dataset.read).parameters
    entries = dataset.read(annotation, row_problems) if collects_problems else dataset.read(annotation)
    entry_problems = [entry_problem(entry, dataset.image_key, dataset.has_captions, dataset.uncaptioned_splits)
                      for entry in entries]
    has_several_files = len(dataset.files(annotation)) > 1       # then the number alone does not identify an entry
    problems = {'annotation': row_problems + [
        f'entry {number} (counted from 0){f", {entry[dataset.image_key]}," if has_several_files else ""} {problem}'
        for number, (entry, problem) in enumerate(zip(entries, entry_problems)) if problem]}
    entries = [entry for entry, problem in zip(entries, entry_problems) if not problem]

    problems["captions that hold the tokenizer's own tokens as text"] = [
        f'{entries[number][dataset.image_key]}: {token}' for number, token in special_captions(entries)]

    expected, source = expected_counts(name, folder)
    counts = {split: count_entries([entry for entry in entries if entry['split'] == split]) for split in SPLITS}
    table, problems['counts that differ'] = compare_counts(counts, expected, source)
    uncaptioned = Counter(entry['split'] for entry in entries if not entry['captions'])
    table = '\n'.join([table, *gallery_notes({split: uncaptioned[split] for split in SPLITS})])
    problems['identities in several splits'] = [
        f'{pid}: {", ".join(splits)}' for pid, splits in shared_identities(entries).items()]

    paths = dict.fromkeys(os.path.join(images, os.path.normpath(entry[dataset.image_key])) for entry in entries)
    problems['images listed more than once'] = [f'{os.path.join(images, path)}: {count} times'
                                                for path, count in repeated_images(entries, dataset.image_key).items()]
    problems['missing images'] = missing_files(paths)
    missing = set(problems['missing images'])
    existing = [path for path in paths if path not in missing]
    results = examine_all(existing, workers)
    problems['broken images'] = [problem for _, problem, _ in results if problem]
    problems['images with the same bytes'] = identical_files(existing, [digest for digest, _, _ in results])
    files, skipped = find_images(images)
    problems['images that the annotation does not list'] = [path for path in files if path not in paths]
    problems['folders that cannot be listed'] = skipped.folders
    problems[NOTES[0]] = [f'{path}: {", ".join(notes)}' for path, (_, _, notes) in zip(existing, results) if notes]
    annotation_files = {os.path.normpath(path) for path in dataset.files(annotation)}     # next to a table's images
    others = [path for path in skipped.others if os.path.normpath(path) not in annotation_files]
    problems[NOTES[1]] = SkippedFiles(hidden=skipped.hidden, others=others).summary()
    return table, {kind: lines for kind, lines in problems.items() if lines}


def main(argv=None):
    parser = Parser(prog='datasets.check', description='Check that a copy of a dataset is complete.',
                    usage='%(prog)s [--<option> VALUE ...]')
    parser.add_argument('--dataset_name', default='CUHK-PEDES', help=describe_names())
    parser.add_argument('--root_dir', default='./data', help="folder of the datasets' folders (default: ./data)")
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1,
                        help='number of threads that read images (default: the number of cores)')
    add_table_options(parser)
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    if not 1 <= args.workers <= 1024:
        raise UserError(f'--workers must be from 1 to 1024, not {args.workers}')
    table, problems = check(args.dataset_name, args.root_dir, args.workers, args.columns, args.split_seed)
    print(table)
    for kind, lines in problems.items():
        print(f'{kind} ({len(lines)}):')
        for line in lines:
            print(f'  {escape_line(line)}')
    folder = dataset_class(args.dataset_name, args.columns, args.split_seed).locate(args.root_dir)[0]
    problems = {kind: lines for kind, lines in problems.items() if kind not in NOTES}
    if problems:
        print(f'{folder}: incomplete: {", ".join(f"{len(lines)} {kind}" for kind, lines in problems.items())}')
        return 1
    print(f'{folder}: complete')
    return 0


if __name__ == '__main__':
    run_program(main)

"""Check what a run reads: the dataset and the pretrained weights."""
import os
import random

import torch

from datasets.annotation_checks import SPLITS, count_entries, entry_problem, missing_files
from datasets.check import examine, expected_counts
from datasets.published_splits import differing_counts
from datasets.registry import dataset_class
from model.backbones import backbone_class
from model.clip_weights import OPENAI_SHA256, file_stem
from run_scripts.diagnosis.check import FAILED, OK, WARNING, Check
from utils.errors import UserError, abbreviate
from utils.weight_files import compute_sha256

EXAMINED_IMAGES = 64    # of each dataset


def check_data(args):
    """Check the datasets of a run: their counts against the published ones, and a sample of the images.

    Args:
        args: the options of train.py.

    Returns:
        ``(checks, counts, exists)``. The counts are ``{split: (identities, images, captions)}`` of all datasets
        together. Published counts replace those of a dataset that cannot be read. ``exists`` says whether all can.
    """
    checks, totals, exists = [], dict.fromkeys(SPLITS, (0, 0, 0)), True
    for name in args.dataset_name.split('+'):
        try:
            dataset_checks, counts = check_dataset(args, name)
        except UserError as error:
            finding, _, advice = str(error).partition(': ')
            finding += '; the doctor uses synthetic images, and published counts if there are any'
            dataset_checks, counts = [Check('dataset', WARNING, finding, advice)], None
        exists = exists and all(check.status != FAILED for check in dataset_checks) and counts is not None
        counts = counts or dataset_class(name, args.columns, args.split_seed).published
        checks += dataset_checks
        for split, numbers in counts.items():
            totals[split] = tuple(map(sum, zip(totals[split], numbers)))
    return checks, totals, exists


def check_dataset(args, name):
    """Check one dataset: ``(checks, {split: (identities, images, captions)})``."""
    dataset = dataset_class(name, args.columns, args.split_seed)
    folder, annotation = dataset.locate(args.root_dir)
    entries = dataset.read(annotation)
    problems = (entry_problem(entry, dataset.image_key, dataset.has_captions, dataset.uncaptioned_splits)
                for entry in entries)
    invalid = list(filter(None, problems))
    if invalid:
        return [Check('dataset', FAILED, f'{annotation}: {len(invalid)} entries are invalid; the first {invalid[0]}',
                      f'{dataset.check_command(args.root_dir)} lists them')], {}
    counts = {split: count_entries([entry for entry in entries if entry['split'] == split]) for split in SPLITS}
    return [compare_with_published(name, folder, counts),
            check_images(dataset, folder, entries, dataset.check_command(args.root_dir))], counts


def compare_with_published(name, folder, counts):
    expected, source = expected_counts(name, folder)
    found = ', '.join(f'{split} {format_counts(counts[split])}' for split in SPLITS if any(counts[split]))
    differing = [f'{split}: {count:,} {kind} ({source}: {known:,})' for split in SPLITS
                 for kind, count, known in differing_counts(counts[split], expected.get(split))]
    if differing:
        return Check('dataset', WARNING, f'{name}: {abbreviate(differing, 3)}',
                     'figures on other splits are not comparable with published ones')
    return Check('dataset', OK, f"{name}: {found}{f', as {source}' if source else ''}")


def format_counts(counts):
    identities, images, captions = counts
    return f'{identities:,} identities with {images:,} images and {captions:,} captions'


def check_images(dataset, folder, entries, command):
    """Check that all images exist, and read a random sample of them. ``command`` lists all problems."""
    paths = list(dict.fromkeys(os.path.join(dataset.image_folder(folder), os.path.normpath(entry[dataset.image_key]))
                               for entry in entries))
    list_all = f'{command} lists all'
    missing = missing_files(paths)
    if missing:
        return Check('images', FAILED, f'{len(missing):,} of {len(paths):,} images are missing: '
                                       f'{abbreviate(missing, 1)}', list_all)
    sample = random.Random(0).sample(paths, min(EXAMINED_IMAGES, len(paths)))
    broken = [problem for _, problem, _ in map(examine, sample) if problem]
    if broken:
        return Check('images', FAILED, f'{len(broken)} of {len(sample)} images cannot be read: {broken[0]}', list_all)
    return Check('images', OK, f'all {len(paths):,} exist, and {len(sample)} of {len(sample)} read ones are sound')


def check_weights(args):
    """Check the pretrained weights without downloading anything: a list of one :class:`Check`."""
    choice = args.init_from or args.pretrain_choice
    if choice.startswith('scratch:'):
        return [Check('weights', OK, f'{choice}: random weights')]
    path = os.path.expanduser(choice)
    if args.backbone == 'clip' and choice in OPENAI_SHA256:
        return [check_openai_file(choice, openai_path(choice))]
    if os.path.isfile(path):
        return [Check('weights', OK, f'{path}, sha256 {compute_sha256(path)}')]
    if args.backbone == 'open_clip':
        return [Check('weights', OK, f'{choice}: not checked; open_clip loads it when the run starts')]
    try:
        with torch.random.fork_rng():
            backbone_class(args).build(args)
    except UserError as error:
        return [Check('weights', WARNING, f'{choice}: {error}', 'the step uses random weights of the same shape')]
    return [Check('weights', OK, f'{choice}: complete')]


def openai_path(choice):
    """The path of the file of one of OpenAI's models, which may be missing."""
    return os.path.expanduser(f'~/.cache/clip/{file_stem(choice)}.pt')


def check_openai_file(choice, path):
    if not os.path.isfile(path):
        return Check('weights', WARNING, f'{choice} is not in {os.path.dirname(path)}: the step uses random weights',
                     'training downloads it at the start, or copy the file there')
    if compute_sha256(path) != OPENAI_SHA256[choice]:
        return Check('weights', FAILED, f'{path} has a wrong checksum', 'remove it: training downloads it again')
    return Check('weights', OK, f'{choice}: the checksum is right (sha256 {OPENAI_SHA256[choice]})')

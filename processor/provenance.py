"""Provenance of a result: the checkpoint, the split that selected it, the test split, and the program."""
import hashlib
import json
import os
import platform

import torch
import torchvision

from datasets.distractors import DISTRACTOR_PID
from datasets.joined import first_dataset_name
from utils.options import as_dict
from utils.version import __version__


def collect_provenance(args, run):
    """Collect what a result depends on: ``produced_by`` in metrics.json.

    Args:
        args: the options of test.py.
        run: the evaluated :class:`~processor.runs.TrainedRun`.
    """
    images, captions, checkpoint = run.images.dataset, run.captions.dataset, run.checkpoint
    versions = {'pedestal': __version__, 'python': platform.python_version(), 'torch': torch.__version__,
                'torchvision': torchvision.__version__}
    has_gpu = torch.cuda.is_available()
    return {
        'options': as_dict(args),
        'checkpoint': os.path.abspath(args.checkpoint) if args.checkpoint else args.pretrain_choice,
        'checkpoint_sha256': checkpoint.get('sha256'),
        'trained_for': checkpoint_epoch(args, checkpoint),
        'chosen_by_split': selection_split(args, checkpoint),
        'chosen_by_measure': checkpoint.get('selected_by'),
        'noise': checkpoint.get('noise'),
        'trained_on': args.config.data.trained_on,
        'dataset': args.dataset_name,
        'split': args.split,
        'distractors': count_distractors(images),
        'images': len(images),
        'captions': len(captions),
        'identities': len(set(map(int, images.image_pids)) - {DISTRACTOR_PID}),
        'split_sha256': split_sha256(args, images, captions),
        'seed': args.seed,
        'versions': versions,
        'machine': torch.cuda.get_device_name() if has_gpu else platform.processor() or platform.machine()}


# -- the evaluated split -----------------------------------------------------------------------------------------------

def count_distractors(images):
    """Count the images that no caption matches in the dataset of a gallery."""
    return sum(int(pid) == DISTRACTOR_PID for pid in images.image_pids)


def evaluated_split(provenance):
    """Return the split that a result is of; test if an older results file does not name it."""
    split = provenance.get('split')
    return split if isinstance(split, str) else 'test'


def split_counts(provenance):
    """Return (identities, images, captions) of an evaluated split; None for each that an older results file lacks."""
    counts = (provenance.get(kind) for kind in ('identities', 'images', 'captions'))
    return tuple(count if isinstance(count, int) else None for count in counts)


def split_sha256(args, images, captions):
    """Compute the checksum of a split: of all captions and images, in order, with their identities."""
    sides = zip((captions.caption_pids, images.image_pids), sample_names(args, images, captions))
    content = json.dumps([[[int(pid), name] for pid, name in zip(pids, names)] for pids, names in sides])
    return hashlib.sha256(content.encode()).hexdigest()


def sample_names(args, images, captions):
    """Return the names of the samples: ``(texts of the captions, image files relative to the dataset's folder)``."""
    folder = os.path.join(args.root_dir, args.dataset_name)
    paths = getattr(images, 'img_paths', None) or map(str, range(len(images)))
    return (list(getattr(captions, 'captions', None) or map(str, range(len(captions)))),
            [os.path.relpath(path, folder) if os.path.isabs(path) == os.path.isabs(folder) else path for path in paths])


# -- how the checkpoint was selected -----------------------------------------------------------------------------------

def describe_selection(args, checkpoint):
    """Name the checkpoint and the split that selected it."""
    if args.checkpoint is None:
        return f'{args.pretrain_choice}: before any training'
    split, epoch = selection_split(args, checkpoint), checkpoint_epoch(args, checkpoint)
    if split is None:
        return f'{args.checkpoint}: {epoch}, chosen by no split'
    dataset = selection_dataset(args)
    warning = ', the split it is tested on' if split == args.split and dataset == args.dataset_name else ''
    measure = f"{checkpoint['selected_by']} on " if checkpoint.get('selected_by') else ''
    return f'{args.checkpoint}: {epoch}, chosen by {measure}the {split} split of {dataset}{warning}'


def selection_split(args, checkpoint):
    """Return the split whose evaluations selected the checkpoint; None for last.pth and epoch_<n>.pth."""
    is_training_state = 'step' in checkpoint
    if is_training_state or not args.checkpoint:
        return None
    return checkpoint.get('val_dataset', args.val_dataset)


def selection_dataset(args):
    """Return the dataset whose split selected the best epoch."""
    return args.eval_dataset or first_dataset_name(args.config.data.trained_on)


def checkpoint_epoch(args, checkpoint):
    """Describe how long a checkpoint was trained. The ``epoch`` of last.pth is the next one."""
    if args.checkpoint is None:
        return 'not at all'
    if 'step' not in checkpoint:
        return f"epoch {checkpoint.get('epoch', 'unknown')}"
    steps = f" and {checkpoint['step']} steps" if checkpoint['step'] else ''
    return f"epoch {checkpoint['epoch'] - 1}{steps}"

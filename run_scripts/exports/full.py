"""Write a run whose checkpoint holds the whole model, for run_scripts/export.py."""
import os
import shutil

import torch
import torch.nn.functional as F

import pedestal
from run_scripts.exports import TEST_SENTENCES
from utils.checkpoint import Checkpointer, write_checkpoint
from utils.errors import UserError
from utils.iotools import save_train_configs
from utils.options import replace_options, run_options

MAX_MERGED_DISTANCE = 1e-5   # largest cosine distance between an embedding before and after --merge


def export_run(people, folder, merge=False):
    """Write ``configs.yaml`` and a ``best.pth`` with all parameters, which test.py and ``--init_from`` read.

    Args:
        people: the :class:`pedestal.People` of a run.
        folder: an existing folder.
        merge: whether to add what ``--tuning`` has learned to the pretrained weights.

    Returns:
        A sentence about the file.

    Raises:
        UserError: the tuning cannot be merged, or the written run computes other embeddings.
    """
    model, run = people.model, run_options(people.args.config_file)
    weights = {name: value for name, value in Checkpointer(model).weights().items() if name not in model.training_only}
    entries = {name: value for name, value in people.checkpoint.items() if name != 'sha256'}
    if merge:
        weights, run = merge_weights(model, weights), replace_options(run, tuning='none')
        entries.pop('tuning', None)
    write_checkpoint({'model': weights, **entries}, os.path.join(folder, 'best.pth'))
    save_train_configs(folder, run)
    for name in model.backbone.run_files:
        path = os.path.join(os.path.dirname(people.args.checkpoint), name)
        if os.path.exists(path):
            copy = shutil.copytree if os.path.isdir(path) else shutil.copyfile
            copy(path, os.path.join(folder, name))
    distance = compare_embeddings(people, pedestal.load(folder, device='cpu', amp='off'))
    if distance > (MAX_MERGED_DISTANCE if merge else 0):
        raise UserError(f'the written run computes other embeddings (largest cosine distance {distance:.1e}), and '
                        'nothing is written')
    return f"best.pth holds {len(weights)} entries; largest cosine distance to the run's embeddings: {distance:.1e}"


def merge_weights(model, weights):
    """Return a state dict without the parameters that the tuning has added.

    Args:
        model: the tuned model.
        weights: its state dict.

    Raises:
        UserError: the tuning cannot be merged.
    """
    if model.tuning.name == 'none':
        raise UserError('--merge is for a run with --tuning, and this run has none: leave --merge out')
    merged = model.tuning.merge(model.backbone)
    added = set(model.tuning.parameter_names)
    return {name: merged.get(name, value) for name, value in weights.items() if name not in added}


@torch.no_grad()
def compare_embeddings(people, other):
    """Return the largest cosine distance between embeddings of two runs, of sentences and of random images."""
    images = torch.randn(4, 3, *people.args.img_size, generator=torch.Generator().manual_seed(0)).unbind()
    distances = [torch.zeros(())]
    for embed, inputs in (('embed_images', images), ('encode_captions', TEST_SENTENCES)):
        first, second = (getattr(one, embed)(inputs) for one in (people, other))
        if not torch.equal(first, second):      # the cosine of equal embeddings may be below 1 by rounding
            distances.append(1 - F.cosine_similarity(first.double(), second.double()).min())
    return float(max(distances))

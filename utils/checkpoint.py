"""Checkpoints: official parameter names on disk, loaded strictly, written atomically, read without running code."""
import logging
import math
import os

import torch

from utils.errors import UserError
from utils.iotools import atomic_write
from utils.resumption import COUNTERS, UNUSED, check_values, moments_of
from utils.weight_files import check_weights, plain_name, read_torch_file, sha256_of, some  # noqa: F401 (sha256_of: for others)
from utils.weight_names import replace_prefixes, to_own_names, without_prefixes

logger = logging.getLogger('Pedestal.checkpoint')


def read_checkpoint(path, hashed=False):
    """A checkpoint's dict with the trained weights under ``'model'``, by Pedestal's names (:func:`to_own_names`); with
    ``hashed`` also ``'sha256'``, of the file that was read. Weights that are no plain tensors raise :class:`UserError`."""
    checkpoint, digest = read_torch_file(path, hashed=True) if hashed else (read_torch_file(path), None)
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    if 'model' not in checkpoint and isinstance(checkpoint.get('state_dict'), dict):   # open_clip's and others' name for it
        checkpoint['model'] = checkpoint.pop('state_dict')
    if 'model' not in checkpoint:
        if not all(isinstance(value, torch.Tensor) for value in checkpoint.values()) or not checkpoint:
            raise UserError(f"{path} is not a checkpoint: it has no 'model', only {', '.join(map(str, list(checkpoint)[:5]))}")
        checkpoint = {'model': checkpoint}
    check_weights(checkpoint['model'], path)
    if not is_own(checkpoint):
        checkpoint['model'] = to_own_names(checkpoint['model'], path)
    return {**checkpoint, 'sha256': digest} if hashed else checkpoint


def is_own(checkpoint):
    """Whether Pedestal wrote a checkpoint. Its names are the model's own, whatever they begin with."""
    return bool({'step', 'val_dataset'} & set(checkpoint))


def is_unused(name):
    return name.startswith(UNUSED) or any(counter in name for counter in COUNTERS)


def load_weights(model, weights, source='the checkpoint', resumed=False):
    """Load a state dict strictly: every entry must be there with its shape; dtypes are converted. Published entries that
    nothing reads are dropped and listed; entries that training alone needs may be missing unless a run is ``resumed``. Anything else
    raises :class:`UserError` and leaves the model as it was."""
    own = model.state_dict()
    weights = to_own_names(weights, source, lambda names: any(name in own for name in names))
    unused = [name for name in weights if is_unused(name) and name not in own]
    weights = {name: value for name, value in weights.items() if name not in unused}
    spared = set() if resumed else getattr(model, 'training_only', set())
    missing = [name for name in own if name not in weights and name not in spared]
    extra = [name for name in weights if name not in own]
    shapes = misfits(own, weights)
    problems = [f'{len(missing)} entries are missing ({some(missing)})'] * bool(missing)
    problems += [f'{len(extra)} have no place in the model ({some(extra)})'] * bool(extra)
    problems += [f'{len(shapes)} have another shape or type ({some(shapes)})'] * bool(shapes)
    if problems:
        raise UserError(f"{source} does not fit the model that the options describe: {'; '.join(problems)}")
    model.load_state_dict({**{name: own[name] for name in spared}, **weights})
    logger.info('loaded %d entries from %s%s', len(weights), source, f', dropped unused {some(unused)}' if unused else '')


def misfits(own, weights):
    """``['classifier.weight: [10, 512] for [20, 512]', 'ln.bias: int64 for float32', ...]``"""
    found = []
    for name, value in weights.items():
        if name in own and value.shape != own[name].shape:
            found.append(f'{name}: {list(value.shape)} for {list(own[name].shape)}')
        elif name in own and value.is_floating_point() != own[name].is_floating_point():
            found.append(f'{name}: {plain_name(value.dtype)} for {plain_name(own[name].dtype)}')
    return found


def start_from(model, path, weights=None):
    """``--init_from``: start a new run from another one's weights, or from a CLIP's, such as those that were pretrained on generated
    pedestrians. The encoders must fit; heads that the checkpoint lacks and a classifier over other identities stay as they were made,
    heads that only it has are left out, and the log says so. ``weights``: those of the file, if it was read before."""
    own = model.state_dict()
    weights = read_checkpoint(path)['model'] if weights is None else weights
    weights = without_prefixes(weights, lambda names: any(name in own for name in names), path)
    weights = as_a_runs(weights)
    prefixes = encoder_names(model)
    encoder = {name: value for name, value in weights.items() if name.startswith(prefixes) and not name.startswith(UNUSED)}
    missing = [name for name in own if name.startswith(prefixes) and name not in encoder]
    extra = [name for name in encoder if name not in own]
    shapes = misfits(own, encoder)
    if hasattr(model, 'backbone') and not model.backbone.is_of(weights):
        raise UserError(f'--init_from: {path} is of another backbone than {model.backbone.name}, which --backbone names')
    if missing or extra or shapes:
        raise UserError(f'{path} has another encoder than the options describe: {some(shapes + missing + extra)}; a CLIP for another '
                        '--img_size, or with names other than its own, is for --pretrain_choice')
    fitting = {name: value for name, value in weights.items() if name in own and not misfits(own, {name: value})}
    anew = [name for name in own if name not in fitting]
    left_out = [name for name in weights if name not in own and not is_unused(name)]
    model.load_state_dict({**own, **fitting})
    if hasattr(model, 'after_weights_loaded'):
        model.after_weights_loaded()
    logger.info('started from %s: %d entries taken%s%s', path, len(fitting),
                f'; made anew: {some(anew)}' if anew else '', f'; left out: {some(left_out)}' if left_out else '')


def encoder_names(model):
    """What the names of the encoders' parameters begin with: those of the backbone's parts, CLIP's for a model without one."""
    backbone = getattr(model, 'backbone', None)
    return ('base_model.',) if backbone is None else tuple(f'{name}.' for name, _ in backbone.named_children())


def as_a_runs(weights):
    """A CLIP's own state dict under the names that it has in a run's checkpoint; a run's as it is."""
    of_a_clip = 'visual.conv1.weight' in weights and not any(name.startswith('base_model.') for name in weights)
    return {f'base_model.{name}': value for name, value in weights.items()} if of_a_clip else weights


class Checkpointer:
    """Writes ``<save_dir>/<name>.pth`` and reads such files.

    ``save('best', epoch=.., metrics=..)`` keeps the model and what is given; ``save('last', training_state=True, ...)`` also the
    optimizer and the schedule.
    """

    def __init__(self, model, optimizer=None, scheduler=None, save_dir='', save_to_disk=None):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.save_dir, self.save_to_disk = save_dir, save_to_disk
        self.resumed = {}  # what resume() found beside model, optimizer and schedule

    def path(self, name):
        return os.path.join(self.save_dir, f'{name}.pth')

    def save(self, name, training_state=False, **extra):
        """Write a checkpoint whole or not at all. What is not finite is not saved; no disk space, no permission: in each case
        :class:`UserError`, and the old file is kept."""
        divided = any(map(is_divided, self.model.parameters()))    # then all processes bring their parts
        if not self.save_dir or not (self.save_to_disk or divided):
            return
        content = {'model': self.weights(), **extra}
        if not training_state:
            spared = getattr(self.model, 'training_only', ())
            content['model'] = {entry: value for entry, value in content['model'].items() if entry not in spared}
        else:
            content.update(optimizer=self.optimizer.state_dict(), scheduler=self.scheduler.state_dict())
            content['moments'] = len(content['optimizer']['state'])
        if divided:
            content = gathered(content, self.save_to_disk, {})
        if not self.save_to_disk:
            return
        self.refuse_not_finite(content)
        write_checkpoint(content, self.path(name))

    def weights(self):
        """The model's state dict, with the copies that a released loader asks for (``model.reference_copies``: {beginning of the copy's
        name: of the original's}). They share its memory, and take no room in the file."""
        weights = dict(self.model.state_dict())
        for copy, original in getattr(self.model, 'reference_copies', {}).items():
            weights.update({copy + name[len(original):]: value for name, value in list(weights.items()) if name.startswith(original)})
        return weights

    def refuse_not_finite(self, content):
        bad = not_finite(content)
        if bad:
            what = 'weights are' if any(name.startswith('model: ') for name in bad) else "the optimizer's state or the run's is"
            where = ''.join(f'{key} {content[key]}, ' for key in ('epoch', 'step') if key in content)
            raise UserError(f'at {where}{what} not finite any more ({some(bad, 2)}): lower --lr; {self.last_good()}')

    def last_good(self):
        """Where a run that breaks can be gone on with, in words."""
        path = self.path('last')
        return f'the last good checkpoint is {path}' if os.path.isfile(path) else 'nothing was saved before'

    def load(self, f=None):
        """Load a checkpoint's weights, strictly, and return the rest of it."""
        checkpoint = read_checkpoint(f)
        load_weights(self.model, checkpoint.pop('model'), f)
        return checkpoint

    def resume(self, f=None, checkpoint=None):
        """Load model, optimizer and schedule, and return the rest, with ``'epoch'`` the epoch to go on with. ``checkpoint``: what
        :func:`read_checkpoint` made of the file, where it was read already.

        A released checkpoint's epoch was finished when it was written, and so it goes on with the next one. Everything is
        checked before anything is loaded; what doesn't fit raises :class:`UserError`.
        """
        checkpoint = dict(read_checkpoint(f) if checkpoint is None else checkpoint)
        for part in ('optimizer', 'scheduler'):
            if part not in checkpoint:
                raise UserError(f'{f} holds no {part}; resume from a last.pth, or start a new run with --init_from {f}')
        check_values(checkpoint, f)
        weights, state = checkpoint.pop('model'), checkpoint.pop('optimizer')
        bad = not_finite({'model': weights})
        if bad:
            raise UserError(f'{f} holds weights that are not finite ({some(bad)}) and cannot be gone on with')
        if checkpoint.get('moments', len(state['state'])) != len(state['state']):
            raise UserError(f"the optimizer in {f} holds moments of {len(state['state'])} parameters and was saved with "
                            f"{checkpoint['moments']}")
        state = moments_of(state, weights, self.model, self.optimizer, f)
        load_weights(self.model, weights, f, resumed=True)
        self.optimizer.load_state_dict(state)
        self.scheduler.load_state_dict(checkpoint.pop('scheduler'))
        if is_released(checkpoint):
            checkpoint['epoch'] = checkpoint.get('epoch', 0) + 1
        self.resumed = checkpoint
        return checkpoint


def write_checkpoint(content, path):
    """Write ``content`` to ``path`` whole or not at all; no disk space, no permission: :class:`UserError`."""
    try:
        with atomic_write(path, 'wb') as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's writer, when another error (such as Ctrl-C) stopped it halfway
        raise error.__context__ or error from None


def released_weights(model):
    """The state dict that a model's checkpoints hold, under the names of the method's released code."""
    weights = {name: value for name, value in Checkpointer(model).weights().items() if name not in model.training_only}
    return replace_prefixes(weights, model.reference_names)


def is_divided(value):
    """Whether a tensor is PyTorch's DTensor, without the import, which takes half a second."""
    return hasattr(value, 'full_tensor')


def gathered(content, keep, known):
    """Nested dicts and lists with whole tensors, on the CPU, for those of which each process holds a part (``--shard``); all processes call
    this, and those that don't ``keep`` them get None. ``known``: {id: tensor} of those that are whole already."""
    if isinstance(content, dict):
        return {name: gathered(value, keep, known) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)([gathered(value, keep, known) for value in content])
    if not is_divided(content):
        return content
    if id(content) not in known:
        whole = content.full_tensor()
        known[id(content)] = whole.cpu() if keep else None
    return known[id(content)]


def is_released(checkpoint):
    """Whether a checkpoint was written by IRRA's code or a fork's: those keep no step."""
    return 'step' not in checkpoint


def not_finite(content, place=''):
    """The places in nested dicts and lists with a number that is not finite: ``['model: classifier.weight', ...]``."""
    numbers = list(leaves(content, place))
    tensors = [(name, value) for name, value in numbers if isinstance(value, torch.Tensor) and value.is_floating_point()]
    plain = [name for name, value in numbers if isinstance(value, float) and not math.isfinite(value)]
    by_device = {}
    for name, value in tensors:
        by_device.setdefault(value.device, []).append((name, value.isfinite().all()))
    for found in by_device.values():   # one look at each device
        plain += [name for (name, _), good in zip(found, torch.stack([good for _, good in found]).tolist()) if not good]
    return plain


def leaves(content, place):
    """(place, value) of everything in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, (list, tuple)) else None
    if items is None:
        yield place, content
        return
    for name, value in items:
        yield from leaves(value, f'{place}{": " if place else ""}{name}')

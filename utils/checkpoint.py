"""Checkpoints: official parameter names in files, strict loading, atomic writes, no execution of code in a file."""
import logging
import math
import os

import torch

from utils.errors import UserError, abbreviate, describe_type
from utils.iotools import atomic_write
from utils.training_state import COUNTERS, DUPLICATES, RULES, UNUSED, check_values, convert_optimizer_state, is_tuning
from utils.weight_files import check_weights, dtype_name, read_torch_file
from utils.weight_names import replace_prefixes, strip_prefixes, to_own_names

logger = logging.getLogger('Pedestal.checkpoint')


def read_checkpoint(path, with_sha256=False):
    """Read a checkpoint.

    Args:
        path: the file.
        with_sha256: whether to add ``'sha256'``, the checksum of the file.

    Returns:
        The file's dict, with the trained weights under ``'model'``, named as in Pedestal (:func:`to_own_names`).

    Raises:
        UserError: the file is no checkpoint, or its weights are no plain tensors.
    """
    checkpoint, sha256 = read_torch_file(path, with_sha256=True) if with_sha256 else (read_torch_file(path), None)
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} is not a checkpoint: it holds {describe_type(checkpoint)}')
    if 'model' not in checkpoint and isinstance(checkpoint.get('state_dict'), dict):   # as open_clip names it
        checkpoint['model'] = checkpoint.pop('state_dict')
    if 'model' not in checkpoint:
        is_state_dict = bool(checkpoint) and all(isinstance(value, torch.Tensor) for value in checkpoint.values())
        if not is_state_dict:
            keys = ', '.join(map(str, list(checkpoint)[:5]))
            raise UserError(f"{path} is not a checkpoint: it has no 'model', only {keys}")
        checkpoint = {'model': checkpoint}
    check_weights(checkpoint['model'], path)
    if 'tuning' in checkpoint and not is_tuning(checkpoint['tuning']):
        raise UserError(f"{path} is not a checkpoint: its 'tuning' must be {RULES['tuning'][0]}")
    if not is_pedestal_checkpoint(checkpoint):
        checkpoint['model'] = to_own_names(checkpoint['model'], path)
    return {**checkpoint, 'sha256': sha256} if with_sha256 else checkpoint


def is_pedestal_checkpoint(checkpoint):
    """Whether Pedestal wrote a checkpoint. The names in it need no translation."""
    return bool({'step', 'val_dataset'} & set(checkpoint))


def is_unused(name):
    """Whether nothing reads a published entry of this name."""
    return name.startswith(UNUSED) or any(part in name for part in COUNTERS + DUPLICATES)


def load_weights(model, weights, source='the checkpoint', resumed=False):
    """Load a state dict strictly: each entry of the model must be there with its shape; dtypes are converted.

    Published entries that nothing reads are skipped, and the log names them.

    Args:
        model: the model; an error leaves it unchanged.
        weights: the state dict.
        source: the file, for messages.
        resumed: whether a run resumes. Otherwise entries that only training needs may be missing.

    Raises:
        UserError: an entry is missing, unknown, or has another shape or type.
    """
    own = model.state_dict()
    weights = to_own_names(weights, source, lambda names: any(name in own for name in names))
    unused = [name for name in weights if is_unused(name) and name not in own]
    weights = {name: value for name, value in weights.items() if name not in unused}
    optional = set() if resumed else getattr(model, 'training_only', set())
    missing = [name for name in own if name not in weights and name not in optional]
    unknown = [name for name in weights if name not in own]
    mismatches = find_mismatches(own, weights)
    problems = [f'{len(missing)} entries are missing ({abbreviate(missing)})'] * bool(missing)
    problems += [f'{len(unknown)} have no place in the model ({abbreviate(unknown)})'] * bool(unknown)
    problems += [f'{len(mismatches)} have another shape or type ({abbreviate(mismatches)})'] * bool(mismatches)
    if problems:
        raise UserError(f"{source} does not fit the model that the options describe: {'; '.join(problems)}")
    model.load_state_dict({**{name: own[name] for name in optional}, **weights})
    skipped = f', skipped unused {abbreviate(unused)}' if unused else ''
    logger.info('loaded %d entries from %s%s', len(weights), source, skipped)


def find_mismatches(own, weights):
    """List the entries of ``weights`` whose shape or type differs from that in ``own``.

    Returns:
        ``['classifier.weight: [10, 512] for [20, 512]', 'ln.bias: int64 for float32', ...]``
    """
    mismatches = []
    for name, value in weights.items():
        if name in own and value.shape != own[name].shape:
            mismatches.append(f'{name}: {list(value.shape)} for {list(own[name].shape)}')
        elif name in own and value.is_floating_point() != own[name].is_floating_point():
            mismatches.append(f'{name}: {dtype_name(value.dtype)} for {dtype_name(own[name].dtype)}')
    return mismatches


def init_from_checkpoint(model, path, weights=None):
    """Load the weights of ``--init_from`` into the model of a new run.

    The file is a checkpoint of another run, or a CLIP that was trained further, such as on generated pedestrians. Its
    encoders must fit. Heads that it lacks, and a classifier of another size, keep their initial weights. Heads that
    only it has are skipped. The log names both.

    Args:
        model: the new model.
        path: the file.
        weights: the weights of the file if it was read before.

    Raises:
        UserError: the encoders do not fit.
    """
    own = model.state_dict()
    weights = read_checkpoint(path)['model'] if weights is None else weights
    weights = strip_prefixes(weights, lambda names: any(name in own for name in names), path)
    weights = add_run_prefix(weights)
    prefixes = encoder_prefixes(model)
    encoder = {name: value for name, value in weights.items()
               if name.startswith(prefixes) and not is_unused(name)}
    added = getattr(getattr(model, 'tuning', None), 'parameter_names', ())
    missing = [name for name in own if name.startswith(prefixes) and name not in {*encoder, *added}]
    unknown = [name for name in encoder if name not in own]
    mismatches = find_mismatches(own, encoder)
    if hasattr(model, 'backbone') and not model.backbone.matches_state_dict(weights):
        raise UserError(f'--init_from: {path} is of another backbone than {model.backbone.name}, which --backbone '
                        'names')
    if missing or unknown or mismatches:
        raise UserError(f'{path} has another encoder than the options describe: '
                        f'{abbreviate(mismatches + missing + unknown)}; a CLIP for another --img_size, or with names '
                        'other than its own, is for --pretrain_choice')
    matching = {name: value for name, value in weights.items()
                if name in own and not find_mismatches(own, {name: value})}
    initial = [name for name in own if name not in matching]
    skipped = [name for name in weights if name not in own and not is_unused(name)]
    model.load_state_dict({**own, **matching})
    if hasattr(model, 'after_weights_loaded'):
        model.after_weights_loaded()
    logger.info('started from %s: %d entries loaded%s%s', path, len(matching),
                f'; with initial weights: {abbreviate(initial)}' if initial else '',
                f'; skipped: {abbreviate(skipped)}' if skipped else '')


def encoder_prefixes(model):
    """Return the prefixes of the encoders' parameter names: the backbone's parts, or CLIP's for a model without one."""
    backbone = getattr(model, 'backbone', None)
    return ('base_model.',) if backbone is None else tuple(f'{name}.' for name, _ in backbone.named_children())


def frozen_encoder_names(model):
    """Return the names of the encoders' parameters that ``--tuning`` freezes. Buffers are not among them.

    Parameters that ``--freeze`` excludes are not among them either, because the tuning may have added them.
    """
    prefixes = encoder_prefixes(model)
    return {name for name, parameter in model.named_parameters()
            if name.startswith(prefixes) and not parameter.requires_grad} - model.frozen_names


def add_run_prefix(weights):
    """Rename the entries of a CLIP's own state dict as in a run's checkpoint. A run's state dict stays unchanged."""
    is_clip = 'visual.conv1.weight' in weights and not any(name.startswith('base_model.') for name in weights)
    return {f'base_model.{name}': value for name, value in weights.items()} if is_clip else weights


class Checkpointer:
    """Writes ``<save_dir>/<name>.pth`` and reads such files.

    ``save('best', epoch=.., metrics=..)`` writes the model and the given entries. ``save('last', training_state=True,
    ...)`` also writes the optimizer and the schedule.

    Without the training state, the checkpoint of a tuned run (``model.tuned_from``) lacks the frozen parameters of the
    encoders, because :mod:`model.base_weights` reads them from their file. If no file has them, all are written.

    Args:
        model, optimizer, scheduler: the objects to save and load.
        save_dir: the folder; '' to write nothing.
        save_to_disk: whether this process writes.
    """

    def __init__(self, model, optimizer=None, scheduler=None, save_dir='', save_to_disk=None):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.save_dir, self.save_to_disk = save_dir, save_to_disk
        self.resumed = {}  # other entries of the file that resume() read

    def path(self, name):
        """Return the path of a checkpoint."""
        return os.path.join(self.save_dir, f'{name}.pth')

    def save(self, name, training_state=False, **entries):
        """Write a checkpoint atomically.

        Args:
            name: 'best', 'last', ...
            training_state: whether to add the optimizer and the schedule.
            entries: further entries.

        Raises:
            UserError: a number is not finite, or the file cannot be written. The old file stays unchanged.
        """
        has_shards = any(map(is_sharded, self.model.parameters()))    # then all ranks take part
        if not self.save_dir or not (self.save_to_disk or has_shards):
            return
        content = {'model': self.weights(), **entries}
        tuned_from = getattr(self.model, 'tuned_from', None)
        has_base_file = bool(tuned_from) and tuned_from['base'] is not None
        if tuned_from:
            content['tuning'] = {**tuned_from, 'is_whole': training_state or not has_base_file}
        if not training_state:
            unsaved = set(getattr(self.model, 'training_only', ()))
            if has_base_file:
                unsaved |= frozen_encoder_names(self.model)
            content['model'] = {entry: value for entry, value in content['model'].items() if entry not in unsaved}
        else:
            content.update(optimizer=self.optimizer.state_dict(), scheduler=self.scheduler.state_dict())
            content['moments'] = len(content['optimizer']['state'])
        if has_shards:
            content = gather_full_tensors(content, self.save_to_disk, {})
        if not self.save_to_disk:
            return
        self.check_finite(content)
        write_checkpoint(content, self.path(name))

    def keep_only(self, name):
        """Remove best.pth or last.pth, but not the one of this name, if the run has both."""
        other = self.path({'best': 'last', 'last': 'best'}[name])
        if self.save_to_disk and os.path.isfile(self.path(name)) and os.path.isfile(other):
            os.remove(other)
            logger.info('removed %s (--keep %s)', other, name)

    def weights(self):
        """Return the model's state dict, with the copies that the reference implementation loads.

        ``model.reference_copies`` is ``{prefix of the copy's name: prefix of the original's}``. The copies share memory
        with the originals and are stored once.
        """
        weights = dict(self.model.state_dict())
        for copy, original in getattr(self.model, 'reference_copies', {}).items():
            weights.update({copy + name[len(original):]: value for name, value in list(weights.items())
                            if name.startswith(original)})
        return weights

    def check_finite(self, content):
        """Raise :class:`UserError` if a number in ``content`` is not finite."""
        non_finite = find_non_finite(content)
        if non_finite:
            in_model = any(name.startswith('model: ') for name in non_finite)
            what = 'weights are' if in_model else "the optimizer's state or the run's progress is"
            when = ''.join(f'{key} {content[key]}, ' for key in ('epoch', 'step') if key in content)
            raise UserError(f'at {when}{what} not finite any more ({abbreviate(non_finite, 2)}): lower --lr; '
                            f'{self.describe_last_checkpoint()}')

    def describe_last_checkpoint(self):
        """Describe the checkpoint from which a failed run can resume."""
        path = self.path('last')
        return f'the last good checkpoint is {path}' if os.path.isfile(path) else 'nothing was saved before'

    def load(self, f=None):
        """Load a checkpoint's weights strictly, and return its other entries."""
        checkpoint = read_checkpoint(f)
        load_weights(self.model, checkpoint.pop('model'), f)
        return checkpoint

    def resume(self, f=None, checkpoint=None):
        """Load model, optimizer and schedule. Everything is checked before anything is loaded.

        Args:
            f: the file.
            checkpoint: its content if :func:`read_checkpoint` read it before.

        Returns:
            The other entries. ``'epoch'`` is the epoch to continue with. A checkpoint of a reference implementation was
            written at the end of its epoch, so the run continues with the next.

        Raises:
            UserError: an entry is missing or does not fit.
        """
        checkpoint = dict(read_checkpoint(f) if checkpoint is None else checkpoint)
        for entry in ('optimizer', 'scheduler'):
            if entry not in checkpoint:
                raise UserError(f'{f} holds no {entry}; {describe_last_next_to(f)}start a new run with --init_from {f}')
        check_values(checkpoint, f)
        weights, state = checkpoint.pop('model'), checkpoint.pop('optimizer')
        non_finite = find_non_finite({'model': weights})
        if non_finite:
            raise UserError(f'{f} holds weights that are not finite ({abbreviate(non_finite)}): no run can resume from '
                            'it')
        moments = len(state['state'])
        if checkpoint.get('moments', moments) != moments:
            raise UserError(f'the optimizer in {f} holds moments of {moments} parameters and was saved with '
                            f"{checkpoint['moments']}")
        state = convert_optimizer_state(state, weights, self.model, self.optimizer, f)
        load_weights(self.model, weights, f, resumed=True)
        self.optimizer.load_state_dict(state)
        self.scheduler.load_state_dict(checkpoint.pop('scheduler'))
        if is_reference_checkpoint(checkpoint):
            checkpoint['epoch'] = checkpoint.get('epoch', 0) + 1
        self.resumed = checkpoint
        return checkpoint


def describe_last_next_to(path):
    """Advise to resume from a last.pth instead of another checkpoint, or say that the run's folder has none."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isfile(os.path.join(folder, 'configs.yaml')) and not os.path.isfile(os.path.join(folder, 'last.pth')):
        return 'no run can continue here, because there is no last.pth (--keep best removes it from a finished run): '
    return 'resume from a last.pth, or '


def write_checkpoint(content, path):
    """Write ``content`` to ``path`` atomically.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with atomic_write(path, 'wb') as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch.save raises it if another error, such as Ctrl-C, interrupts it
        raise error.__context__ or error from None


def reference_state_dict(model):
    """Return the state dict of a model's checkpoints, under the names of the method's reference implementation."""
    weights = {name: value for name, value in Checkpointer(model).weights().items() if name not in model.training_only}
    return replace_prefixes(weights, model.reference_names)


def is_sharded(value):
    """Whether a tensor is a DTensor. It needs no import of torch.distributed.tensor, which takes half a second."""
    return hasattr(value, 'full_tensor')


def gather_full_tensors(content, is_needed, gathered):
    """Replace the sharded tensors (``--shard``) in nested dicts and lists by full tensors on the CPU.

    All ranks must call it.

    Args:
        content: nested dicts and lists.
        is_needed: whether this rank needs the tensors; otherwise they are replaced by None.
        gathered: ``{id: tensor}`` of those that are gathered already.
    """
    if isinstance(content, dict):
        return {name: gather_full_tensors(value, is_needed, gathered) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)([gather_full_tensors(value, is_needed, gathered) for value in content])
    if not is_sharded(content):
        return content
    if id(content) not in gathered:
        full = content.full_tensor()
        gathered[id(content)] = full.cpu() if is_needed else None
    return gathered[id(content)]


def is_reference_checkpoint(checkpoint):
    """Whether IRRA's code or a fork's wrote a checkpoint: they save no step."""
    return 'step' not in checkpoint


def find_non_finite(content, prefix=''):
    """List the entries in nested dicts and lists that are not finite: ``['model: classifier.weight', ...]``."""
    entries = list(iterate_entries(content, prefix))
    tensors = [(name, value) for name, value in entries
               if isinstance(value, torch.Tensor) and value.is_floating_point()]
    non_finite = [name for name, value in entries if isinstance(value, float) and not math.isfinite(value)]
    by_device = {}
    for name, value in tensors:
        by_device.setdefault(value.device, []).append((name, value.isfinite().all()))
    for checks in by_device.values():   # one transfer per device
        are_finite = torch.stack([is_finite for _, is_finite in checks]).tolist()
        non_finite += [name for (name, _), is_finite in zip(checks, are_finite) if not is_finite]
    return non_finite


def iterate_entries(content, prefix):
    """Yield ``(name, value)`` of each value in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else \
        enumerate(content) if isinstance(content, (list, tuple)) else None
    if items is None:
        yield prefix, content
        return
    for name, value in items:
        yield from iterate_entries(value, f'{prefix}{": " if prefix else ""}{name}')

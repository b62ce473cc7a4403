"""Checkpoints: official parameter names on disk, loaded strictly, written atomically, read without running code."""
import hashlib
import logging
import os
import re

import torch

from utils.errors import UserError
from utils.iotools import atomic_write

logger = logging.getLogger('Pedestal.checkpoint')

# Entries of published checkpoints that nothing reads, by the beginning of their names.
UNUSED = ('base_model.logit_scale', 'base_model_m.',)
# What later PHP releases count in its blocks, anywhere in a name.
COUNTERS = ('expert_count_accum', 'token_count_accum')
# Names of SEN's code for what every other fork calls by IRRA's.
RENAMED = {'cross_attn_mlm.': 'cross_attn.', 'cross_modal_transformer_mlm.': 'cross_modal_transformer.'}


def read_torch_file(path):
    """What ``torch.save`` wrote, on the CPU, by ``weights_only`` loading. Missing, truncated, foreign or code-carrying files
    raise :class:`UserError`."""
    if not os.path.isfile(path):
        raise UserError(f'there is no file {path}')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception as error:  # unpickling arbitrary bytes raises nearly anything
        if re.search('unsupported (global|class)|trying to (call|instantiate)', str(error), re.IGNORECASE):
            raise UserError(f'{path} holds pickled objects other than tensors, which can carry code, and is not loaded: '
                            'save its state dict alone') from None
        raise UserError(f'{path} is truncated or no file of weights') from None


def read_checkpoint(path):
    """A checkpoint's dict with the trained weights under ``'model'``, names without DistributedDataParallel's ``module.``."""
    checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    if 'model' not in checkpoint:
        if not all(isinstance(value, torch.Tensor) for value in checkpoint.values()) or not checkpoint:
            raise UserError(f"{path} is not a checkpoint: it has no 'model', only {', '.join(map(str, list(checkpoint)[:5]))}")
        checkpoint = {'model': checkpoint}
    checkpoint['model'] = renamed({name.removeprefix('module.'): value for name, value in checkpoint['model'].items()})
    return checkpoint


def renamed(weights):
    """A state dict under the names that Pedestal reads."""
    return {next((new + name[len(old):] for old, new in RENAMED.items() if name.startswith(old)), name): value
            for name, value in weights.items()}


def sha256_of(path):
    """A file's checksum, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def some(names, most=5):
    """The first few names and how many more there are."""
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def is_unused(name):
    return name.startswith(UNUSED) or any(counter in name for counter in COUNTERS)


def load_weights(model, weights, source='the checkpoint'):
    """Load a state dict strictly: every entry must be there with its shape; dtypes are converted. Published entries that
    nothing reads are dropped and listed. Anything else raises :class:`UserError` and leaves the model as it was."""
    own, weights = model.state_dict(), renamed(weights)
    unused = [name for name in weights if is_unused(name) and name not in own]
    weights = {name: value for name, value in weights.items() if name not in unused}
    missing = [name for name in own if name not in weights]
    extra = [name for name in weights if name not in own]
    shapes = wrong_shapes(own, weights)
    problems = [f'{len(missing)} entries are missing ({some(missing)})'] * bool(missing)
    problems += [f'{len(extra)} have no place in the model ({some(extra)})'] * bool(extra)
    problems += [f'{len(shapes)} have another shape ({some(shapes)})'] * bool(shapes)
    if problems:
        raise UserError(f"{source} does not fit the model that the options describe: {'; '.join(problems)}")
    model.load_state_dict(weights)
    logger.info('loaded %d entries from %s%s', len(weights), source, f', dropped unused {some(unused)}' if unused else '')


def wrong_shapes(own, weights):
    """``['classifier.weight: [10, 512] for [20, 512]', ...]``"""
    return [f'{name}: {list(value.shape)} for {list(own[name].shape)}' for name, value in weights.items()
            if name in own and value.shape != own[name].shape]


def start_from(model, path):
    """``--init_from``: start a new run from another one's weights. The encoders must fit; heads that the checkpoint lacks and a
    classifier over other identities stay as they were made, heads that only it has are left out, and the log says so."""
    weights, own = read_checkpoint(path)['model'], model.state_dict()
    encoder = {name: value for name, value in weights.items() if name.startswith('base_model.') and not name.startswith(UNUSED)}
    missing = [name for name in own if name.startswith('base_model.') and name not in encoder]
    extra = [name for name in encoder if name not in own]
    shapes = wrong_shapes(own, encoder)
    if missing or extra or shapes:
        raise UserError(f'{path} has another encoder than the options describe: {some(shapes + missing + extra)}')
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    anew = [name for name in own if name not in fitting]
    left_out = [name for name in weights if name not in own]
    model.load_state_dict({**own, **fitting})
    logger.info('started from %s: %d entries taken%s%s', path, len(fitting),
                f'; made anew: {some(anew)}' if anew else '', f'; left out: {some(left_out)}' if left_out else '')


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
        """Write a checkpoint whole or not at all. No disk space, no permission: :class:`UserError`, the old file is kept."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {'model': self.model.state_dict(), **extra}
        if training_state:
            content.update(optimizer=self.optimizer.state_dict(), scheduler=self.scheduler.state_dict())
        path = self.path(name)
        try:
            with atomic_write(path, 'wb') as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch's writer, when the file's own error (a full disk) stopped it halfway
            if not isinstance(error.__context__, OSError):
                raise error.__context__ or error
            raise UserError(f'cannot write {path}: {error.__context__.strerror}; what was there is kept') from None

    def load(self, f=None):
        """Load a checkpoint's weights, strictly, and return the rest of it."""
        checkpoint = read_checkpoint(f)
        load_weights(self.model, checkpoint.pop('model'), f)
        return checkpoint

    def resume(self, f=None):
        """Load model, optimizer and schedule, and return the rest, with ``'epoch'`` the epoch to go on with.

        A released checkpoint's epoch was finished when it was written, and so it goes on with the next one.
        """
        checkpoint = read_checkpoint(f)
        for part in ('optimizer', 'scheduler'):
            if part not in checkpoint:
                raise UserError(f'{f} holds no {part}; resume from a last.pth, or start a new run with --init_from {f}')
        weights = checkpoint.pop('model')
        load_weights(self.model, weights, f)
        state = checkpoint.pop('optimizer')
        try:
            if 'step' not in checkpoint and len(state['param_groups']) != len(self.optimizer.param_groups):
                state = regrouped(state, list(weights), self.model, self.optimizer)
            for group, own in zip(state['param_groups'], self.optimizer.param_groups):
                if 'fused' in own:  # how a step is computed is of this program and machine, not of the run
                    group['fused'] = own['fused']
            self.optimizer.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise UserError(f'the optimizer in {f} does not fit these options: {error}') from None
        self.scheduler.load_state_dict(checkpoint.pop('scheduler'))
        if 'step' not in checkpoint:
            checkpoint['epoch'] = checkpoint.get('epoch', 0) + 1
        self.resumed = checkpoint
        return checkpoint


def regrouped(state, names, model, optimizer):
    """A released optimizer's state, one group a parameter in the order of ``names``, in our groups."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name for name in names if name in set(name_of.values())]  # a state dict lists buffers too
    numbers = {name: group['params'][0] for name, group in zip(names, state['param_groups'])}
    ours, groups = {}, []
    for group in optimizer.state_dict()['param_groups']:
        parameters = optimizer.param_groups[len(groups)]['params']
        for number, parameter in zip(group['params'], parameters):
            if numbers[name_of[id(parameter)]] in state['state']:
                ours[number] = state['state'][numbers[name_of[id(parameter)]]]
        groups.append(group)
    return {'state': ours, 'param_groups': groups}

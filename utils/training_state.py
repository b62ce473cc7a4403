"""The training state of a checkpoint: each value is checked before a run resumes from it.

The file may come from another program, be edited, or be combined from two files. Moments of a wrong shape end in a
segmentation fault, and a wrong number silently trains another model. Therefore each entry has its rule here, and the
error names the first entry that breaks its rule.
"""
import itertools
import logging
import math
import random

import numpy as np
import torch

from utils.errors import UserError, abbreviate, describe_type
from utils.weight_files import describe_if_not_plain, dtype_name

logger = logging.getLogger('Pedestal.checkpoint')

# The state that each optimizer has for a parameter, in tensors of the parameter's shape; Adam also counts steps.
MOMENTS = {torch.optim.Adam: ('exp_avg', 'exp_avg_sq'), torch.optim.AdamW: ('exp_avg', 'exp_avg_sq'),
           torch.optim.SGD: ('momentum_buffer',)}
# Prefixes of entries of published checkpoints that nothing reads. The last four are DM-Adapter's.
UNUSED = ('base_model.logit_scale', 'base_model_m.', 'base_model.vision_param', 'base_model.co_vision_param',
          'base_model.text_param', 'base_model.v2i_proj.')
# Anywhere in a name: entries that the state dict of UP-Person's reference implementation has a second time.
DUPLICATES = ('.attn.prefix.',)
# Counters of later PHP releases, anywhere in a name.
COUNTERS = ('expert_count_accum', 'token_count_accum')
# Buffers of published checkpoints: entries of a state dict that are no parameters.
BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked', 'position_ids') + COUNTERS
# Prefixes of parameters that some reference implementations do not train, because they are frozen or created late.
OPTIONAL_GROUPS = ('decoder_pos_embed', 'base_model.visual.conv1.') + UNUSED


# -- values ------------------------------------------------------------------------------------------------------------

def is_integer(value, minimum=0):
    """Whether a value is an integer of at least ``minimum``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value):
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_best_result(value):
    """Whether a value is ``{key of a measure: number, 'epoch': integer}``."""
    if not isinstance(value, dict) or not is_integer(value.get('epoch')):
        return False
    numbers = [number for name, number in value.items() if name != 'epoch']
    return bool(numbers) and all(map(is_number, numbers))


def is_running_means(value):
    """Whether a value is ``{'sums': {name: number}, 'count': integer}``."""
    if not isinstance(value, dict) or not isinstance(value.get('sums'), dict) or not is_integer(value.get('count')):
        return False
    sums = value['sums']
    return is_number_mapping(sums) and bool(sums) == bool(value['count'])


def is_number_mapping(value):
    """Whether a dict maps names to finite numbers."""
    return all(isinstance(name, str) and is_number(number) for name, number in value.items())


def is_scaler_state(value):
    """Whether a value is the state of a gradient scaler; a disabled one has an empty state."""
    keys = {'scale', 'growth_factor', 'backoff_factor', 'growth_interval', '_growth_tracker'}
    return isinstance(value, dict) and is_number_mapping(value) and (
        not value or keys <= set(value) and value['scale'] > 0)


def is_random_states(states):
    """Whether all random generators accept the states. Temporary generators try them."""
    try:
        version, words, gauss = states['python']
        random.Random().setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = states['numpy']
        if not 0 <= position <= 624 or keys.shape != (624,) or has_gauss not in (0, 1):
            return False
        np.random.RandomState().set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.Generator().set_state(states['torch'])
        return all(isinstance(state, torch.Tensor) and state.dtype == torch.uint8 and state.ndim == 1
                   for state in states['cuda'])
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError, IndexError):
        return False


def is_tables(value):
    """Whether a value is ``{name: tensor of finite numbers with two dimensions}``."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(table, torch.Tensor) and not describe_if_not_plain(table)
        and table.is_floating_point() and table.ndim == 2 and bool(table.isfinite().all())
        for name, table in value.items())


def is_tuning(value):
    """Whether a value is ``{'name': ..., 'base': {'name', 'sha256'} or None, 'is_whole': ...}`` of a tuned run."""
    if not isinstance(value, dict) or not isinstance(value.get('name'), str):
        return False
    base, is_whole = value.get('base'), value.get('is_whole')
    has_base = isinstance(base, dict) and all(isinstance(base.get(key), str) for key in ('name', 'sha256'))
    return isinstance(is_whole, bool) and (has_base or base is None and is_whole)


def is_scheduler_state(value):
    """Whether a value is the state of a learning rate schedule."""
    return isinstance(value, dict) and is_integer(value.get('last_epoch'))


def is_optimizer_state(value):
    """Whether a value looks like the state of an optimizer; :func:`convert_optimizer_state` checks the rest."""
    return (isinstance(value, dict) and isinstance(value.get('state'), dict)
            and isinstance(value.get('param_groups'), list))


# {entry: (description of valid values, test)}
RULES = {
    'epoch': ('a whole number from 1', lambda value: is_integer(value, 1)),
    'step': ('a whole number', is_integer),
    'total_steps': ('a whole number', is_integer),
    'skipped': ('a whole number', is_integer),
    'unevaluated': ('an epoch or None', lambda value: value is None or is_integer(value, 1)),
    'moments': ('a whole number', is_integer),
    'pair_states': ('{name: a table with finite numbers for each pair}', is_tables),
    'best': ("{a measure such as 'R1': a number, 'epoch': a whole number}", is_best_result),
    'means': ("{'sums': {name: number}, 'count': a whole number}", is_running_means),
    'scaler': ('the state of a gradient scaler', is_scaler_state),
    'random_states': ('the states of the random generators', is_random_states),
    'scheduler': ("{'last_epoch': a whole number}", is_scheduler_state),
    'tuning': ("{'name': a text, 'base': {'name': a text, 'sha256': a text}, 'is_whole': True or False}", is_tuning),
    'optimizer': ("{'state': ..., 'param_groups': ...}", is_optimizer_state),
}
# The entries of last.pth besides model, optimizer and schedule.
RUN_ENTRIES = ('epoch', 'step', 'total_steps', 'unevaluated', 'best', 'means', 'random_states')


def check_values(checkpoint, source):
    """Check the entries of a checkpoint that the training loop reads.

    Raises:
        UserError: an entry breaks its rule; the message names ``source``.
    """
    for name, (rule, is_valid) in RULES.items():
        if name in checkpoint and not is_valid(checkpoint[name]):
            raise UserError(f"no run can resume from {source}: '{name}' is {shorten(checkpoint[name])} and must be "
                            f'{rule}')


def shorten(value):
    """Describe a value in an error, only by its type if it is large."""
    is_simple = isinstance(value, (int, float, str, bool, type(None)))
    text = repr(value) if is_simple else f'{describe_type(value)} of other content'
    return text if len(text) <= 60 else f'{text[:60]}...'


# -- moments -----------------------------------------------------------------------------------------------------------

def convert_optimizer_state(state, weights, model, optimizer, source):
    """Check the state of an optimizer, and convert it to the form that ``optimizer`` loads.

    Args:
        state: the state in the file, of Pedestal or of a reference implementation.
        weights: the state dict in the same file.
        model: the model that ``optimizer`` trains.
        optimizer: the new optimizer. Its groups keep the settings of the options, except for the learning rate.
        source: the file, for messages.

    Returns:
        A state dict whose tensors are copies.

    Raises:
        UserError: the state does not fit.
    """
    own_state = optimizer.state_dict()
    names = optimizer_parameter_names(model, optimizer)
    groups = [read_group_numbers(group, source) for group in state['param_groups']]
    sizes, own_sizes = list(map(len, groups)), [len(group['params']) for group in own_state['param_groups']]
    if sizes == own_sizes:
        entries = [get_entry(state, number) for group in groups for number in group]
        if set(state['state']) - {number for group in groups for number in group}:
            raise UserError(f'the optimizer in {source} holds moments of parameters that it does not train')
    elif all(size == 1 for size in sizes):
        numbers = pair_reference_groups([group[0] for group in groups], state, weights, names, source)
        entries = [get_entry(state, numbers[name]) for name in names]
    else:
        raise UserError(f'the optimizer in {source} does not fit these options: its groups hold {sizes} parameters, '
                        f"and the model's {own_sizes}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    converted = {number: convert_entry(entry, parameter, type(optimizer), f'{name} in {source}')
                 for number, (entry, parameter, name) in enumerate(zip(entries, parameters, names))
                 if entry is not None}
    if len(groups) == len(own_state['param_groups']):  # a scheduler of another program may have set the rates
        for group, saved in zip(own_state['param_groups'], state['param_groups']):
            group['lr'] = saved['lr'] if is_number(saved.get('lr')) else group['lr']
    return {'state': converted, 'param_groups': own_state['param_groups']}


def optimizer_parameter_names(model, optimizer):
    """List the names of the parameters that an optimizer trains, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group['params']]


def read_group_numbers(group, source):
    """Return the numbers of the parameters in a saved group."""
    numbers = group.get('params') if isinstance(group, dict) else None
    if not isinstance(numbers, list) or not all(map(is_integer, numbers)):
        raise UserError(f"the optimizer in {source} has a group without a list of its parameters' numbers")
    return numbers


def get_entry(state, number):
    """Return the saved state of a parameter, None if there is none."""
    return state['state'].get(number)


def pair_reference_groups(numbers, state, weights, trained, source):
    """Find the parameter of each group of a reference implementation's optimizer.

    The optimizer has one group per parameter, in the order of the model's state dict without buffers. Some
    parameters have no group, depending on the fork: SEN's fixed positions have none, but A2TE's frozen convolution and
    the unused copy of its encoders have one. So each subset of the doubtful parameters that gives the right number of
    names is tried, and the one whose moments all have their parameters' shapes is chosen.

    Args:
        numbers: the parameter number of each group.
        state: the optimizer's state in the file.
        weights: the state dict in the file.
        trained: names of the parameters that the new optimizer trains.
        source: the file, for messages.

    Returns:
        ``{name: parameter number}`` for ``trained``.

    Raises:
        UserError: no subset fits, two differ, or a trained parameter has no group.
    """
    registered = [name for name in weights if not any(buffer in name for buffer in BUFFERS)]
    doubtful = [prefix for prefix in OPTIONAL_GROUPS if any(name.startswith(prefix) for name in registered)]
    candidates = []
    for count in range(len(doubtful) + 1):
        for excluded in itertools.combinations(doubtful, count):
            names = [name for name in registered if not name.startswith(excluded)] if excluded else registered
            pairs = dict(zip(names, numbers))
            if len(names) == len(numbers) and all(has_shape_of(get_entry(state, number), weights[name])
                                                  for name, number in pairs.items()):
                candidates.append({name: pairs.get(name) for name in trained})
    if not candidates or any(other != candidates[0] for other in candidates):
        reason = 'in one way alone' if candidates else 'by number and shape'
        raise UserError(f'the optimizer in {source} has {len(numbers)} groups, and they cannot be paired with its '
                        f'{len(registered)} weights {reason}; start a new run with --init_from')
    missing = [name for name, number in candidates[0].items() if number is None]
    if missing:
        raise UserError(f'the optimizer in {source} has no group for parameters that these options train: '
                        f'{abbreviate(missing)}; start a new run with --init_from')
    without_moments = [name for name, number in candidates[0].items() if get_entry(state, number) is None]
    logger.info('moments of %d parameters from %s%s', len(trained) - len(without_moments), source,
                f'; it has none for {abbreviate(without_moments)}' if without_moments else '')
    if len(without_moments) == len(trained):
        raise UserError(f'the optimizer in {source} holds no moments; start a new run with --init_from')
    return candidates[0]


def has_shape_of(entry, weight):
    """Whether all moments of an entry have the weight's shape; a missing entry fits each weight."""
    if not isinstance(entry, dict):
        return entry is None
    return all(value.shape == weight.shape for name, value in entry.items()
               if isinstance(value, torch.Tensor) and name != 'step')


def convert_entry(entry, parameter, optimizer_type, where):
    """Check a parameter's entry of an optimizer's state, and convert it to the parameter's dtype, layout and device."""
    moments = MOMENTS.get(optimizer_type)
    expected = set(moments or ()) | ({'step'} if moments and 'exp_avg' in moments else set())
    if not isinstance(entry, dict) or (moments and set(entry) != expected):
        content = abbreviate(map(str, entry)) if isinstance(entry, dict) else describe_type(entry)
        raise UserError(f"the optimizer's state of {where} holds {content} and must hold {', '.join(sorted(expected))}")
    converted = {}
    for name, value in entry.items():
        if name == 'step':
            converted[name] = convert_step(value, where)
        elif name in (moments or ()):
            check_moment(name, value, parameter, where)
            converted[name] = torch.empty_like(parameter).copy_(value)
        else:
            converted[name] = value
    return converted


def convert_step(value, where):
    """Check a parameter's count of steps, and return it as a tensor; older files hold a plain number."""
    is_scalar = isinstance(value, torch.Tensor) and not describe_if_not_plain(value) and value.numel() == 1
    number = value.item() if is_scalar else value
    if not is_number(number) or number < 0:
        raise UserError(f"the optimizer's count of steps of {where} is {shorten(number)} and must be a number from 0")
    return torch.tensor(float(number))


def check_moment(name, value, parameter, where):
    """Raise :class:`UserError` unless a moment is a tensor that fits its parameter."""
    problem = describe_if_not_plain(value)
    if not problem and not value.is_floating_point():
        problem = f'a tensor of {dtype_name(value.dtype)}'
    if not problem and value.shape != parameter.shape:
        problem = f'of shape {list(value.shape)} for {list(parameter.shape)}'
    if not problem and not value.isfinite().all():
        problem = 'not finite'
    if not problem and name == 'exp_avg_sq' and (value < 0).any():
        problem = 'negative, but must be a mean of squares'
    if problem:
        raise UserError(f"the optimizer's {name} of {where} is {problem}")

"""What a run goes on from: every value that last.pth keeps is checked before any is used.

A file can be of another program, edited, or put together from two. Moments of a wrong shape end in a segmentation fault, a wrong
number trains another model in silence; so each entry has its rule here, and the first that breaks one is named.
"""
import itertools
import logging
import math
import random

import numpy as np
import torch

from utils.errors import UserError
from utils.weight_files import plain_name, some, why_not_plain

logger = logging.getLogger('Pedestal.checkpoint')

# What each optimizer keeps for a parameter, beside Adam's count of steps, in tensors of the parameter's shape.
MOMENTS = {torch.optim.Adam: ('exp_avg', 'exp_avg_sq'), torch.optim.AdamW: ('exp_avg', 'exp_avg_sq'), torch.optim.SGD: ('momentum_buffer',)}
# Entries of published checkpoints that nothing reads, by the beginning of their names.
UNUSED = ('base_model.logit_scale', 'base_model_m.',)
# What later PHP releases count in its blocks, anywhere in a name.
COUNTERS = ('expert_count_accum', 'token_count_accum')
# Buffers of published checkpoints: entries of a state dict that no optimizer ever had.
BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked', 'position_ids') + COUNTERS
# Entries for which a released optimizer may have had no group: they were frozen, or made after it.
WITHOUT_GROUP = ('decoder_pos_embed', 'base_model.visual.conv1.') + UNUSED


# -- values --------------------------------------------------------------------------------------------------------------

def is_whole(value, least=0):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_best(value):
    if not isinstance(value, dict) or not is_whole(value.get('epoch')):
        return False
    measured = [value[metric] for metric in ('R1', 'mA') if metric in value]
    return bool(measured) and all(map(is_number, measured))


def are_means(value):
    if not isinstance(value, dict) or not isinstance(value.get('sums'), dict) or not is_whole(value.get('count')):
        return False
    sums = value['sums']
    return all(isinstance(name, str) and is_number(number) for name, number in sums.items()) and bool(sums) == bool(value['count'])


def is_scaler(value):
    return isinstance(value, dict) and all(isinstance(name, str) and is_number(number) for name, number in value.items()) and (
        not value or {'scale', 'growth_factor', 'backoff_factor', 'growth_interval', '_growth_tracker'} <= set(value)
        and value['scale'] > 0)


def are_random_states(states):
    """Whether all generators take them; tried on generators that nobody uses."""
    try:
        version, words, gauss = states['python']
        random.Random().setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = states['numpy']
        if not 0 <= position <= 624 or keys.shape != (624,) or has_gauss not in (0, 1):
            return False
        np.random.RandomState().set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        torch.Generator().set_state(states['torch'])
        return all(isinstance(state, torch.Tensor) and state.dtype == torch.uint8 and state.ndim == 1 for state in states['cuda'])
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError, IndexError):
        return False


# {entry: (what it must be, in words; the test)}
RULES = {
    'epoch': ('a whole number from 1', lambda value: is_whole(value, 1)),
    'step': ('a whole number', is_whole),
    'total_steps': ('a whole number', is_whole),
    'skipped': ('a whole number', is_whole),
    'unevaluated': ('an epoch or None', lambda value: value is None or is_whole(value, 1)),
    'moments': ('a whole number', is_whole),
    'best': ("{'R1' or 'mA': a number, 'epoch': a whole number}", is_best),
    'means': ("{'sums': {name: number}, 'count': a whole number}", are_means),
    'scaler': ('the state of a gradient scaler', is_scaler),
    'random_states': ('the states of the random generators', are_random_states),
    'scheduler': ("{'last_epoch': a whole number}", lambda value: isinstance(value, dict) and is_whole(value.get('last_epoch'))),
    'optimizer': ("{'state': ..., 'param_groups': ...}", lambda value: isinstance(value, dict) and isinstance(value.get('state'), dict)
                  and isinstance(value.get('param_groups'), list)),
}
# What the training loop keeps beside model, optimizer and schedule.
OF_A_RUN = ('epoch', 'step', 'total_steps', 'unevaluated', 'best', 'means', 'random_states')


def check_values(checkpoint, source):
    """Raise :class:`UserError` for an entry that is something else than what the training loop keeps under its name."""
    for name, (rule, holds) in RULES.items():
        if name in checkpoint and not holds(checkpoint[name]):
            raise UserError(f"{source} is no state to go on from: '{name}' is {shortened(checkpoint[name])} and must be {rule}")


def shortened(value):
    """A value in an error: its type alone where it is large."""
    text = repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f'a {type(value).__name__} of other content'
    return text if len(text) <= 60 else f'{text[:60]}...'


# -- moments -------------------------------------------------------------------------------------------------------------

def moments_of(state, weights, model, optimizer, source):
    """An optimizer's saved ``state``, ours or a released one's, as ``optimizer``, which learns ``model``, takes it: checked, and in memory
    of its own. The groups' settings are the options', not the file's. ``weights`` is the state dict that lay beside it."""
    own = optimizer.state_dict()
    numbers = [check_group(group, source) for group in state['param_groups']]
    if list(map(len, numbers)) == [len(group['params']) for group in own['param_groups']]:
        of_parameter = [entry_of(state, number) for group in numbers for number in group]
        if set(state['state']) - {number for group in numbers for number in group}:
            raise UserError(f'the optimizer in {source} holds moments of parameters that it does not learn')
    elif all(len(group) == 1 for group in numbers):
        pairs = released_pairs([group[0] for group in numbers], state, weights, own_names(model, optimizer), source)
        of_parameter = [entry_of(state, pairs[name]) for name in own_names(model, optimizer)]
    else:
        raise UserError(f'the optimizer in {source} does not fit these options: its groups hold {list(map(len, numbers))} parameters, '
                        f"and the model's {[len(group['params']) for group in own['param_groups']]}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    names = own_names(model, optimizer)
    kept = {number: checked_moments(entry, parameter, type(optimizer), f'{name} in {source}')
            for number, (entry, parameter, name) in enumerate(zip(of_parameter, parameters, names)) if entry is not None}
    if len(numbers) == len(own['param_groups']):  # the rate may be a schedule's that is not ours
        for group, saved in zip(own['param_groups'], state['param_groups']):
            group['lr'] = saved['lr'] if is_number(saved.get('lr')) else group['lr']
    return {'state': kept, 'param_groups': own['param_groups']}


def own_names(model, optimizer):
    """The names of the parameters that an optimizer learns, in its order."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group['params']]


def check_group(group, source):
    """The parameters' numbers in a saved group."""
    numbers = group.get('params') if isinstance(group, dict) else None
    if not isinstance(numbers, list) or not all(map(is_whole, numbers)):
        raise UserError(f"the optimizer in {source} has a group without a list of its parameters' numbers")
    return numbers


def entry_of(state, number):
    return state['state'].get(number)


def released_pairs(numbers, state, weights, learned, source):
    """{name: its group's parameter number} of a released optimizer, which has a group for each parameter in the order in which the
    model registered them: the order of its state dict, buffers left out.

    Which parameters had no group depends on the fork: SEN's fixed positions had none, A2TE's frozen convolution and the copy of the
    encoders that nothing reads had theirs. So each choice that gives as many names as there are groups is tried, and the one whose
    moments all have their parameters' shapes is it. None, or two that disagree: :class:`UserError`.
    """
    registered = [name for name in weights if not any(part in name for part in BUFFERS)]
    doubtful = [prefix for prefix in WITHOUT_GROUP if any(name.startswith(prefix) for name in registered)]
    found = []
    for count in range(len(doubtful) + 1):
        for left_out in itertools.combinations(doubtful, count):
            names = [name for name in registered if not name.startswith(left_out)] if left_out else registered
            pairs = dict(zip(names, numbers))
            if len(names) == len(numbers) and all(shapes_fit(entry_of(state, number), weights[name]) for name, number in pairs.items()):
                found.append({name: pairs.get(name) for name in learned})
    if not found or any(other != found[0] for other in found):
        raise UserError(f'the optimizer in {source} has {len(numbers)} groups, and they cannot be paired with its {len(registered)} '
                        f'weights {"in one way alone" if found else "by number and shape"}; start a new run with --init_from')
    lacking = [name for name, number in found[0].items() if number is None]
    if lacking:
        raise UserError(f'the optimizer in {source} has no group for what these options train: {some(lacking)}; start a new run with '
                        '--init_from')
    without = [name for name, number in found[0].items() if entry_of(state, number) is None]
    logger.info('moments of %d parameters from %s%s', len(learned) - len(without), source,
                f'; it has none for {some(without)}' if without else '')
    if len(without) == len(learned):
        raise UserError(f'the optimizer in {source} holds no moments; start a new run with --init_from')
    return found[0]


def shapes_fit(entry, weight):
    """Whether all of an entry's moments have the weight's shape; one that is missing fits anything."""
    if not isinstance(entry, dict):
        return entry is None
    return all(value.shape == weight.shape for name, value in entry.items() if isinstance(value, torch.Tensor) and name != 'step')


def checked_moments(entry, parameter, kind, where):
    """An entry of an optimizer's state, as that optimizer computes with it: in the parameter's type, memory order and device."""
    needed = MOMENTS.get(kind)
    names = set(needed or ()) | ({'step'} if needed and 'exp_avg' in needed else set())
    if not isinstance(entry, dict) or (needed and set(entry) != names):
        held = some(map(str, entry)) if isinstance(entry, dict) else f'a {type(entry).__name__}'
        raise UserError(f"the optimizer's state of {where} holds {held} and must hold {', '.join(sorted(names))}")
    checked = {}
    for name, value in entry.items():
        if name == 'step':
            checked[name] = checked_step(value, where)
        elif name in (needed or ()):
            check_moment(name, value, parameter, where)
            checked[name] = torch.empty_like(parameter).copy_(value)
        else:
            checked[name] = value
    return checked


def checked_step(value, where):
    """How many steps a parameter has learned, as a tensor; older files have a plain number."""
    number = value.item() if isinstance(value, torch.Tensor) and not why_not_plain(value) and value.numel() == 1 else value
    if not is_number(number) or number < 0:
        raise UserError(f"the optimizer's count of steps of {where} is {shortened(number)} and must be a number from 0")
    return torch.tensor(float(number))


def check_moment(name, value, parameter, where):
    wrong = why_not_plain(value)
    if not wrong and not value.is_floating_point():
        wrong = f'a tensor of {plain_name(value.dtype)}'
    if not wrong and value.shape != parameter.shape:
        wrong = f'of shape {list(value.shape)} for {list(parameter.shape)}'
    if not wrong and not value.isfinite().all():
        wrong = 'not finite'
    if not wrong and name == 'exp_avg_sq' and (value < 0).any():
        wrong = 'negative, which no mean of squares is'
    if wrong:
        raise UserError(f"the optimizer's {name} of {where} is {wrong}")

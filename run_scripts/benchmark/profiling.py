"""Measure where a training step spends its time: by part of the model, and by operator."""
import functools
import itertools
import time

import torch

from processor import step as training_step
from run_scripts.benchmark.workload import TrainingSteps, recipe_options, synthetic_batches
from utils.machine import synchronize


def measure_profile(setting):
    """Profile training steps.

    Args:
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.

    Returns:
        ``{'parts': [...], 'operators': [...]}``: the time of a step by part, on the clock of the device, and the
        costliest operators.
    """
    training, batches = TrainingSteps(recipe_options(setting)), synthetic_batches(setting)
    steps = max(setting.steps, setting.repeats)
    for batch in batches[:3]:
        training(batch)
    timer = PartTimer(training)
    for batch in itertools.islice(itertools.cycle(batches), steps):
        training(batch)
    parts = {name: seconds / steps for name, seconds in timer.seconds_by_part().items()}
    timer.remove()
    operators = time_operators(training, batches[:3], setting)
    step_seconds = sum(parts.values())
    operator_seconds = max(sum(seconds for _, seconds, _ in operators), 1e-12)
    if setting.on_gpu:
        parts['(GPU busy, of all that)'] = operator_seconds
    return {'parts': [{'group': name, 'seconds': [seconds], 'share': seconds / step_seconds}
                      for name, seconds in parts.items()],
            'operators': [{'group': name, 'what': operator_kind(name), 'seconds': [seconds],
                           'share': seconds / operator_seconds, 'calls': calls}
                          for name, seconds, calls in operators[:12]]}


class PartTimer:
    """Records when methods begin and end, until :meth:`remove`. On a GPU it records events, for which nothing waits."""

    def __init__(self, training):
        self.on_gpu, self.spans, self.wrapped = torch.device(training.args.device).type == 'cuda', {}, []
        model = training.model
        self.wrap('step', TrainingSteps, '__call__')
        for function in ('trim_and_broadcast', 'to_device', 'augment'):
            self.wrap('preparation', training_step, function)
        self.wrap('passes', model, 'forward')
        self.wrap('image encoder', model.base_model, 'encode_image')
        self.wrap('text encoder', model.base_model, 'encode_text')
        self.wrap('cross encoder', next(head.cross for head in model.heads if hasattr(head, 'cross')), 'forward')
        self.wrap('backward', torch.Tensor, 'backward')
        self.wrap('optimizer', training.step.optimizer, 'step')

    def wrap(self, name, owner, method):
        """Replace a method (or a function of a module) by one that records its spans under ``name``."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed_method(*arguments, **settings):
            start = self.now()
            result = original(*arguments, **settings)
            self.spans.setdefault(name, []).append((start, self.now()))
            return result
        self.wrapped.append((owner, method, vars(owner).get(method)))
        setattr(owner, method, timed_method)

    def remove(self):
        """Restore the original methods."""
        for owner, method, original in self.wrapped:
            if original is None:
                delattr(owner, method)
            else:
                setattr(owner, method, original)

    def now(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, name):
        """The total seconds of all spans with a name."""
        if not self.on_gpu:
            return sum(end - start for start, end in self.spans[name])
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.spans[name]) / 1000

    def seconds_by_part(self):
        """``{part: seconds}``, which add up to the seconds of the steps."""
        encoders = {name: self.seconds(name) for name in ('image encoder', 'text encoder', 'cross encoder')}
        backward = self.seconds('backward')
        heads = self.seconds('passes') - sum(encoders.values())
        parts = {'preparing and moving the batch': self.seconds('preparation'), **encoders, 'heads and losses': heads,
                 'backward': backward, 'optimizer': self.seconds('optimizer')}
        return {**parts, 'the rest': self.seconds('step') - sum(parts.values())}


def time_operators(training, batches, setting):
    """Profile operators with PyTorch's profiler.

    Returns:
        ``[(operator, seconds per step, calls per step), ...]``, the costliest first; on a GPU the seconds of its
        kernels.
    """
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * setting.on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches:
            training(batch)
        synchronize(training.args.device)
    attribute = 'self_device_time_total' if setting.on_gpu else 'self_cpu_time_total'
    # Only events of the CPU: the profiler lists kernels again, next to the operators that started them.
    operators = [(event.key, getattr(event, attribute) / 1e6 / len(batches), event.count / len(batches))
                 for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    return sorted(operators, key=lambda operator: -operator[1])


# {part of an operator's name: kind}; the first part that the name contains decides.
OPERATOR_KINDS = {
    'attention': 'attention', 'layer_norm': 'LayerNorm', 'silu': 'QuickGELU', 'adam': 'optimizer',
    'addmm': 'linear layers, forward', 'bmm': 'products of batches of matrices', 'mm': 'linear layers, backward',
    'convolution': 'patches', 'copy_': 'copies and casts', 'softmax': 'softmax', 'embedding': 'word embeddings',
    'add': 'sums: residuals, gradients', 'mul': 'products of numbers', 'sum': 'gradients of biases', 'fill_': 'zeros',
    'index': 'indexing', 'cat': 'concatenation', 'select': 'indexing'}


def operator_kind(operator):
    return next((kind for part, kind in OPERATOR_KINDS.items() if part in operator.lower()), '')

"""Where a training step's time goes: by part of the model, and by operator."""
import functools
import itertools
import time

import torch

from processor import step
from run_scripts.benchmark.machine import wait_for
from run_scripts.benchmark.workload import Training, recipe, synthetic_batches


def measure_profile(setting):
    """``{'parts': [...], 'operators': [...]}``: a step's time by part, on the device's own clock, and its work by operator."""
    trainer, batches = Training(recipe(setting)), synthetic_batches(setting)
    steps = max(setting.steps, setting.repeats)
    for batch in batches[:3]:
        trainer(batch)
    watch = Watch(trainer)
    for batch in itertools.islice(itertools.cycle(batches), steps):
        trainer(batch)
    parts = {name: seconds / steps for name, seconds in watch.parts().items()}
    watch.leave()
    operators = by_operator(trainer, batches[:3], setting)
    whole, work = sum(parts.values()), max(sum(seconds for _, seconds, _ in operators), 1e-12)
    if setting.on_gpu:
        parts['(of all that, the GPU is at work)'] = work
    return {'parts': [{'group': name, 'seconds': [seconds], 'share': seconds / whole} for name, seconds in parts.items()],
            'operators': [{'group': name, 'what': what_costs(name), 'seconds': [seconds], 'share': seconds / work, 'calls': calls}
                          for name, seconds, calls in operators[:12]]}


class Watch:
    """Notes when the parts of a trainer's steps begin and end: on a GPU by events in its stream, for which nothing waits."""

    def __init__(self, trainer):
        self.on_gpu, self.spans, self.watched = torch.device(trainer.args.device).type == 'cuda', {}, []
        model = trainer.model
        self.watch('step', Training, '__call__')
        self.watch('in_pieces', step, 'in_pieces')
        self.watch('passes', step.Backward, 'run')
        self.watch('image encoder', model.base_model, 'encode_image')
        self.watch('text encoder', model.base_model, 'encode_text')
        self.watch('cross encoder', next(head.cross for head in model.heads if hasattr(head, 'cross')), 'forward')
        self.watch('backward', torch.Tensor, 'backward')
        self.watch('optimizer', trainer.step.optimizer, 'step')

    def watch(self, name, owner, method):
        real = getattr(owner, method)

        @functools.wraps(real)
        def noted(*arguments, **settings):
            began = self.now()
            result = real(*arguments, **settings)
            self.spans.setdefault(name, []).append((began, self.now()))
            return result
        self.watched.append((owner, method, vars(owner).get(method)))
        setattr(owner, method, noted)

    def leave(self):
        for owner, method, own in self.watched:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)

    def now(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, name):
        """Of all spans of a name."""
        if not self.on_gpu:
            return sum(end - began for began, end in self.spans[name])
        torch.cuda.synchronize()
        return sum(began.elapsed_time(end) for began, end in self.spans[name]) / 1000

    def parts(self):
        """``{part: seconds}``, which add up to those of the steps."""
        inside = {name: self.seconds(name) for name in ('image encoder', 'text encoder', 'cross encoder')}
        backward = self.seconds('backward')
        heads = self.seconds('passes') - sum(inside.values()) - backward
        found = {'preparing and moving the batch': self.seconds('in_pieces'), **inside, 'heads and losses': heads, 'backward': backward,
                 'optimizer': self.seconds('optimizer')}
        return {**found, 'the rest': self.seconds('step') - sum(found.values())}


def by_operator(trainer, batches, setting):
    """[(operator, seconds a step, calls a step)] of PyTorch's profiler, the costliest first; on a GPU the seconds of its kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * setting.on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches:
            trainer(batch)
        wait_for(trainer.args.device)
    # Kernels are listed again beside the operators that started them.
    events = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    found = [(event.key, (event.self_device_time_total if setting.on_gpu else event.self_cpu_time_total) / 1e6 / len(batches),
              event.count / len(batches)) for event in events]
    return sorted(found, key=lambda one: -one[1])


COSTS = {  # the first part of an operator's name that fits says what it is
    'attention': 'attention', 'layer_norm': 'LayerNorm', 'silu': 'QuickGELU', 'adam': 'optimizer', 'addmm': 'linear layers, forward',
    'bmm': 'products of batches of matrices', 'mm': 'linear layers, backward', 'convolution': 'patches', 'copy_': 'copies and casts',
    'softmax': 'softmax', 'embedding': 'word embeddings', 'add': 'sums: residuals, gradients', 'mul': 'products of numbers',
    'sum': 'gradients of biases', 'fill_': 'zeros', 'index': 'indexing', 'cat': 'concatenation', 'select': 'indexing'}


def what_costs(operator):
    return next((words for part, words in COSTS.items() if part in operator.lower()), '')

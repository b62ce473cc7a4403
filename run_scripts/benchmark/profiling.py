"""Where a training step's time goes: by part of the model, and by operator."""
import functools
import itertools
import time

import torch

from run_scripts.benchmark.machine import wait_for
from run_scripts.benchmark.workload import new_trainer, recipe, synthetic_batches


def measure_profile(setting):
    """``{'parts': [...], 'operators': [...]}``: a step's time by part, on the device's own clock, and its work by operator."""
    trainer, batches = new_trainer(recipe(setting)), synthetic_batches(setting)
    steps = max(setting.steps, setting.repeats)
    for batch in batches[:3]:
        trainer.train_step(batch)
    watch = Watch(trainer)
    for batch in itertools.islice(itertools.cycle(batches), steps):
        trainer.train_step(batch)
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
        self.on_gpu, self.spans, self.watched = trainer.device.type == 'cuda', {}, []
        model = trainer.model
        self.watch('step', trainer, 'train_step')
        self.watch('passes', trainer, 'backward')
        self.watch('forward', model, 'forward')
        self.watch('image encoder', model.base_model, 'encode_image')
        self.watch('text encoder', model.base_model, 'encode_text')
        self.watch('cross encoder', next(head.cross for head in model.heads if hasattr(head, 'cross')), 'forward')
        self.watch('optimizer', trainer.optimizer, 'step')

    def watch(self, name, owner, method):
        real = getattr(owner, method)

        @functools.wraps(real)
        def noted(*arguments, **settings):
            began = self.now()
            result = real(*arguments, **settings)
            self.spans.setdefault(name, []).append((began, self.now()))
            return result
        setattr(owner, method, noted)
        self.watched.append((owner, method))

    def leave(self):
        for owner, method in self.watched:
            delattr(owner, method)

    def now(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, one, end, other, other_end):
        """Seconds from the beginning (0) or end (1) of all spans ``one`` to that of the spans ``other``."""
        pairs = zip(self.spans[one], self.spans[other])
        if not self.on_gpu:
            return sum(b[other_end] - a[end] for a, b in pairs)
        torch.cuda.synchronize()
        return sum(a[end].elapsed_time(b[other_end]) for a, b in pairs) / 1000

    def parts(self):
        """``{part: seconds}``, which add up to those of the steps."""
        inside = {name: self.between(name, 0, name, 1) for name in ('image encoder', 'text encoder', 'cross encoder')}
        found = {'preparing and moving the batch': self.between('passes', 0, 'forward', 0), **inside,
                 'heads and losses': self.between('forward', 0, 'forward', 1) - sum(inside.values()),
                 'backward': self.between('forward', 1, 'passes', 1), 'optimizer': self.between('optimizer', 0, 'optimizer', 1)}
        return {**found, 'the rest': self.between('step', 0, 'step', 1) - sum(found.values())}


def by_operator(trainer, batches, setting):
    """[(operator, seconds a step, calls a step)] of PyTorch's profiler, the costliest first; on a GPU the seconds of its kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * setting.on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches:
            trainer.train_step(batch)
        wait_for(trainer.device)
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

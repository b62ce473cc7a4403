"""Describe the machine, and measure time and memory on it."""
import contextlib
import os
import platform
import time

import numpy as np
import PIL
import torch
import torchvision

from utils import precision
from utils.comm import pick_device
from utils.machine import core_count, physical_memory, synchronize

GPU_SIZE, CPU_SIZE = 8192, 2048     # rows and columns of the matrices of :func:`matrix_rate`


def measure_time(function, device, repeats, patience, warm_up=1):
    """Measure the time of a function.

    Args:
        function: a function without arguments.
        device: the device on which it computes.
        repeats: the number of repeats.
        patience: the total seconds after which there is no further repeat.
        warm_up: the number of calls before the measurement.

    Returns:
        ``({'seconds': [of each repeat], 'others': load}, result)``: ``load`` is the fraction of the cores that other
        processes used meanwhile, and ``result`` is that of the last call.
    """
    for _ in range(warm_up):
        function()
    seconds, other_seconds, start_time = [], other_cpu_seconds(), time.perf_counter()
    while not seconds or len(seconds) < repeats and sum(seconds) < patience:
        synchronize(device)
        repeat_start = time.perf_counter()
        result = function()
        synchronize(device)
        seconds.append(time.perf_counter() - repeat_start)
    others = (other_cpu_seconds() - other_seconds) / (time.perf_counter() - start_time) / core_count()
    return {'seconds': seconds, 'others': max(others, 0.0)}, result


def other_cpu_seconds():
    """Seconds of CPU time of all other processes; 0 if the system does not report it or limits our cores."""
    if core_count() == os.cpu_count():
        with contextlib.suppress(OSError), open('/proc/stat', encoding='utf-8') as file:
            user, nice, kernel, _, _, *interrupts = map(int, file.readline().split()[1:9])
            return (user + nice + kernel + sum(interrupts)) / os.sysconf('SC_CLK_TCK') - time.process_time()
    return 0.0


def cpu_has_bf16():
    """Whether the processor multiplies in bf16 (AVX512-BF16, AMX), which makes ``--amp bf16`` faster; else False."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(file.read().split())
    return False


def describe_machine(device, amp):
    """Describe the hardware and the software.

    Args:
        device: a --device.
        amp: an --amp.

    Raises:
        UserError: there is no such device, or it does not support the precision.
    """
    device = pick_device(device)
    dtype = precision.amp_dtype(amp, device) or torch.float32
    gpu = {}
    if device.type == 'cuda':
        gpu = {'gpu': torch.cuda.get_device_name(device),
               'gpu_memory': torch.cuda.get_device_properties(device).total_memory}
    return {'device': str(device), 'precision': dtype_name(dtype), 'cpu': cpu_name(), 'cores': core_count(),
            'threads': torch.get_num_threads(), 'memory': physical_memory(), **gpu,
            'system': f'{platform.system()} {platform.machine()}', **matrix_rate(device),
            'versions': {'python': platform.python_version(), 'torch': torch.__version__,
                         'torchvision': torchvision.__version__, 'numpy': np.__version__, 'pillow': PIL.__version__}}


def dtype_name(dtype):
    return str(dtype).removeprefix('torch.')


def cpu_name():
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def matrix_rate(device):
    """The largest FLOP/s of a product of large matrices: in bf16 on a GPU, in float32 on a CPU."""
    size, dtype, count = (GPU_SIZE, torch.bfloat16, 20) if device.type == 'cuda' else (CPU_SIZE, torch.float32, 1)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply():
        for _ in range(count):
            a @ b
    timing, _ = measure_time(multiply, device, repeats=20, patience=60)
    return {'matrix_rate': count * 2 * size ** 3 / min(timing['seconds']), 'matrix_precision': dtype_name(dtype)}

"""The machine that the benchmark runs on: what it is, how long something takes on it, and how much memory that holds."""
import contextlib
import os
import platform
import sys
import time

import numpy as np
import PIL
import torch
import torchvision

from utils import precision
from utils.comm import pick_device


def timed(once, device, repeats, patience, warm_up=1):
    """``({'seconds': of each repeat of once(), 'others': the share of the cores that other processes took meanwhile}, what it returned
    last)``. ``patience``: seconds after which there is no further repeat."""
    for _ in range(warm_up):
        once()
    seconds, busy, start = [], busy_elsewhere(), time.perf_counter()
    while not seconds or len(seconds) < repeats and sum(seconds) < patience:
        wait_for(device)
        began = time.perf_counter()
        result = once()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    others = (busy_elsewhere() - busy) / (time.perf_counter() - start) / cores()
    return {'seconds': seconds, 'others': max(others, 0.0)}, result


def busy_elsewhere():
    """Seconds that the cores have worked for other processes; 0 where the system does not say, or has cores that are not for us."""
    if cores() == os.cpu_count():
        with contextlib.suppress(OSError), open('/proc/stat', encoding='utf-8') as file:
            user, nice, kernel, _, _, *interrupts = map(int, file.readline().split()[1:9])
            return (user + nice + kernel + sum(interrupts)) / os.sysconf('SC_CLK_TCK') - time.process_time()
    return 0.0


def wait_for(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def peak_bytes(device='cpu'):
    """The most memory that this process has held so far, or that its tensors on a GPU have."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    import resource     # which Windows lacks
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def cpu_has_bf16():
    """Whether the processor multiplies in bf16 (AVX512-BF16, AMX), so that ``--amp bf16`` is quicker on it; False where none can tell."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(file.read().split())
    return False


def describe_machine(device, amp):
    """Raises UserError for a device that isn't there and a precision that it lacks."""
    device = pick_device(device)
    dtype = precision.amp_dtype(amp, device) or torch.float32
    on_gpu = {}
    if device.type == 'cuda':
        on_gpu = {'gpu': torch.cuda.get_device_name(device), 'gpu_memory': torch.cuda.get_device_properties(device).total_memory}
    return {'device': str(device), 'precision': name_of(dtype), 'cpu': cpu_name(), 'cores': cores(), 'threads': torch.get_num_threads(),
            'memory': physical_memory(), **on_gpu, 'system': f'{platform.system()} {platform.machine()}', **matrix_rate(device),
            'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__,
                         'numpy': np.__version__, 'pillow': PIL.__version__}}


def name_of(dtype):
    return str(dtype).removeprefix('torch.')


def cpu_name():
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def physical_memory():
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def free_memory():
    """Bytes that a new process can have."""
    with contextlib.suppress(OSError), open('/proc/meminfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    return physical_memory()


def matrix_rate(device):
    """FLOP/s of a large product of matrices at its quickest: in bf16 on a GPU, in float32 on a CPU."""
    size, dtype, times = (8192, torch.bfloat16, 20) if device.type == 'cuda' else (2048, torch.float32, 1)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply():
        for _ in range(times):
            a @ b
    timing, _ = timed(multiply, device, repeats=20, patience=60)
    return {'matrix_rate': times * 2 * size ** 3 / min(timing['seconds']), 'matrix_precision': name_of(dtype)}

"""Cores and memory of the machine, and the memory of this process."""
import contextlib
import os
import sys

import torch


def core_count():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def physical_memory():
    """Bytes of the machine's memory."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def available_memory():
    """Bytes that a new process can use."""
    with contextlib.suppress(OSError), open('/proc/meminfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    return physical_memory()


def peak_bytes(device='cpu'):
    """The largest memory of this process so far, or of its tensors on a GPU; 0 on Windows, which does not say."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def synchronize(device):
    """Wait until a GPU has finished its work."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)

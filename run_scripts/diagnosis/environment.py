"""Check the environment: Python, PyTorch, driver, GPU, NCCL, cores, memory, shared memory, disk and open files.

:func:`read_environment` asks the system, and :func:`check_environment` judges the answers, so that tests can judge
those of other machines.
"""
import contextlib
import os
import platform
import shutil
import subprocess
import sys

import torch

from datasets.image_cache import format_bytes
from run_scripts.benchmark.machine import cpu_has_bf16, cpu_name
from run_scripts.diagnosis.check import FAILED, OK, WARNING, Check
from utils.machine import available_memory, core_count, physical_memory

OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 6)
MIN_OPEN_FILES = 1024
MAX_LOAD = 0.5              # of each core
PREFETCHED_BATCHES = 2      # of each data loader worker, as PyTorch's default


def read_environment(device, output_dir):
    """Describe the machine: ``{name: value}``. A value that the system does not tell is None.

    Args:
        device: the ``torch.device`` of the training.
        output_dir: the folder of the runs, which may not exist yet.
    """
    return {'python': platform.python_version(), 'system': f'{platform.system()} {platform.machine()}',
            'torch': torch.__version__, 'torch_cuda': torch.version.cuda, 'cudnn': read_cudnn_version(),
            'device': str(device), 'gpus': read_gpus(), 'driver': read_driver(),
            'nccl': read_nccl_version(), 'cpu': cpu_name(), 'cpu_bf16': cpu_has_bf16(), 'cores': core_count(),
            'cpu_limit': read_cpu_limit(), 'threads': torch.get_num_threads(), 'memory': physical_memory(),
            'available_memory': available_memory(), 'memory_limit': read_memory_limit(),
            'load': read_load(), 'shared_memory': read_free_bytes('/dev/shm'),
            'free_disk': read_free_bytes(existing_parent(output_dir)), 'open_files': read_open_file_limit()}


def check_environment(facts, workers=0, batch_bytes=0):
    """Judge what :func:`read_environment` returns.

    Args:
        facts: the description of the machine.
        workers: the number of data loader workers.
        batch_bytes: the bytes of a training batch.

    Returns:
        A list of :class:`~run_scripts.diagnosis.check.Check`.
    """
    return [check_python(facts), check_torch(facts), *check_gpus(facts), check_nccl(facts), check_cores(facts, workers),
            check_load(facts), check_memory(facts), check_shared_memory(facts, workers, batch_bytes),
            check_open_files(facts, workers)]


# -- read ------------------------------------------------------------------------------------------------------------

def read_gpus():
    """``[{'name', 'memory', 'free', 'capability', 'bf16'}, ...]`` of the GPUs that PyTorch sees."""
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        gpus.append({'name': properties.name, 'memory': total, 'free': free,
                     'capability': f'{properties.major}.{properties.minor}', 'bf16': has_bf16})
    return gpus


def read_driver():
    """``{'version', 'gpus'}`` as nvidia-smi prints them; None without nvidia-smi."""
    if not shutil.which('nvidia-smi'):
        return None
    command = ['nvidia-smi', '--query-gpu=driver_version,name', '--format=csv,noheader']
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {'error': f'nvidia-smi does not answer: {error}'}
    lines = [line.split(', ', 1) for line in answer.stdout.splitlines() if ', ' in line]
    if answer.returncode or not lines:
        reason = (answer.stdout + answer.stderr).strip().splitlines() or [f'exit status {answer.returncode}']
        return {'error': f'nvidia-smi fails: {reason[0]}'}
    return {'version': lines[0][0], 'gpus': [name for _, name in lines]}


def read_cudnn_version():
    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


def read_nccl_version():
    """The version of NCCL, such as '2.26.2'; None if PyTorch has no NCCL or sees no GPU."""
    if not (torch.cuda.is_available() and torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    return '.'.join(map(str, torch.cuda.nccl.version()))


def read_number(path):
    """The first number in a file of the kernel; None if there is none, such as 'max'."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(path, encoding='utf-8') as file:
        return int(file.read().split()[0])
    return None


def read_cpu_limit():
    """The cores that the container may use in the mean, such as 1.5; None without a limit."""
    with contextlib.suppress(OSError, ValueError), open('/sys/fs/cgroup/cpu.max', encoding='utf-8') as file:
        quota, period = map(int, file.read().split())
        return quota / period
    return None


def read_load():
    """The mean number of processes that computed or waited for a core in the last minute; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else None


def read_memory_limit():
    """The bytes that the container may use; None without a limit."""
    return read_number('/sys/fs/cgroup/memory.max')


def read_free_bytes(folder):
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def existing_parent(folder):
    """The nearest folder that exists, upwards from ``folder``."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def read_open_file_limit():
    """The number of files that a process may open; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# -- judge -----------------------------------------------------------------------------------------------------------

def parse_version(text):
    """The numbers at the start of a version.

    >>> parse_version('2.14.0a0+cu132')
    (2, 14)
    """
    return tuple(int(part) for part in text.split('.')[:2])


def check_python(facts):
    is_supported = parse_version(facts['python']) >= OLDEST_PYTHON
    advice = '' if is_supported else 'install Python 3.10 to 3.13'
    return Check('Python', OK if is_supported else FAILED, f"{facts['python']} on {facts['system']}", advice)


def check_torch(facts):
    build = f"built for CUDA {facts['torch_cuda']}" if facts['torch_cuda'] else 'built without CUDA'
    finding = f"{facts['torch']}, {build}"
    if parse_version(facts['torch']) < OLDEST_TORCH:
        return Check('PyTorch', FAILED, finding, 'install PyTorch 2.6 or later: pip install -r requirements.txt')
    driver = facts['driver']
    if driver and 'gpus' in driver and not facts['torch_cuda']:
        return Check('PyTorch', WARNING, f"{finding}, and the machine has {driver['gpus'][0]}",
                     'install a build of PyTorch for CUDA (pytorch.org, "Get started")')
    return Check('PyTorch', OK, finding)


def check_gpus(facts):
    """The checks 'driver' and 'GPU'."""
    driver, gpus, chosen = facts['driver'], facts['gpus'], torch.device(facts['device'])
    if driver and 'error' in driver:
        yield Check('driver', WARNING, driver['error'], 'restart the machine, or reinstall the driver')
    elif driver:
        yield Check('driver', OK, f"NVIDIA {driver['version']}")
    if not gpus:
        if driver and 'gpus' in driver and facts['torch_cuda']:
            yield Check('GPU', WARNING, f"nvidia-smi lists {driver['gpus'][0]}, and PyTorch sees no GPU",
                        f"the driver must support CUDA {facts['torch_cuda']}, and CUDA_VISIBLE_DEVICES must name a GPU")
        else:
            bf16 = 'multiplies in bf16 (--amp bf16)' if facts['cpu_bf16'] else 'computes in float32'
            yield Check('GPU', OK, f"none: the run uses the CPU, which {bf16}")
        return
    for index, gpu in enumerate(gpus):
        precision = 'bf16' if gpu['bf16'] else 'no bf16, so --amp auto is fp16'
        finding = (f"cuda:{index} {gpu['name']}, {format_bytes(gpu['memory'])}, capability {gpu['capability']}, "
                   f'{precision}')
        used = gpu['memory'] - gpu['free']
        is_chosen = chosen.type == 'cuda' and index == (chosen.index or 0)
        if is_chosen and used > 0.1 * gpu['memory']:
            yield Check('GPU', WARNING, f'{finding}; {format_bytes(used)} are in use',
                        'stop other programs on it (nvidia-smi lists them), or choose another --device')
        else:
            yield Check('GPU', OK, finding)
    if chosen.type == 'cpu':
        yield Check('device', WARNING, '--device cpu, and the machine has a GPU', 'leave out --device')


def check_nccl(facts):
    if len(facts['gpus']) > 1 and not facts['nccl']:
        return Check('NCCL', WARNING, 'PyTorch has no NCCL, and several GPUs need it',
                     'install a build of PyTorch with NCCL (on Linux)')
    return Check('NCCL', OK, facts['nccl'] or 'not needed: there is no GPU, several processes use gloo')


def check_cores(facts, workers):
    limit = facts['cpu_limit']
    finding = f"{facts['cores']} ({facts['cpu']}), of which PyTorch uses {facts['threads']}"
    if limit and limit < facts['cores']:
        return Check('cores', WARNING, f'{finding}; the container may use {limit:.1f} of them',
                     f'give the container more, or set --num_workers {max(int(limit), 1)}')
    if workers > facts['cores']:
        finding += f"; of --num_workers {workers}, {facts['cores']} start"
    return Check('cores', OK, finding)


def is_disturbed(facts):
    """Whether other programs used the cores before the measurement."""
    return facts['load'] is not None and facts['load'] > MAX_LOAD * facts['cores']


def check_load(facts):
    load = facts['load']
    if is_disturbed(facts):
        finding = f"{load:.1f} programs computed in the last minute, on {facts['cores']} cores"
        return Check('load', WARNING, finding,
                     'the measured times are too long: measure again on an idle machine')
    return Check('load', OK, 'no other program computes' if load is not None else 'the system does not report it')


def check_memory(facts):
    finding = f"{format_bytes(facts['available_memory'])} of {format_bytes(facts['memory'])} are free"
    limit = facts['memory_limit']
    if limit and limit < facts['memory']:
        finding += f'; the container may use {format_bytes(limit)}'
    return Check('memory', OK, finding)


def check_shared_memory(facts, workers, batch_bytes):
    if facts['shared_memory'] is None:
        return Check('/dev/shm', OK, 'the system has none')
    needed = min(workers, facts['cores']) * PREFETCHED_BATCHES * batch_bytes
    finding = f"{format_bytes(facts['shared_memory'])} are free, and the workers' batches need {format_bytes(needed)}"
    if needed > facts['shared_memory']:
        return Check('/dev/shm', FAILED, finding, 'docker run --shm-size 8g, or a lower --num_workers (0 needs none)')
    return Check('/dev/shm', OK, finding)


def check_open_files(facts, workers):
    limit = facts['open_files']
    if limit is None:
        return Check('open files', OK, 'the system has no limit')
    if 0 <= limit < MIN_OPEN_FILES and workers:
        return Check('open files', WARNING, f'at most {limit} per process', 'ulimit -n 4096 before the run')
    return Check('open files', OK, 'no limit per process' if limit < 0 or sys.maxsize <= limit else
                 f'at most {limit:,} per process')


def check_disk(free_bytes, checkpoint_bytes, output_dir):
    """Check that the checkpoints of a run fit on the disk.

    Args:
        free_bytes: the free bytes of the disk; None if unknown.
        checkpoint_bytes: the bytes of best.pth and of last.pth.
        output_dir: the folder of the runs.
    """
    best, last = checkpoint_bytes
    if free_bytes is None:
        return Check('disk', WARNING, f'the free bytes of {output_dir} are unknown')
    needed = best + 2 * last        # an old last.pth stays until the new one is complete
    finding = (f'{format_bytes(free_bytes)} are free in {output_dir}; a run needs {format_bytes(needed)} '
               f'(best.pth {format_bytes(best)}, last.pth {format_bytes(last)} twice while it is written)')
    if free_bytes < needed:
        return Check('disk', FAILED, finding, 'free some space, or choose another --output_dir')
    return Check('disk', OK, finding)

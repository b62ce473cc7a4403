"""Several processes of one run: ranks, collective operations on Python objects, and the device of each process."""
import contextlib
import datetime
import os
import threading
import time

import torch
import torch.distributed as dist

from utils.errors import UserError
from utils.failures import (FailureMonitor, PeerExitedError, ignore_signals, install_signal_handlers,
                            process_identity)
from utils.launcher import watch_launcher

START_TIMEOUT = datetime.timedelta(minutes=10)      # until all processes have started
COLLECTIVE_TIMEOUT = datetime.timedelta(hours=1)    # of one collective operation
POLL_INTERVAL = 0.2                                 # seconds between checks of the store

# State of the process group: 'store', 'torchrun_store', 'embedding_group' and 'failure_monitor'.
_state = {}


def get_rank():
    """Return the rank of this process, 0 if it is the only one."""
    return dist.get_rank() if _is_initialized() else 0


def get_world_size():
    """Return the number of processes."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main_process():
    """Whether this is rank 0, which writes logs and files."""
    return get_rank() == 0


def _is_initialized():
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def process_group():
    """Join the processes that torchrun started, for the duration of the ``with`` block.

    RANK and WORLD_SIZE in the environment say which process this is. Each process gets its own GPU if there are any.
    Without torchrun this does nothing.
    """
    watch_launcher()
    world_size = launched_world_size()
    if world_size == 1 or _is_initialized():
        yield
        return
    init_process_group(world_size)
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread:
        install_signal_handlers()
    try:
        yield
        if is_main_thread:
            ignore_signals()    # all work is done
        dist.barrier()      # a rank that exits early would close its connections
        failure_monitor().is_exiting.set()
    except BaseException as error:
        if is_main_thread:
            ignore_signals()
        exit_error = failure_monitor().exit_error(error)
        if exit_error is error:
            raise
        raise exit_error from None
    dist.destroy_process_group()    # not after an error, when other ranks may no longer answer
    _state.clear()


def launched_world_size():
    """Return the number of processes that torchrun started, from the environment."""
    world_size = os.environ.get('WORLD_SIZE', '1')
    if world_size == '1':
        return 1
    missing = [name for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT') if not os.environ.get(name)]
    if missing or not world_size.isdigit():
        lacks = f' but no {", ".join(missing)}' if missing else ''
        raise UserError(f'the environment has WORLD_SIZE={world_size}{lacks}: start several processes by torchrun '
                        '--nproc_per_node <GPUs> train.py ..., which sets all of these; for one process, unset '
                        'WORLD_SIZE')
    return int(world_size)


def init_process_group(world_size):
    """Connect this process to the others, at the address in the environment.

    Args:
        world_size: the number of processes.

    Raises:
        UserError: the other processes do not connect in time.
    """
    try:
        store, rank, world_size = next(dist.rendezvous('env://', timeout=START_TIMEOUT))
        # torchrun keeps the store if it restarts all processes because one has failed (--max_restarts)
        _state['torchrun_store'] = getattr(store, 'underlying_store', store)
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)
        store = _state['store'] = dist.PrefixStore(f'attempt {attempt}', store)
        has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
        if has_nccl and get_local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(get_local_rank())
        dist.init_process_group('cpu:gloo,cuda:nccl' if has_nccl else 'gloo', store=store, rank=rank,
                                world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    except (dist.DistError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(f'the {world_size} processes could not connect at {address} ({str(error).splitlines()[0]}); '
                        'check that torchrun runs on each machine, with the same --nnodes and '
                        '--rdzv_endpoint') from None
    _state['embedding_group'] = dist.new_group(timeout=COLLECTIVE_TIMEOUT)
    _state['failure_monitor'] = FailureMonitor(store, rank, all_gather_object(process_identity()))


def failure_monitor():
    """Return the :class:`~utils.failures.FailureMonitor` of the run, None if this is the only process."""
    return _state.get('failure_monitor')


def store_set(name, text):
    """Store ``text`` with torchrun, for the processes that it starts if one of these fails."""
    if get_world_size() > 1:
        _state['torchrun_store'].set(name, text)


def store_get(name):
    """Return the text that this run stored under ``name`` before torchrun restarted it, else None."""
    store = _state.get('torchrun_store')
    return store.get(name).decode() if store and store.check([name]) else None


def embedding_group():
    """Return the process group that exchanges the rows of a batch.

    The backward pass exchanges rows, and the default group averages the gradients of the parameters. With separate
    groups, no operation of one kind is matched with one of the other.
    """
    return _state['embedding_group']


def get_local_rank():
    """Return the rank of this process on its machine."""
    return int(os.environ.get('LOCAL_RANK', 0))


def get_local_world_size():
    """Return the number of processes on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if get_world_size() > 1 else 1


def synchronize():
    """Wait until all processes call this."""
    if get_world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def main_process_first(name):
    """Let rank 0 run the ``with`` block first, then all other ranks, which find its files on the disk.

    Args:
        name: identifies the block in the store.
    """
    while not is_main_process() and not _state['store'].check([name]):
        if failure_monitor().peer_exit_status() is not None:
            raise PeerExitedError
        time.sleep(POLL_INTERVAL)    # a wait in the store would not handle signals
    yield
    if get_world_size() > 1 and is_main_process():
        _state['store'].set(name, 'done')


@contextlib.contextmanager
def raise_on_all_ranks():
    """Raise a :class:`~utils.errors.UserError` of any rank on all ranks, at the end of the ``with`` block."""
    if get_world_size() == 1:
        yield
        return
    message = None
    try:
        yield
    except UserError as error:
        message = str(error)
    messages = list(filter(None, all_gather_object(message)))
    if messages:
        raise UserError(messages[0])


def run_on_main_process(compute):
    """Return the value of ``compute()`` of rank 0 on all ranks; the others wait meanwhile.

    The value must be picklable. A :class:`~utils.errors.UserError` is raised on all ranks.
    """
    with raise_on_all_ranks():
        value = compute() if is_main_process() else None
    return broadcast_object(value)


def broadcast_object(value, src=0):
    """Return the ``value`` of rank ``src``, a picklable object, on all ranks."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=src)
    return values[0]


def all_gather_object(value):
    """Return the ``value`` of every rank, a list by rank."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_max(number):
    """Return the largest integer of all ranks."""
    if get_world_size() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def pick_device(name):
    """Return the ``torch.device`` of ``--device``. Each of several processes on a machine gets its own GPU.

    Args:
        name: ``auto`` (``cuda`` if there is a GPU, else ``cpu``), ``cpu``, ``mps`` (an Apple GPU), ``cuda`` or
            ``cuda:<n>``.

    Raises:
        UserError: the device is unknown or not available.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ('cpu', 'mps', 'cuda') or (device.type != 'cuda' and device.index):
        raise UserError(f"unknown --device '{name}'; use auto, cpu, mps, cuda or cuda:<n>")
    if device.type == 'mps':
        check_mps(name)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {name}: PyTorch sees no GPU here; use --device cpu, or check the driver and the '
                        'PyTorch build')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0')
    if device.type == 'cuda' and get_world_size() > 1:
        return local_gpu(device)
    return device


def check_mps(name):
    """Raise :class:`UserError` if there is no Apple GPU, or if several processes would share it."""
    if not torch.backends.mps.is_available():
        raise UserError(f'--device {name}: PyTorch sees no Apple GPU here; use --device auto, cpu or cuda')
    if get_world_size() > 1:
        raise UserError(f'--device {name} is one GPU, and torchrun started {get_world_size()} processes; '
                        'start one: python train.py ...')


def local_gpu(device):
    """Return the GPU of this process, given the device ``cuda``."""
    if device.index is not None:
        raise UserError(f'--device {device} is one GPU, and torchrun started {get_world_size()} processes, each for '
                        'its own GPU: omit --device (CUDA_VISIBLE_DEVICES chooses the GPUs)')
    if get_local_rank() >= torch.cuda.device_count():
        raise UserError('torchrun started more processes on this machine than there are GPUs: '
                        f'use --nproc_per_node {torch.cuda.device_count()}')
    return torch.device('cuda', get_local_rank())

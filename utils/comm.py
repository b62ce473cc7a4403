"""Which process of a run this is: alone, or one of those that torchrun started."""
import contextlib
import datetime
import os
import threading
import time

import torch
import torch.distributed as dist

from utils.errors import UserError
from utils.launcher import watch_launcher
from utils.failures import LeftAlone, Parting, heed_signals, ignore_signals, place

MEETING = datetime.timedelta(minutes=10)   # how long a process waits for the others to start
PATIENCE = datetime.timedelta(hours=1)     # and in a step
WAIT = 0.2                                 # seconds between looks

_of = {}    # what the processes have of each other: 'store', 'torchrun', whose store it is, 'rows', a group, and 'parting'


def get_rank():
    """This process's number, 0 where it is alone."""
    return dist.get_rank() if _distributed() else 0


def get_world_size():
    """How many processes there are."""
    return dist.get_world_size() if _distributed() else 1


def is_main_process():
    """Whether this process speaks and writes for all."""
    return get_rank() == 0


def _distributed():
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def process_group():
    """``with process_group():`` this process is one of those that torchrun started (by its RANK and WORLD_SIZE), each with a GPU of its own
    where there are some. Without torchrun nothing happens."""
    watch_launcher()
    world = launched_world_size()
    if world == 1 or _distributed():
        yield
        return
    join(world)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        heed_signals()
    try:
        yield
        if in_main_thread:
            ignore_signals()    # all is done
        dist.barrier()      # nobody leaves, and with it its part of the connections, before all are through
        failure_monitor().leaves.set()
    except BaseException as error:
        if in_main_thread:
            ignore_signals()
        leaving = failure_monitor().after(error)
        if leaving is error:
            raise
        raise leaving from None
    dist.destroy_process_group()    # behind an error there is nobody to take leave of
    _of.clear()


def launched_world_size():
    """How many processes were started together: torchrun says so in the environment."""
    world = os.environ.get('WORLD_SIZE', '1')
    if world == '1':
        return 1
    missing = [name for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT') if not os.environ.get(name)]
    if missing or not world.isdigit():
        raise UserError(f"the environment has WORLD_SIZE={world}{' but no ' * bool(missing)}{', '.join(missing)}: start several processes "
                        'by torchrun --nproc_per_node <GPUs> train.py ..., which sets all of these; for one process, unset WORLD_SIZE')
    return int(world)


def join(world):
    """Meet the others, ``world`` processes in all, at the place that torchrun says. Raises :class:`UserError` where they don't come."""
    try:
        store, rank, world = next(dist.rendezvous('env://', timeout=MEETING))
        # torchrun keeps the store when it starts all again because one has failed (--max_restarts)
        _of['torchrun'] = getattr(store, 'underlying_store', store)
        store = _of['store'] = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if on_gpus and get_local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(get_local_rank())
        dist.init_process_group('cpu:gloo,cuda:nccl' if on_gpus else 'gloo', store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (dist.DistError, ValueError) as error:
        raise UserError(f"the {world} processes did not meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
                        f'({str(error).splitlines()[0]}); is torchrun running on each machine, with the same --nnodes and '
                        '--rdzv_endpoint?') from None
    _of['rows'] = dist.new_group(timeout=PATIENCE)
    _of['parting'] = Parting(store, rank, all_gather_object(place()))


def failure_monitor():
    """What the processes tell each other when they leave, a :class:`~utils.failures.Parting`; None where this one is alone."""
    return _of.get('parting')


def store_set(name, text):
    """Leave ``text`` with torchrun for the processes that it starts instead of these, should one fail."""
    if get_world_size() > 1:
        _of['torchrun'].set(name, text)


def store_get(name):
    """What an earlier process, which torchrun started by the same command, left under ``name``; else None."""
    store = _of.get('torchrun')
    return store.get(name).decode() if store and store.check([name]) else None


def embedding_group():
    """The processes as a group of their own, for the rows of a batch: what they exchange in the backward pass must not get between the
    parameters' gradients."""
    return _of['rows']


def get_local_rank():
    """This process's number on its machine."""
    return int(os.environ.get('LOCAL_RANK', 0))


def get_local_world_size():
    """How many of the processes are on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if get_world_size() > 1 else 1


def synchronize():
    """Wait until all processes are here."""
    if get_world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def main_process_first(what):
    """The first process does what follows, and then the others do: they find what it left on the disk. ``what`` names it."""
    while not is_main_process() and not _of['store'].check([what]):
        if failure_monitor().status() is not None:
            raise LeftAlone
        time.sleep(WAIT)    # and not in the store, where no signal would be heeded
    yield
    if get_world_size() > 1 and is_main_process():
        _of['store'].set(what, 'done')


@contextlib.contextmanager
def raise_on_all_ranks():
    """A :class:`~utils.errors.UserError` that a process meets inside is raised on all at the end, where they wait for each other."""
    if get_world_size() == 1:
        yield
        return
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    problems = list(filter(None, all_gather_object(problem)))
    if problems:
        raise UserError(problems[0])


def run_on_main_process(compute):
    """What ``compute()`` gives on the first process, any that pickles, on all; the others wait meanwhile. Its
    :class:`~utils.errors.UserError` is raised on all."""
    with raise_on_all_ranks():
        value = compute() if is_main_process() else None
    return broadcast_object(value)


def broadcast_object(value, src=0):
    """The ``value`` of rank ``src``, any object that pickles, on all ranks."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=src)
    return values[0]


def all_gather_object(value):
    """[every process's ``value``], by its number."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_max(number):
    """The largest of all processes' whole numbers."""
    if get_world_size() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def pick_device(name):
    """``auto``, ``cpu``, ``mps`` (an Apple GPU), ``cuda`` or ``cuda:<n>`` -> torch.device.

    ``auto`` is ``cuda`` if there is one, else ``cpu``. Each of several processes on a machine gets a GPU of its own.

    Raises:
        UserError: the device is unknown or isn't there.
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
        refuse_mps(name)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {name}: PyTorch sees no GPU here; use --device cpu, or check the driver and the PyTorch build')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0')
    if device.type == 'cuda' and get_world_size() > 1:
        return own_gpu(device)
    return device


def refuse_mps(name):
    """Raise :class:`UserError` if there is no Apple GPU, or if several processes would share it."""
    if not torch.backends.mps.is_available():
        raise UserError(f'--device {name}: PyTorch sees no Apple GPU here; use --device auto, cpu or cuda')
    if get_world_size() > 1:
        raise UserError(f'--device {name} is one GPU, and torchrun started {get_world_size()} processes; '
                        'start one: python train.py ...')


def own_gpu(device):
    """``cuda`` -> this process's GPU."""
    if device.index is not None:
        raise UserError(f'--device {device} is one GPU, and torchrun started {get_world_size()} processes, each for a GPU of its '
                        'own: leave --device out (CUDA_VISIBLE_DEVICES chooses the GPUs)')
    if get_local_rank() >= torch.cuda.device_count():
        raise UserError(f'torchrun started more processes on this machine than there are GPUs: '
                        f'--nproc_per_node {torch.cuda.device_count()}')
    return torch.device('cuda', get_local_rank())

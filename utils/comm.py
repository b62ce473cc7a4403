"""Which process of a run this is: alone, or one of those that torchrun started."""
import contextlib
import datetime
import os

import torch
import torch.distributed as dist

from utils.errors import UserError

PATIENCE = datetime.timedelta(hours=1)     # how long a process waits for the others in a step
LONG = datetime.timedelta(days=7)          # and for the first one to prepare something; torchrun ends those whose first is gone

_of = {}    # what the processes have of each other: 'store', and 'rows', a group


def get_rank():
    """This process's number, 0 where it is alone."""
    return dist.get_rank() if _distributed() else 0


def get_world_size():
    """How many processes there are."""
    return dist.get_world_size() if _distributed() else 1


def is_first():
    """Whether this process speaks and writes for all."""
    return get_rank() == 0


def _distributed():
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def joined():
    """``with joined():`` this process is one of those that torchrun started (by its RANK and WORLD_SIZE), each with a GPU of its own
    where there are some. Without torchrun nothing happens."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world == 1 or _distributed():
        yield
        return
    _of['store'], rank, world = next(dist.rendezvous('env://', timeout=PATIENCE))
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpus and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    dist.init_process_group('cpu:gloo,cuda:nccl' if on_gpus else 'gloo', store=_of['store'], rank=rank, world_size=world,
                            timeout=PATIENCE)
    _of['rows'] = dist.new_group(timeout=PATIENCE)
    yield
    dist.barrier()      # nobody leaves, and with it its part of the connections, before all are through
    dist.destroy_process_group()    # behind an error there is nobody to take leave of
    _of.clear()


def for_rows():
    """The processes as a group of their own, for the rows of a batch: what they exchange in the backward pass must not get between the
    parameters' gradients."""
    return _of['rows']


def local_rank():
    """This process's number on its machine."""
    return int(os.environ.get('LOCAL_RANK', 0))


def processes_here():
    """How many of the processes are on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if get_world_size() > 1 else 1


def synchronize():
    """Wait until all processes are here."""
    if get_world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def first_before_others(what):
    """The first process does what follows, and then the others do: they find what it left on the disk. ``what`` names it."""
    if not is_first():
        _of['store'].wait([what], LONG)
    yield
    if get_world_size() > 1 and is_first():
        _of['store'].set(what, 'done')


@contextlib.contextmanager
def one_for_all():
    """A :class:`~utils.errors.UserError` that a process meets inside is raised on all at the end, where they wait for each other."""
    if get_world_size() == 1:
        yield
        return
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    problems = list(filter(None, of_all(problem)))
    if problems:
        raise UserError(problems[0])


def by_first(compute):
    """What ``compute()`` gives on the first process, any that pickles, on all; the others wait meanwhile. Its
    :class:`~utils.errors.UserError` is raised on all."""
    with one_for_all():
        value = compute() if is_first() else None
    return from_process(0, value)


def from_process(number, value):
    """The ``value`` of the process with that number, any that pickles, on all."""
    if get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=number)
    return values[0]


def of_all(value):
    """[every process's ``value``], by its number."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def largest(number):
    """The largest of all processes' whole numbers."""
    if get_world_size() == 1:
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def pick_device(name):
    """``auto``, ``cpu``, ``cuda`` or ``cuda:<n>`` -> torch.device; a GPU that isn't there raises :class:`UserError`. Each of several
    processes on a machine gets a GPU of its own."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown --device '{name}'; use auto, cpu, cuda or cuda:<n>") from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {name}: PyTorch sees no GPU here; use --device cpu, or check the driver and the PyTorch build')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0')
    if device.type == 'cuda' and get_world_size() > 1:
        return own_gpu(device)
    return device


def own_gpu(device):
    if device.index is not None:
        raise UserError(f'--device {device} is one GPU, and torchrun started {get_world_size()} processes, each for a GPU of its '
                        'own: leave --device out (CUDA_VISIBLE_DEVICES chooses the GPUs)')
    if local_rank() >= torch.cuda.device_count():
        raise UserError(f'torchrun started more processes on this machine than there are GPUs: '
                        f'--nproc_per_node {torch.cuda.device_count()}')
    return torch.device('cuda', local_rank())

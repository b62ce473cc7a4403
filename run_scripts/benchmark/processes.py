"""One whole batch on several processes: what they gain, and what their exchange costs."""
import itertools
import os
import socket
import time

import torch
import torch.multiprocessing

from datasets.sampler import shard_slice
from processor.parallel import alone
from run_scripts.benchmark.machine import cores, wait_for
from run_scripts.benchmark.workload import Training, recipe, synthetic_batches
from utils import comm
from utils.batch_shard import WHOLE_BATCH, sync_batch_shards

WARM_UP = 2     # steps


def counts(setting):
    """How many processes are worth a row: 1, 2, 4, ... as many as there are GPUs; two on a CPU."""
    most = torch.cuda.device_count() if setting.on_gpu else min(cores(), 2)
    return [count for count in (1, 2, 4, 8, 16) if count <= most]


def measure_processes(count, together, setting):
    """A step's seconds on ``count`` processes that train ``together``, or each on its rows without knowing of the others; a process
    computes with one thread where there is no GPU."""
    answers = torch.multiprocessing.get_context('spawn').SimpleQueue()
    torch.multiprocessing.spawn(take_part, (count, free_port(), together, setting, answers), count)
    seconds = [answers.get() for _ in range(count)][0]
    return {'processes': count, 'seconds': seconds, 'samples': setting.batch_size * setting.steps}


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def take_part(rank, count, port, together, setting, answers):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_PORT=str(port),
                      MASTER_ADDR='127.0.0.1')
    if not setting.on_gpu:
        torch.set_num_threads(1)
    with comm.process_group():
        training = Training(recipe(setting, '--device', str(comm.pick_device('cuda' if setting.on_gpu else 'cpu'))))
        if not together:
            training.step.passes = alone
        batches = itertools.cycle([shared(batch, setting.batch_size) for batch in synthetic_batches(setting)])
        seconds = []
        for _ in range(WARM_UP + setting.repeats):
            comm.synchronize()
            began = time.perf_counter()
            for rows in itertools.islice(batches, setting.steps):
                training(*(sync_batch_shards(rows)[::-1] if together else (rows, WHOLE_BATCH)))
            wait_for(training.args.device)
            comm.synchronize()
            seconds.append(time.perf_counter() - began)
        answers.put(seconds[WARM_UP:])


def shared(batch, size):
    """This process's rows of a batch."""
    own = shard_slice(size, comm.get_rank(), comm.get_world_size())
    return {name: value[own] for name, value in batch.items()}

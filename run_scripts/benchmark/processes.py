"""Measure training steps of one batch on several processes."""
import itertools
import os
import socket
import time

import torch
import torch.multiprocessing

from datasets.sampler import shard_slice
from run_scripts.benchmark.workload import TrainingSteps, recipe_options, synthetic_batches
from utils import comm
from utils.batch_shard import WHOLE_BATCH, sync_batch_shards
from utils.machine import core_count, synchronize

WARM_UP = 2     # steps


def process_counts(setting):
    """The numbers of processes to measure: 1, 2, 4, ... up to the number of GPUs; at most 2 on a CPU."""
    limit = torch.cuda.device_count() if setting.on_gpu else min(core_count(), 2)
    return [count for count in (1, 2, 4, 8, 16) if count <= limit]


def measure_processes(count, is_distributed, setting):
    """Measure a training step on several processes. Without a GPU, each process computes with one thread.

    Args:
        count: the number of processes.
        is_distributed: whether they share a batch; otherwise each trains separately on its rows.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.
    """
    results = torch.multiprocessing.get_context('spawn').SimpleQueue()
    torch.multiprocessing.spawn(run_process, (count, find_free_port(), is_distributed, setting, results), count)
    seconds = [results.get() for _ in range(count)][0]
    return {'processes': count, 'seconds': seconds, 'samples': setting.batch_size * setting.steps}


def find_free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def run_process(rank, count, port, is_distributed, setting, results):
    """Train on one rank, and put the seconds of each repeat into a queue."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
                      MASTER_PORT=str(port), MASTER_ADDR='127.0.0.1')
    if not setting.on_gpu:
        torch.set_num_threads(1)
    with comm.process_group():
        device = comm.pick_device('cuda' if setting.on_gpu else 'cpu')
        training = TrainingSteps(recipe_options(setting, '--device', str(device)))
        if not is_distributed:
            training.step.wrapped_model = training.model
        batches = itertools.cycle([local_rows(batch, setting.batch_size) for batch in synthetic_batches(setting)])
        seconds = []
        for _ in range(WARM_UP + setting.repeats):
            comm.synchronize()
            start_time = time.perf_counter()
            for rows in itertools.islice(batches, setting.steps):
                if is_distributed:
                    shard, rows = sync_batch_shards(rows)
                    training(rows, shard)
                else:
                    training(rows, WHOLE_BATCH)
            synchronize(training.args.device)
            comm.synchronize()
            seconds.append(time.perf_counter() - start_time)
        results.put(seconds[WARM_UP:])


def local_rows(batch, size):
    """This rank's rows of a batch."""
    rows = shard_slice(size, comm.get_rank(), comm.get_world_size())
    return {name: value[rows] for name, value in batch.items()}

"""The local rows of a batch that is sharded across ranks, and collective operations on the global batch.

Shapes: ``b`` is the number of local rows, ``B`` the number of rows of the global batch.
"""
import contextlib

import torch
import torch.distributed as dist

from utils import comm
from utils.seeding import derive_seed

LOCAL_SEED_KEY = 2 ** 21    # part of the seeds of BatchShard.per_rank_rng; differs from the keys of other seeds


class WholeBatch:
    """A batch of one process: all rows are local."""
    rank, world_size, local_slice = 0, 1, slice(None)

    @staticmethod
    def all_gather(rows):
        """Gather the rows of all ranks, with gradient: [b, ...] -> [B, ...]."""
        return rows

    @staticmethod
    def local_rows(rows):
        """Select this rank's rows of the global batch: [B, ...] -> [b, ...].

        A rank with a placeholder row gets row 0.
        """
        return rows

    @staticmethod
    def global_size(rows):
        """Return B, given the local rows."""
        return len(rows)

    @staticmethod
    def all_gather_fields(batch):
        """Gather the fields of all ranks, without gradient: ``{name: [b, ...]}`` -> ``{name: [B, ...]}``."""
        return batch

    @staticmethod
    def all_reduce_sum(values):
        """Sum a tensor over all ranks, without gradient."""
        return values

    @staticmethod
    def micro_batch_size(batch):
        """Count the rows of a local (micro) batch, without a placeholder row."""
        return count_rows(batch)

    @staticmethod
    def per_rank_rng():
        """Seed PyTorch differently on each rank inside the ``with`` block, such as for dropout in local rows.

        After the block, the random state is the same on all ranks again.
        """
        return contextlib.nullcontext()


WHOLE_BATCH = WholeBatch()


class BatchShard(WholeBatch):
    """This rank's rows of a global batch that is sharded across ranks.

    Every rank computes a part of the loss, and the gradients of the parameters are summed over ranks. The rows that
    :meth:`all_gather` returns may therefore enter the loss of every rank: a row's gradient is the sum over the losses
    of all ranks.

    Args:
        counts: the number of rows of each rank. A rank with 0 rows has a placeholder row, which is never gathered.
    """

    def __init__(self, counts):
        self.rank, self.world_size, self.counts = comm.get_rank(), len(counts), counts
        self.per_rank_rng_count = 0
        start = sum(counts[:self.rank])
        self.local_slice = slice(start, start + counts[self.rank])

    def all_gather(self, rows):
        return AllGather.apply(rows, self) if rows.is_floating_point() else all_gather_any_dtype(rows, self)

    def local_rows(self, rows):
        return rows[self.local_slice] if self.counts[self.rank] else rows[:1]

    def global_size(self, rows):
        return sum(self.counts)

    def all_gather_fields(self, batch):
        """Gather all fields in one call, as bytes."""
        names = list(batch)
        matrices = [batch[name].contiguous().flatten(1) if batch[name].dim() > 1 else batch[name].contiguous()[:, None]
                    for name in names]
        byte_columns = [matrix.view(torch.uint8) for matrix in matrices]
        rows = torch.cat(byte_columns, dim=1)                                               # [b, bytes]
        gathered = all_gather_rows(rows, self).split([column.shape[1] for column in byte_columns], dim=1)
        # Copy: a view as another dtype needs an aligned start.
        aligned = [column.clone(memory_format=torch.contiguous_format).flatten() for column in gathered]
        return {name: column.view(batch[name].dtype).reshape(-1, *batch[name].shape[1:])
                for name, column in zip(names, aligned)}

    @staticmethod
    def all_reduce_sum(values):
        values = values.clone()
        dist.all_reduce(values, group=comm.embedding_group())
        return values

    def micro_batch_size(self, batch):
        return min(count_rows(batch), self.counts[self.rank])

    @contextlib.contextmanager
    def per_rank_rng(self):
        self.per_rank_rng_count += 1
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            seed = derive_seed(torch.initial_seed(), LOCAL_SEED_KEY, self.per_rank_rng_count, self.rank)
            torch.manual_seed(seed)
            yield


def all_gather_any_dtype(rows, shard):
    """Gather rows of any dtype without gradient, as bytes, because gloo does not support every dtype."""
    return shard.all_gather_fields({'': rows})['']


def all_gather_rows(rows, shard):
    """Gather rows without gradient: [b, ...] of each rank -> [B, ...]. The number of rows may differ between ranks."""
    largest = max(shard.counts)
    padded = rows.new_zeros((largest, *rows.shape[1:]))
    count = shard.counts[shard.rank]
    padded[:count] = rows[:count]
    gathered = [torch.empty_like(padded) for _ in shard.counts]
    dist.all_gather(gathered, padded, group=comm.embedding_group())
    return torch.cat([rows_of_rank[:count] for rows_of_rank, count in zip(gathered, shard.counts)])


class AllGather(torch.autograd.Function):
    """:func:`all_gather_rows` with a gradient: the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx, rows, shard):
        ctx.shard, ctx.count = shard, len(rows)
        return all_gather_any_dtype(rows, shard)

    @staticmethod
    def backward(ctx, gradient):
        total = BatchShard.all_reduce_sum(gradient.float().contiguous())      # in float32, for any gradient dtype
        local = total[ctx.shard.local_slice].to(gradient.dtype)
        placeholders = ctx.count - len(local)
        if placeholders:
            local = torch.cat([local, local.new_zeros((placeholders, *local.shape[1:]))])
        return local, None


def sync_batch_shards(batch):
    """Exchange the number of rows between all ranks.

    A rank has no rows if all its images are broken, or if the global batch has fewer rows than there are ranks. It
    then gets a placeholder row, a copy of another rank's first row, so that it takes part in every collective call.

    Args:
        batch: ``{name: [b, ...]}``, this rank's rows.

    Returns:
        ``(shard, batch)``: a :class:`BatchShard` (:data:`WHOLE_BATCH` on one process), and the local batch. ``shard``
        is None if no rank has rows.
    """
    if comm.get_world_size() == 1:
        return (WHOLE_BATCH if count_rows(batch) else None), batch
    count = torch.tensor([count_rows(batch)])
    counts = [torch.empty_like(count) for _ in range(comm.get_world_size())]
    dist.all_gather(counts, count)
    counts = torch.cat(counts).tolist()
    if not any(counts):
        return None, batch
    if not all(counts):
        source = next(rank for rank, count in enumerate(counts) if count)
        source_batch = comm.broadcast_object(batch, src=source)
        if not count_rows(batch):
            batch = {name: value if name.startswith('prompt_') else value[:1] for name, value in source_batch.items()}
    return BatchShard(counts), batch


def count_rows(batch):
    return len(batch.get('pids', ()))

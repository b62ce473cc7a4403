"""The rows of a batch that is sharded across ranks, and operations on the global batch.

Every rank computes the loss of the global batch. The operations below therefore have one rule for gradients: the
gradient of a result is summed over the losses of all ranks. DistributedDataParallel then averages the gradients of the
parameters over ranks, which gives the gradient of one process with the global batch.

Shapes: ``b`` is the number of local rows, ``B`` the number of rows of the global batch.
"""
import contextlib
import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist

from utils import comm
from utils.errors import UserError
from utils.seeding import derive_seed

LOCAL_SEED_KEY = 2 ** 21    # part of the seeds of BatchShard.per_rank_rng; differs from the keys of other seeds


class WholeBatch:
    """A batch that is not sharded, as with one process: all rows are local."""
    rank, world_size, local_slice = 0, 1, slice(0, None)

    @staticmethod
    def all_gather(rows):
        """Gather the rows of all ranks, with gradient: [b, ...] -> [B, ...]."""
        return rows

    @staticmethod
    def all_reduce_sum(values):
        """Sum a tensor over all ranks, with gradient."""
        return values

    @staticmethod
    def local_rows(rows):
        """Select this rank's rows of the global batch: [B, ...] -> [b, ...]."""
        return rows

    @staticmethod
    def global_size(rows):
        """Return B, given the local rows."""
        return len(rows)

    @staticmethod
    def local_size(batch):
        """Count the rows of a local (micro) batch, without a placeholder row."""
        return count_rows(batch)

    @staticmethod
    def global_batch(batch):
        """Return the fields of the global batch, given this rank's rows."""
        return batch

    @staticmethod
    def per_rank_rng(*keys):
        """Seed PyTorch differently on each rank inside the ``with`` block, such as for dropout in local rows.

        After the block, the random state is the same on all ranks again.

        Args:
            keys: numbers that tell this block from the others of the step; by default, the blocks are counted.
        """
        return contextlib.nullcontext()


WHOLE_BATCH = WholeBatch()


class BatchShard(WholeBatch):
    """This rank's rows of a global batch that is sharded across ranks.

    Args:
        counts: the number of rows of each rank. A rank with 0 rows has a placeholder row, which is never gathered.
    """

    def __init__(self, counts):
        self.rank, self.world_size, self.counts = comm.get_rank(), len(counts), counts
        self.per_rank_rng_count = 0
        start = sum(counts[:self.rank])
        self.local_slice = slice(start, start + counts[self.rank])

    def all_gather(self, rows):
        return AllGather.apply(rows, self) if rows.is_floating_point() else all_gather_rows(rows, self)

    @staticmethod
    def all_reduce_sum(values):
        return AllReduceSum.apply(values)

    def local_rows(self, rows):
        return rows[self.local_slice] if self.counts[self.rank] else rows[:1]      # row 0 for a placeholder row

    def global_size(self, rows):
        return sum(self.counts)

    def local_size(self, batch):
        return min(count_rows(batch), self.counts[self.rank])

    def global_batch(self, batch):
        return GlobalBatch(batch, self)

    @contextlib.contextmanager
    def per_rank_rng(self, *keys):
        if not keys:
            self.per_rank_rng_count += 1
            keys = LOCAL_SEED_KEY, self.per_rank_rng_count
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            # The trainer has seeded PyTorch for the step.
            torch.manual_seed(derive_seed(torch.initial_seed(), *keys, self.rank))
            yield


class GlobalBatch(Mapping):
    """The fields of a global batch that is sharded across ranks. A field is gathered when it is read.

    All ranks must read the same fields in the same order. Images are not gathered, because they are large. Fields that
    heads computed on the host (``host_...``) are left out, because they describe this rank's rows.

    Args:
        batch: ``{name: [b, ...]}``, this rank's rows.
        shard: the :class:`BatchShard` of these rows.
    """

    def __init__(self, batch, shard):
        self.local = {name: value for name, value in batch.items() if not name.startswith('host_')}
        self.shard, self.gathered = shard, {}
        self.reader, self.has_local_images = 'the head', False

    def for_head(self, description, has_local_images):
        """Return a view for a head.

        Args:
            description: the head's file and class, for the error message.
            has_local_images: whether the head gets this rank's images, because it gathers what it computes from them.
        """
        view = copy.copy(self)
        view.reader, view.has_local_images = description, has_local_images
        return view

    def __getitem__(self, name):
        rows = self.local[name]
        if is_shared_field(name) or is_image_field(name) and self.has_local_images:
            return rows
        if is_image_field(name):
            raise UserError(f"{self.reader} reads batch['{name}'], but each of several processes holds only its own "
                            'rows of it: call encoded.shard.all_gather on what the head computes from them, and add '
                            'UsesAllGather to the base classes of the head')
        if name not in self.gathered:
            self.gathered[name] = self.shard.all_gather(rows)
        return self.gathered[name]

    def __iter__(self):
        return iter(self.local)

    def __len__(self):
        return len(self.local)


def is_shared_field(name):
    """Whether a field belongs to the whole batch instead of to its samples. Every rank has all of it."""
    return name.startswith('prompt_')


def is_image_field(name):
    return name.endswith('images')


def all_gather_rows(rows, shard):
    """Gather rows without gradient: [b, ...] of each rank -> [B, ...].

    The number of rows may differ between ranks. Rows are sent as bytes, because gloo does not support every dtype.
    """
    count, size = shard.counts[shard.rank], rows[0].numel() * rows.element_size()
    padded = torch.zeros((max(shard.counts), size), dtype=torch.uint8, device=rows.device)      # [largest b, bytes]
    padded[:count] = rows[:count].contiguous().flatten().view(torch.uint8).reshape(count, size)
    gathered = [torch.empty_like(padded) for _ in shard.counts]
    dist.all_gather(gathered, padded, group=comm.embedding_group())
    all_rows = torch.cat([rows_of_rank[:count] for rows_of_rank, count in zip(gathered, shard.counts)])
    return all_rows.flatten().view(rows.dtype).reshape(-1, *rows.shape[1:])


class AllGather(torch.autograd.Function):
    """:func:`all_gather_rows` with a gradient: the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx, rows, shard):
        ctx.shard, ctx.count = shard, len(rows)
        return all_gather_rows(rows, shard)

    @staticmethod
    def backward(ctx, gradient):
        total = sum_over_ranks(gradient.float().contiguous())      # in float32, for any gradient dtype
        local = total[ctx.shard.local_slice].to(gradient.dtype)
        placeholders = ctx.count - len(local)
        if placeholders:
            local = torch.cat([local, local.new_zeros((placeholders, *local.shape[1:]))])
        return local, None


class AllReduceSum(torch.autograd.Function):
    """The sum over ranks, with a gradient: the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx, values):
        return sum_over_ranks(values)

    @staticmethod
    def backward(ctx, gradient):
        return sum_over_ranks(gradient.contiguous())


def sum_over_ranks(values):
    """Sum a tensor over all ranks, without gradient."""
    values = values.clone()
    dist.all_reduce(values, group=comm.embedding_group())
    return values


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
            batch = {name: value if is_shared_field(name) else value[:1] for name, value in source_batch.items()}
    return BatchShard(counts), batch


def count_rows(batch):
    return len(batch.get('pids', ()))

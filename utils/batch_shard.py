"""A batch that lies with several processes: its rows, and what each must know of the others'."""
import contextlib

import torch
import torch.distributed as dist

from utils import comm
from utils.seeding import derive_seed


class Alone:
    """The whole batch lies here."""
    rank, world, own = 0, 1, slice(None)

    @staticmethod
    def gather(rows):
        """The whole batch's rows, with gradient: [b, ...] -> [B, ...]."""
        return rows

    @staticmethod
    def mine(rows):
        """This process's of the whole batch's rows, of which a process that stands in gets the first: [B, ...] -> [b, ...]."""
        return rows

    @staticmethod
    def number_of(rows):
        """How many rows the whole batch has of which these are this process's."""
        return len(rows)

    @staticmethod
    def fields(batch):
        """The whole batch's ``{name: [B, ...]}`` of this process's ``{name: [b, ...]}``."""
        return batch

    @staticmethod
    def total(values):
        """The sum over all processes, without gradient."""
        return values

    @staticmethod
    def rows_in(piece):
        """How many rows of the batch a piece of it holds."""
        return rows_of(piece)

    @staticmethod
    def apart():
        """``with apart():`` what PyTorch draws is this process's own, such as dropout in its rows. Behind it all processes draw alike."""
        return contextlib.nullcontext()


ALONE = Alone()


class Peers(Alone):
    """Some rows of the batch lie here, those of ``own``, and the rest with the other processes.

    Every process computes its share of a loss, and the gradients that they give the parameters are summed. So what :meth:`gather` hands
    out may go into a loss on each process: the gradient of a row is what all processes' losses give it.

    Args:
        counts: how many rows each process has. Behind these, ``rows`` may hold stand-ins, which nobody sees.
    """

    def __init__(self, counts):
        self.rank, self.world, self.counts = comm.get_rank(), len(counts), counts
        self.times_apart = 0
        start = sum(counts[:self.rank])
        self.own = slice(start, start + counts[self.rank])

    def gather(self, rows):
        return Gather.apply(rows, self) if rows.is_floating_point() else as_bytes(rows, self)

    def mine(self, rows):
        return rows[self.own] if self.counts[self.rank] else rows[:1]

    def number_of(self, rows):
        return sum(self.counts)

    def fields(self, batch):
        """All fields travel together, as bytes."""
        names = list(batch)
        flat = [batch[name].contiguous().flatten(1) if batch[name].dim() > 1 else batch[name].contiguous()[:, None] for name in names]
        rows = torch.cat([values.view(torch.uint8) for values in flat], dim=1)                   # [b, bytes]
        columns = exchanged(rows, self).split([values.view(torch.uint8).shape[1] for values in flat], dim=1)
        # Copies, for numbers of another size must not begin anywhere.
        alone = [column.clone(memory_format=torch.contiguous_format).flatten() for column in columns]
        return {name: values.view(batch[name].dtype).reshape(-1, *batch[name].shape[1:]) for name, values in zip(names, alone)}

    @staticmethod
    def total(values):
        values = values.clone()
        dist.all_reduce(values, group=comm.embedding_group())
        return values

    def rows_in(self, piece):
        return min(rows_of(piece), self.counts[self.rank])    # none of a stand-in

    @contextlib.contextmanager
    def apart(self):
        self.times_apart += 1
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed(derive_seed(torch.initial_seed(), APART, self.times_apart, self.rank))
            yield


APART = 2 ** 21     # in the seeds of what processes draw apart


def as_bytes(rows, peers):
    """:func:`exchanged` of any kind of number."""
    return peers.fields({'': rows})['']


def exchanged(rows, peers):
    """[b, ...] of each process -> [B, ...] of all, without gradient; processes may have different numbers of rows."""
    most = max(peers.counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    count = peers.counts[peers.rank]
    padded[:count] = rows[:count]
    found = [torch.empty_like(padded) for _ in peers.counts]
    dist.all_gather(found, padded, group=comm.embedding_group())
    return torch.cat([part[:count] for part, count in zip(found, peers.counts)])


class Gather(torch.autograd.Function):
    """:func:`exchanged`, whose gradient is the sum of all processes'."""

    @staticmethod
    def forward(ctx, rows, peers):
        ctx.peers, ctx.count = peers, len(rows)
        return as_bytes(rows, peers)

    @staticmethod
    def backward(ctx, gradient):
        own = Peers.total(gradient.float().contiguous())[ctx.peers.own].to(gradient.dtype)   # summed in float32, whatever is trained in
        stand_ins = ctx.count - len(own)
        return torch.cat([own, own.new_zeros((stand_ins, *own.shape[1:]))]) if stand_ins else own, None


def meet(batch):
    """Every process's batch of a step comes together: ``(peers, this process's batch)``.

    A process without rows, whose images are broken or whose batch is smaller than there are processes, gets a stand-in, a copy of
    another's first row, so that it takes part. Where nobody has rows, ``peers`` is None.
    """
    if comm.get_world_size() == 1:
        return (ALONE if rows_of(batch) else None), batch
    told = torch.tensor([rows_of(batch)])
    found = [torch.empty_like(told) for _ in range(comm.get_world_size())]
    dist.all_gather(found, told)
    counts = torch.cat(found).tolist()
    if not any(counts):
        return None, batch
    if not all(counts):
        giver = next(rank for rank, count in enumerate(counts) if count)
        found = comm.broadcast_object(batch, src=giver)
        batch = batch if rows_of(batch) else {name: value if name.startswith('prompt_') else value[:1] for name, value in found.items()}
    return Peers(counts), batch


def rows_of(batch):
    return len(batch.get('pids', ()))

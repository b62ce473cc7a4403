"""Values of the training pairs that live over epochs (:class:`~model.heads.HasPairState`)."""
import torch
import torch.distributed as dist

from datasets.sampler import shard_slice
from model.heads import HasPairState, describe_head
from utils import comm
from utils.errors import UserError


class PairStates:
    """The values that heads keep for each training pair: a table with a row for each pair, under each name.

    The main memory holds the tables. The values of a step are written into them at the next step, so that a GPU can
    compute meanwhile. Data loader workers never read a table, so their number and timing change nothing.

    Args:
        model: the model. One of a user's own script may lack ``heads``.
        pair_count: the number n of training pairs.

    Attributes:
        tables: ``{name: [n', width]}``, the rows of this rank. Each rank has an equal part of the pairs.

    Raises:
        UserError: two heads keep values under one name.
    """

    def __init__(self, model, pair_count):
        self.pair_count, self.tables, self.new_values = pair_count, {}, None
        self.local_pairs = self.pairs_of_rank(comm.get_rank())
        for head in getattr(model, 'heads', ()):
            for name, state in head.pair_states.items() if isinstance(head, HasPairState) else ():
                if name in self.tables:
                    raise UserError(f"{describe_head(head)} keeps '{name}' for each pair, and so does another head: "
                                    'rename it in one of them')
                count = self.local_pairs.stop - self.local_pairs.start
                self.tables[name] = torch.full((count, state.width), state.start, dtype=getattr(torch, state.dtype))

    def pairs_of_rank(self, rank):
        """The slice of the pairs whose rows a rank holds."""
        return shard_slice(self.pair_count, rank, comm.get_world_size())

    def add_values(self, batch, shard):
        """Return a batch with the values of its pairs: fields of float32 [b, width].

        Args:
            batch: this rank's rows of a loader's batch, on the CPU.
            shard: where these rows are in the global batch (:mod:`utils.batch_shard`).
        """
        if not self.tables:
            return batch
        self.write_new_values()
        pairs = shard.all_gather(batch['index'])                                            # [B]
        is_local, rows = self.find_local_rows(pairs)
        values = {}
        for name, table in self.tables.items():
            found = torch.zeros(len(pairs), table.shape[1], dtype=torch.float32)
            found[is_local] = table[rows].to(torch.float32)
            values[name] = shard.local_rows(shard.all_reduce_sum(found))                    # [b, width]
        return {**batch, **values}

    def find_local_rows(self, pairs):
        """Find the pairs whose rows this rank holds: ``(bool [B], their rows)``."""
        is_local = (pairs >= self.local_pairs.start) & (pairs < self.local_pairs.stop)
        return is_local, pairs[is_local] - self.local_pairs.start

    def store(self, batch, values, shard):
        """Store the new values of a batch's pairs.

        Args:
            batch: see :meth:`add_values`.
            values: ``{name: [b, width]}`` on the device, of this rank's rows.
            shard: see :meth:`add_values`.
        """
        if self.tables:
            gathered = {name: shard.all_gather(values[name].detach()) for name in self.tables}     # [B, width]
            self.new_values = shard.all_gather(batch['index']), gathered

    def write_new_values(self):
        """Write the values of the latest step into the tables. This waits until the device has computed them."""
        if self.new_values is None:
            return
        pairs, values = self.new_values
        is_local, rows = self.find_local_rows(pairs)
        for name, table in self.tables.items():
            # In NumPy the last of several equal rows counts; in PyTorch any of them may.
            table.numpy()[rows.numpy()] = values[name].cpu()[is_local].to(table.dtype).numpy()
        self.new_values = None

    def state_dict(self):
        """Return the tables of all ranks, ``{name: [n, width]}``, on the main process; None instead on the others.

        All ranks must call it.
        """
        self.write_new_values()
        return {name: self.gather_on_main_process(table) for name, table in self.tables.items()}

    def gather_on_main_process(self, table):
        if not comm.is_main_process():
            dist.send(as_bytes(table), 0)
            return None
        parts = [table]
        for rank in range(1, comm.get_world_size()):
            pairs = self.pairs_of_rank(rank)
            parts.append(table.new_empty(pairs.stop - pairs.start, table.shape[1]))
            dist.recv(as_bytes(parts[-1]), rank)
        return torch.cat(parts) if len(parts) > 1 else table

    def load_state_dict(self, tables):
        """Load the tables of :meth:`state_dict`, which any number of processes can have saved.

        Raises:
            UserError: a table is missing or has another shape.
        """
        for name, table in self.tables.items():
            shape = [self.pair_count, table.shape[1]]
            if name not in tables:
                raise UserError(f"the checkpoint has no '{name}' of the training pairs, which another program or "
                                'version wrote: start a new run from its weights with --init_from')
            if list(tables[name].shape) != shape:
                raise UserError(f"the checkpoint's '{name}' of the training pairs has the shape "
                                f'{list(tables[name].shape)} and must have {shape}: resume with the dataset of the run')
            table.copy_(tables[name][self.local_pairs])


def as_bytes(table):
    """View a table as bytes, because gloo does not send every dtype."""
    return table.view(torch.uint8)

"""Heads that gather what they compare from all processes."""


class UsesAllGather:
    """A head that gathers the rows that it needs from other ranks with ``encoded.shard``.

    It trains on several processes. Its results are those of the global batch, equal on all ranks. A head that returns
    only the part of its own rows overrides :meth:`micro_batch_weight`.

    All ranks draw the same random numbers, except in ``with encoded.shard.per_rank_rng():``.
    """

    def micro_batch_weight(self, micro_batch, batch):
        """Factor of this rank's results. The sum over ranks is then the result of the global batch.

        The arguments are those of :meth:`model.heads.TrainsInMicroBatches.micro_batch_weight`. The default, the
        fraction of the batch's samples, fits results that are equal on all ranks.
        """
        return len(micro_batch['pids']) / len(batch['pids'])

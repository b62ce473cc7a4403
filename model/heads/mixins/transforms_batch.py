"""Heads that change a batch before the encoders read it."""


class TransformsBatch:
    """A head that changes batches on their device, such as AGM's masking of captions in place."""

    def transform_batch(self, batch, model, shard):
        """Change a batch.

        Args:
            batch: {field: tensor} of all local rows, also with ``--micro_batch``.
            model: the :class:`~model.build.RetrievalModel`.
            shard: the ranks that hold the other rows (:mod:`utils.batch_shard`).

        Returns:
            The new batch.
        """
        raise NotImplementedError

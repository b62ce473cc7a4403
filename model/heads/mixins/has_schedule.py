"""Heads whose loss depends on the progress of the training."""


class HasSchedule:
    """A head with a value that follows a schedule, such as the weight of the soft targets of TBPS-CLIP."""

    def before_step(self, epoch, step, steps):
        """Set the value for step ``step`` of ``steps`` in epoch ``epoch``. Both count from 1.

        A step is one batch, also with ``--accumulate``.
        """
        raise NotImplementedError

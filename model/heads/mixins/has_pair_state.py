"""Heads with values of each training pair that live over epochs."""
from typing import NamedTuple


class PairState(NamedTuple):
    """Shape and start of the values that a head keeps for each training pair.

    Attributes:
        width: the number of values of a pair.
        start: the values before the pair's first step.
        dtype: the name of PyTorch's dtype in memory and in ``last.pth``. Batches have float32.
    """
    width: int
    start: float = 0.0
    dtype: str = 'float32'


class HasPairState:
    """A head that keeps values for each training pair over epochs, such as GA-DMS's saliency of words.

    Before each step, the training loop adds the values of the batch's pairs as ``batch[name]``, float32 [b, width].
    Data loader workers prepare batches in advance, so samples do not have them. Without a training loop, the model adds
    the start values.

    Each process holds a part of the pairs in its memory. ``last.pth`` holds the values of all pairs, and a resumed run
    continues with them. ``best.pth`` excludes them. ``--micro_batch`` refuses the head.

    Attributes:
        pair_states: {name: :class:`PairState`}, set here or in ``__init__``.
    """

    pair_states = {}

    def update_pair_state(self, encoded, batch):
        """Compute the new values of a batch's pairs, without gradient, before the losses.

        Batches read the new values from the next step on. If a batch has a pair twice, its last row counts.

        Args:
            encoded: the :class:`~model.encoded_batch.EncodedBatch` of this rank's rows.
            batch: {field: tensor} of this rank's rows.

        Returns:
            {name: [b, width]} with each name of ``pair_states``.
        """
        raise NotImplementedError

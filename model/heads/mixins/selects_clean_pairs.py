"""Heads that select the clean training pairs."""


class SelectsCleanPairs:
    """A head that selects the training pairs of each epoch, such as RDE's confident consensus division.

    A model has at most one. Batches of the epoch hold the selection as ``batch['clean']``.
    """

    def select_clean_pairs(self, losses, tie_breakers):
        """Compute the weight of each of the n training pairs in the coming epoch.

        Args:
            losses: {name: [n]}, the ``pair_losses`` of all heads, from one pass in evaluation mode; 0 for pairs that
                the pass skipped.
            tie_breakers: [n] of 0 and 1, drawn from the seed and the epoch.

        Returns:
            float [n] on the CPU.
        """
        raise NotImplementedError

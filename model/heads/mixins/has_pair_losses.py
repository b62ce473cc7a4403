"""Heads with a loss for each training pair."""


class HasPairLosses:
    """A head that knows the loss of each pair, from which a :class:`~model.heads.SelectsCleanPairs` selects pairs."""

    def pair_losses(self, encoded, batch):
        """Compute the losses of single pairs: {name: [B]}.

        With several processes, ``encoded`` has no tokens here.
        """
        raise NotImplementedError

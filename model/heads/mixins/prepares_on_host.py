"""Heads that compute tensors while the batch is on the CPU."""


class PreparesOnHost:
    """A head that adds tensors to a batch on the CPU, such as the positions of masked words.

    Computing them in ``forward`` would make the host wait for the GPU. ``forward`` must compute them if they are
    missing, because other training loops may not call :meth:`prepare_on_host`.
    """

    def prepare_on_host(self, batch):
        """Compute the tensors to add to a batch: {'host_...': tensor}. Their names begin with ``host_``."""
        raise NotImplementedError

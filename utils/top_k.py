"""The rows of a large matrix that are most like some queries: exactly, block by block, so that the matrix may lie on the disk."""
import torch

from utils.errors import UserError
from utils.ranking import full_precision

BLOCK = 1 << 16   # rows that are compared at a time: 128 MiB at 512 numbers each


def nearest(queries, vectors, top, block=BLOCK):
    """The ``top`` rows of ``vectors`` with the largest inner products.

    Args:
        queries: [Q, D] float32.
        vectors: [N, D] float32 array, such as a ``numpy.memmap``; a block of it at a time is read.
        top: how many; no more than N are returned.
        block: rows of a block.

    Returns:
        (inner products [Q, top], rows [Q, top]), the largest first. Of embeddings of length 1 these are cosine similarities.

    Raises:
        UserError: a number is NaN or infinite.

    >>> import numpy as np
    >>> nearest(torch.tensor([[1., 0.]]), np.array([[0., 1.], [1., 0.], [0.6, 0.8]], 'float32'), top=2)
    (tensor([[1.0000, 0.6000]]), tensor([[1, 2]]))
    """
    scores, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(vectors), block):
        with full_precision():
            found = queries @ torch.as_tensor(vectors[start:start + block]).t()                    # [Q, block]
        if not found.isfinite().all():
            raise UserError('embeddings are NaN or infinite: the model or its index is broken, and nothing is ranked')
        best, places = found.topk(min(top, found.shape[1]))
        scores, rows = torch.cat([scores, best], dim=1), torch.cat([rows, places + start], dim=1)
        scores, kept = scores.topk(min(top, scores.shape[1]))
        rows = rows.gather(1, kept)
    return scores, rows

"""Exact search for the rows of a large matrix that are most similar to queries. The matrix may be on the disk."""
import torch

from utils.errors import UserError
from utils.ranking import full_precision

BLOCK = 1 << 16   # rows to compare at a time: 128 MiB at 512 numbers each


def top_k(queries, vectors, k, block=BLOCK):
    """Find the ``k`` rows of ``vectors`` with the largest inner products.

    For embeddings of length 1, these are cosine similarities.

    Args:
        queries: [Q, D] float32.
        vectors: [N, D] float32 array, such as a ``numpy.memmap``. It is read block by block.
        k: number of rows to return; at most N are returned.
        block: number of rows of a block.

    Returns:
        ``(scores [Q, k], rows [Q, k])``: inner products and row numbers, in descending order of the scores.

    Raises:
        UserError: a number is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> top_k(torch.tensor([[1., 0.]]), np.array([[0., 1.], [1., 0.], [0.6, 0.8]], 'float32'), k=2)
        (tensor([[1.0000, 0.6000]]), tensor([[1, 2]]))
    """
    scores, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(vectors), block):
        with full_precision():
            similarity = queries @ torch.as_tensor(vectors[start:start + block]).t()               # [Q, block]
        if not similarity.isfinite().all():
            raise UserError('embeddings are NaN or infinite: the model or its index is broken, and nothing is ranked')
        block_scores, block_rows = similarity.topk(min(k, similarity.shape[1]))
        scores = torch.cat([scores, block_scores], dim=1)
        rows = torch.cat([rows, block_rows + start], dim=1)
        scores, order = scores.topk(min(k, scores.shape[1]))
        rows = rows.gather(1, order)
    return scores, rows

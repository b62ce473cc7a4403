"""Queues: embeddings of earlier batches, as further negatives. The newest embeddings replace the oldest.

On several processes all queues stay equal, because every process appends the rows of all processes.
"""
import torch
import torch.nn.functional as F
from torch import nn

from model.heads import HasTrainingOnlyParts
from utils.batch_shard import WHOLE_BATCH

NO_IDENTITY = -100    # id of the random embeddings with which a queue starts; no sample has it


class EmbeddingQueue(nn.Module):
    """The newest embeddings of each side, newest batch first (MoCo: He et al., CVPR 2020).

    Args:
        size: Q, the number of embeddings of each side.
        width: D, the width of an embedding.

    Attributes:
        images: float [Q, D], of length 1; random directions at the start.
        texts: the same for captions.
    """

    def __init__(self, size, width):
        super().__init__()
        self.register_buffer('images', F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer('texts', F.normalize(torch.randn(size, width), dim=1))

    @torch.no_grad()
    def append(self, images, texts, shard=WHOLE_BATCH):
        """Append the embeddings of a batch, and drop the oldest.

        Args:
            images: [B, D], of the global batch; if ``shard`` is given, this process's rows.
            texts: the same for captions.
            shard: ``encoded.shard``, to gather the rows of all processes.
        """
        for queue, rows in ((self.images, images), (self.texts, texts)):
            queue.copy_(torch.cat([shard.all_gather(rows), queue])[:len(queue)])


class IdentityQueue(HasTrainingOnlyParts, nn.Module):
    """The newest embeddings of each side with their identities, in a ring (ALBEF: Li et al., NeurIPS 2021; RaSa).

    Buffers have ALBEF's names and layout. With ``self.queue = model.shared(IdentityQueue, size, width)`` they have
    these names in checkpoints, and ``best.pth`` excludes them. As a part of the head, ``self.queue =
    IdentityQueue(size, width)``, their names begin with ``queue.``, and the head lists it in its training_only_parts.

    Args:
        size: Q, the number of embeddings of each side.
        width: D, the width of an embedding.

    Attributes:
        image_queue: float [D, Q], of length 1; random directions at the start.
        text_queue: the same for captions.
        idx_queue: int64 [1, Q], the identities; -100 at the start.
        queue_ptr: int64 [1], the column of the next sample.

    Example:
        >>> queue = IdentityQueue(size=3, width=2)
        >>> queue.append(torch.eye(2), torch.eye(2), torch.tensor([7, 8]))
        >>> queue.idx_queue, queue.queue_ptr
        (tensor([[   7,    8, -100]]), tensor([2]))
        >>> queue.append(torch.eye(2), torch.eye(2), torch.tensor([9, 5]))
        >>> queue.idx_queue, queue.queue_ptr
        (tensor([[5, 8, 9]]), tensor([1]))
    """
    training_only_parts = ('image_queue', 'text_queue', 'idx_queue', 'queue_ptr')

    def __init__(self, size, width):
        super().__init__()
        self.register_buffer('image_queue', F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer('text_queue', F.normalize(torch.randn(width, size), dim=0))
        self.register_buffer('idx_queue', torch.full((1, size), NO_IDENTITY))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def append(self, images, texts, pids, shard=WHOLE_BATCH):
        """Write a batch at the pointer, and continue at the first column after the last one.

        Args:
            images: [B, D], of the global batch; if ``shard`` is given, this process's rows.
            texts: the same for captions.
            pids: [B] identities of the same rows.
            shard: ``encoded.shard``, to gather the rows of all processes.
        """
        size = self.idx_queue.shape[1]
        images, texts, pids = (shard.all_gather(rows) for rows in (images, texts, pids))
        count = len(pids)
        columns = (self.queue_ptr + torch.arange(count, device=pids.device)) % size
        columns = columns[-size:]                    # a batch that is larger than the queue writes its last rows
        for queue, rows in ((self.image_queue, images), (self.text_queue, texts), (self.idx_queue, pids[:, None])):
            queue[:, columns] = rows[-size:].t().to(queue.dtype)
        self.queue_ptr.add_(count).remainder_(size)

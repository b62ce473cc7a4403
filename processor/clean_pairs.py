"""Which training pairs count in an epoch: heads that divide them look at every pair's loss before it begins."""
import logging

import torch

from model.build import Encoded
from processor.progress import Bar
from processor.step import in_pieces
from utils import comm
from utils.batch_shard import WHOLE_BATCH, sync_batch_shards
from utils.seeding import derive_seed, seed_all

logger = logging.getLogger('Pedestal.train')

APART = 2 ** 20   # added to an epoch's number: the draws of its division are others than those of its steps


class Division:
    """The division of an epoch's training pairs, for a model with a head that makes one (:attr:`~model.heads.Head.select_clean_pairs`).

    ``clean`` is float [n], each pair's part in the epoch's losses; None before the first division, and without such a head.
    """

    def __init__(self, model, loader, seed):
        self.model, self.loader, self.seed, self.clean = model, loader, seed, None
        self.head = next((head for head in getattr(model, 'heads', ()) if head.select_clean_pairs is not None), None)

    def begin(self, epoch, epochs, stop_between=lambda: None):
        """Divide the pairs for an epoch. ``stop_between`` is called between batches, and may raise.

        The loader is passed with the epoch's own shuffle and augmentations (others than the training's), and the model is in
        evaluation mode, without gradients.
        """
        if self.head is None:
            return
        losses = self.all_pairs(epoch, epochs, stop_between)
        coins = torch.randint(2, (len(self.loader.dataset),), generator=torch.Generator().manual_seed(derive_seed(self.seed, epoch, APART)))
        self.clean = comm.broadcast_object(self.head.select_clean_pairs(losses, coins))     # one division, whatever machines round
        logger.info('epoch %d: %d of %d training pairs count as clean', epoch, int(self.clean.sum()), len(self.clean))

    def all_pairs(self, epoch, epochs, stop_between):
        """{name: [n]}: the loss of each training pair; one that the pass doesn't draw keeps 0, one drawn twice its last."""
        if hasattr(self.loader.batch_sampler, 'set_epoch'):
            self.loader.batch_sampler.set_epoch(epoch + APART)
        losses, was_training = {}, self.model.training
        bar = Bar(epoch, epochs, len(self.loader), what='dividing pairs')
        self.model.eval()
        try:
            for step, batch in enumerate(self.loader, 1):
                batch.pop('skipped', None)
                shard, batch = sync_batch_shards(batch)
                if shard:
                    seed_all(derive_seed(self.seed, epoch, APART, step))
                    for name, values in pair_losses(self.model, batch, shard).items():
                        losses.setdefault(name, torch.zeros(len(self.loader.dataset)))[shard.all_gather(batch['index'])] = values.cpu()
                bar.advance(shard.global_size(batch['pids']) if shard else 0)
                stop_between()
        finally:
            self.model.train(was_training)
            bar.close()
        return losses

    def mark(self, batch):
        """The batch with what each of its pairs counts."""
        return batch if self.clean is None else {**batch, 'clean': self.clean[batch['index']]}


@torch.no_grad()
def pair_losses(model, batch, shard=WHOLE_BATCH):
    """{name: float32 [B]}: the heads' losses of each pair of a batch, of which the loader gave this process its rows. With several
    processes heads see the embeddings of the whole batch, and no tokens."""
    whole, (own,) = in_pieces(model, batch, None, shard)
    with model.autocast():
        encoded = model.encode(own)
        if shard is not WHOLE_BATCH:
            added = {name: tuple(map(shard.all_gather, both)) for name, both in encoded.added.items()}
            encoded = Encoded(image=shard.all_gather(encoded.image), text=shard.all_gather(encoded.text), added=added)
        return {name: losses.float() for head in model.heads for name, losses in head.pair_losses(encoded, whole).items()}

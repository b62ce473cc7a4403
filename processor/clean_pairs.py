"""Select the clean training pairs before each epoch, from per-pair losses."""
import logging

import torch

from model.encoded_batch import EncodedBatch
from model.heads import HasPairLosses, SelectsCleanPairs
from processor.pair_states import PairStates
from processor.progress import ProgressBar, format_log_line
from processor.step import augment, to_device, trim_and_broadcast
from utils import comm
from utils.batch_shard import WHOLE_BATCH, sync_batch_shards
from utils.seeding import derive_seed, seed_all

logger = logging.getLogger('Pedestal.train')

SEED_KEY = 2 ** 20   # added to the epoch, so that this pass has other random numbers than the training steps


class CleanPairs:
    """Weights of the training pairs, if a head selects clean pairs (:class:`~model.heads.SelectsCleanPairs`).

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        loader: the loader of training batches.
        seed: the seed of the run.
        pair_states: the :class:`~processor.pair_states.PairStates` of the run; None without a training loop.

    Attributes:
        weights: float [n], the weight of each pair in the losses of the epoch. None before the first selection, and
            without such a head.
    """

    def __init__(self, model, loader, seed, pair_states=None):
        self.model, self.loader, self.seed, self.weights = model, loader, seed, None
        self.pair_states = pair_states or PairStates(model, len(loader.dataset))
        heads = getattr(model, 'heads', ())
        self.head = next((head for head in heads if isinstance(head, SelectsCleanPairs)), None)

    def select(self, epoch, epochs, check_interrupt=lambda: None):
        """Select the clean pairs for an epoch.

        All training batches pass through the model in evaluation mode, without gradients. Shuffling and augmentations
        differ from those of the training.

        Args:
            epoch: the epoch, from 1.
            epochs: the number of epochs.
            check_interrupt: a function that is called after each batch and may raise.
        """
        if self.head is None:
            return
        losses = self.compute_losses(epoch, epochs, check_interrupt)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, SEED_KEY))
        tie_breakers = torch.randint(2, (len(self.loader.dataset),), generator=generator)
        # Broadcast, because ranks on different machines may round differently.
        self.weights = comm.broadcast_object(self.head.select_clean_pairs(losses, tie_breakers))
        clean = f'{int(self.weights.sum())} of {len(self.weights)} training pairs are clean'
        logger.info(format_log_line(f'epoch {epoch}', clean))

    def compute_losses(self, epoch, epochs, check_interrupt):
        """Compute ``{name: [n]}``, the losses of each training pair.

        A pair that is not sampled has a loss of 0. A pair that is sampled twice has the later loss.
        """
        if hasattr(self.loader.batch_sampler, 'set_epoch'):
            self.loader.batch_sampler.set_epoch(epoch + SEED_KEY)
        losses, was_training = {}, self.model.training
        bar = ProgressBar(epoch, epochs, len(self.loader), title='selecting clean pairs')
        self.model.eval()
        try:
            for step, batch in enumerate(self.loader, 1):
                batch.pop('skipped', None)
                shard, batch = sync_batch_shards(batch)
                if shard:
                    seed_all(derive_seed(self.seed, epoch, SEED_KEY, step))
                    indices = shard.all_gather(batch['index'])
                    batch = self.pair_states.add_values(batch, shard)
                    for name, values in compute_pair_losses(self.model, batch, shard).items():
                        losses.setdefault(name, torch.zeros(len(self.loader.dataset)))[indices] = values.cpu()
                bar.update(shard.global_size(batch['pids']) if shard else 0)
                check_interrupt()
        finally:
            self.model.train(was_training)
            bar.close()
        return losses

    def add_weights(self, batch):
        """Return the batch with the field ``clean``, the weights of its pairs [B]."""
        return batch if self.weights is None else {**batch, 'clean': self.weights[batch['index']]}


@torch.no_grad()
def compute_pair_losses(model, batch, shard=WHOLE_BATCH):
    """Compute the heads' losses of each pair of the global batch: ``{name: float32 [B]}``.

    With several ranks, the heads get the embeddings of the global batch, but no tokens.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        batch: this rank's rows of a loader's batch.
        shard: this rank's rows of the global batch (:mod:`utils.batch_shard`).
    """
    batch = trim_and_broadcast(batch, model)
    batch = augment(to_device(batch, next(model.parameters()).device), model.image_stats)
    batch = model.transform_batch(batch, shard)
    with model.autocast():
        encoded = model.encode(batch)
        if shard is not WHOLE_BATCH:
            extra_embeddings = {name: tuple(map(shard.all_gather, image_and_text))
                                for name, image_and_text in encoded.extra_embeddings.items()}
            encoded = EncodedBatch(image=shard.all_gather(encoded.image), text=shard.all_gather(encoded.text),
                                   extra_embeddings=extra_embeddings)
        return {name: losses.float() for head in model.heads_with(HasPairLosses)
                for name, losses in head.pair_losses(encoded, shard.global_batch(batch)).items()}

"""Samplers: which training samples form which batch, and the order of evaluation samples.

The batches of an epoch depend only on the seed and the epoch.
"""
import itertools
import random
from collections import Counter, defaultdict

import torch
from torch.utils.data import Sampler

from datasets.joined import validate_dataset_shares
from utils import comm
from utils.errors import UserError, unknown_name_error
from utils.seeding import derive_seed


class BatchSampler:
    """Yield an epoch's batches as lists of ``(index, sample seed)``.

    The sample seed depends on the seed, the epoch, the index, and how often the index was drawn before in the epoch.

    ``set_epoch`` selects the epoch. Without it the first pass is epoch 1, and each pass is the epoch after the last.
    ``len()`` is the number of batches of the whole epoch.

    Attributes:
        shard: ``(rank, world size)``. The sampler yields this rank's rows of each batch. The ranks' numbers of rows
            differ by at most one; if a batch has fewer rows than there are ranks, some ranks get an empty list.
    """
    shard = 0, 1

    def __init__(self, pids, batch_size, seed=1):
        if batch_size > len(pids):
            raise UserError(f'--batch_size {batch_size} is larger than the training set of {len(pids)} captions: '
                            'lower it')
        self.size, self.batch_size, self.seed = len(pids), batch_size, seed
        self.set_epoch(1)

    def set_epoch(self, epoch, first_step=0):
        """Select the epoch (from 1) of the next pass, and skip its first ``first_step`` batches."""
        self.epoch, self.first_step, self.has_started = epoch, first_step, False
        self.batches = self.plan(random.Random(derive_seed(self.seed, epoch)))

    def plan(self, rng):
        """Draw the epoch's batches, a list of lists of indices."""
        raise NotImplementedError

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.has_started:
            self.set_epoch(self.epoch + 1)
        self.has_started = True
        epoch, batches, first_step, draw_counts = self.epoch, self.batches, self.first_step, Counter()
        for step, batch in enumerate(batches):
            seeded = []
            for index in batch:
                if step >= first_step:
                    seeded.append((index, derive_seed(self.seed, epoch, index, draw_counts[index])))
                draw_counts[index] += 1
            if step >= first_step:
                yield seeded[shard_slice(len(seeded), *self.shard)]


class FirstBatches:
    """The first batches of each epoch of a :class:`BatchSampler`.

    Args:
        sampler: the sampler.
        count: the number of batches.
    """

    def __init__(self, sampler, count):
        self.sampler, self.count = sampler, count

    def set_epoch(self, epoch, first_step=0):
        self.sampler.set_epoch(epoch, first_step)

    def __len__(self):
        return min(self.count, len(self.sampler))

    def __iter__(self):
        return itertools.islice(self.sampler, max(self.count - self.sampler.first_step, 0))


def shard_slice(count, rank, world_size):
    """The slice of ``count`` rows that belongs to a rank.

    >>> [shard_slice(10, rank, 4) for rank in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    size, remainder = divmod(count, world_size)
    start = rank * size + min(rank, remainder)
    return slice(start, start + size + (rank < remainder))


class RandomBatches(BatchSampler):
    """Every caption once, in random order. The last batch can be smaller; with ``drop_last`` it is dropped then."""

    def __init__(self, pids, batch_size, seed=1, drop_last=False):
        self.drop_last = drop_last
        super().__init__(pids, batch_size, seed)

    def plan(self, rng):
        order = rng.sample(range(self.size), self.size)
        end = self.size - self.size % self.batch_size if self.drop_last else self.size
        return [order[start:start + self.batch_size] for start in range(0, end, self.batch_size)]


class WeightedBatches(BatchSampler):
    """Captions of several datasets in given proportions (``--dataset_shares``), in random order.

    An epoch has as many captions as all datasets together. The captions of a dataset that is too small are repeated,
    each equally often up to one. Captions of a dataset that is too large are omitted.

    Args:
        pids: the pid of each caption.
        batch_size: captions in a batch.
        seed: the seed of the order.
        sizes: the number of captions of each dataset, in the order of ``pids``.
        weights: the weight of each dataset in an epoch; they need not sum to 1.
        drop_last: whether a smaller last batch is dropped.
    """

    def __init__(self, pids, batch_size, seed, sizes, weights, drop_last=False):
        ends = [sum(sizes[:number + 1]) for number in range(len(sizes))]
        self.ranges = [range(end - size, end) for size, end in zip(sizes, ends)]
        ends = [round(len(pids) * sum(weights[:number + 1]) / sum(weights)) for number in range(len(weights))]
        self.counts = [end - start for start, end in zip([0, *ends], ends)]
        self.drop_last = drop_last
        super().__init__(pids, batch_size, seed)

    def plan(self, rng):
        order = [index for indices, count in zip(self.ranges, self.counts) for index in self.draw(indices, count, rng)]
        rng.shuffle(order)
        end = self.size - self.size % self.batch_size if self.drop_last else self.size
        return [order[start:start + self.batch_size] for start in range(0, end, self.batch_size)]

    @staticmethod
    def draw(indices, count, rng):
        """Draw ``count`` of the indices, all of them equally often up to one."""
        repetitions, remainder = divmod(count, len(indices))
        return [*indices] * repetitions + rng.sample(indices, remainder)


class IdentityBatches(BatchSampler):
    """Batches of ``batch_size // num_instance`` identities with ``num_instance`` captions each.

    Each identity's captions are shuffled and split into groups; the remainder is dropped. An identity with fewer
    captions than a group draws them with replacement. A batch has one group each of random identities. The epoch ends
    when too few identities have groups left.
    """

    def __init__(self, pids, batch_size, num_instance, seed=1):
        if num_instance > batch_size or batch_size % num_instance:
            raise UserError(f'--batch_size {batch_size} is no multiple of --num_instance {num_instance}')
        self.num_instance, self.identities_per_batch = num_instance, batch_size // num_instance
        self.captions = defaultdict(list)   # {pid: indices}
        for index, pid in enumerate(pids):
            self.captions[pid].append(index)
        if len(self.captions) < self.identities_per_batch:
            raise UserError(f'a batch of {batch_size} with --num_instance {num_instance} needs '
                            f'{self.identities_per_batch} identities, and the training set has {len(self.captions)}: '
                            'lower --batch_size or raise --num_instance')
        super().__init__(pids, batch_size, seed)

    def draw_group_size(self, rng):
        return self.num_instance

    def draw_groups(self, indices, rng):
        size = self.draw_group_size(rng)
        if len(indices) < size:
            return [rng.choices(indices, k=size)]
        order = rng.sample(indices, len(indices))
        return [order[start:start + size] for start in range(0, len(order) - size + 1, size)]

    def plan(self, rng):
        groups = {pid: self.draw_groups(indices, rng) for pid, indices in self.captions.items()}
        remaining, batches = list(groups), []
        while len(remaining) >= self.identities_per_batch:
            chosen = rng.sample(remaining, self.identities_per_batch)
            batches.append([index for pid in chosen for index in groups[pid].pop()])
            remaining = [pid for pid in remaining if groups[pid]]
        return batches


class RandomSizeIdentityBatches(IdentityBatches):
    """:class:`IdentityBatches` whose groups have a random size from 1 to ``num_instance``.

    The size is drawn for each identity and epoch. A batch has at most ``batch_size`` captions.
    """

    def draw_group_size(self, rng):
        return rng.randint(1, self.num_instance)


SAMPLERS = {'random': RandomBatches, 'identity': IdentityBatches, 'idrannum': RandomSizeIdentityBatches}


def build_batch_sampler(args, pids, sizes=None):
    """Build the batch sampler that ``args.sampler`` names, for this rank's rows of the batches.

    Args:
        args: the options.
        pids: the pid of each training sample.
        sizes: the number of training samples of each dataset, if several are joined.
    """
    sampler = create_batch_sampler(args, pids, sizes)
    sampler.shard = comm.get_rank(), comm.get_world_size()
    return sampler


def create_batch_sampler(args, pids, sizes):
    if args.sampler not in SAMPLERS:
        raise unknown_name_error('sampler', args.sampler, SAMPLERS)
    if args.dataset_shares:
        validate_dataset_shares(args.dataset_shares, sizes, args)
        return WeightedBatches(pids, args.batch_size, args.seed, sizes, args.dataset_shares,
                               args.drop_last)
    if args.sampler == 'random':
        return RandomBatches(pids, args.batch_size, args.seed, args.drop_last)
    return SAMPLERS[args.sampler](pids, args.batch_size, args.num_instance, args.seed)


def split_into_batches(samples, batch_size, rank=0, world_size=1):
    """Split ``samples`` into batches, and return the batches of a rank: every ``world_size``-th from batch ``rank`` on.

    >>> split_into_batches(range(10), 4)
    [range(0, 4), range(4, 8), range(8, 10)]
    >>> split_into_batches(range(10), 4, rank=0, world_size=2)
    [range(0, 4), range(8, 10)]
    """
    return [samples[start:start + batch_size]
            for start in range(rank * batch_size, len(samples), world_size * batch_size)]


class SplitSampler(Sampler):
    """Yield the samples of an evaluation split in the annotation's order.

    Attributes:
        shard: ``(batch size of the loader, rank, world size)`` while batches are sharded across ranks, else None. Then
            the sampler yields the samples of this rank's batches, which are the batches that one process would make.
    """
    shard = None

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        samples = self.samples()
        return itertools.chain(*split_into_batches(samples, *self.shard)) if self.shard else iter(samples)

    def samples(self):
        """The indices of all samples, in order."""
        return range(self.count)

    def limit(self, count):
        """Yield the first ``count`` samples of the annotation only."""
        self.count = min(count, self.count)


class CaptionSampler(SplitSampler):
    """Yield the captions of an evaluation split in the annotation's order, or sorted by length, the longest first.

    Batches of sorted captions hold little padding, and the first batch needs the most memory.

    Args:
        lengths: [S] tokens of each caption.

    Attributes:
        order: [S] the captions by decreasing length; captions of equal length keep the annotation's order.
        sorts_by_length: whether captions are sorted.
    """

    def __init__(self, lengths):
        super().__init__(len(lengths))
        self.order = torch.as_tensor(lengths).argsort(descending=True, stable=True)
        self.sorts_by_length = False

    def samples(self):
        return self.order.tolist() if self.sorts_by_length else super().samples()

    def limit(self, count):
        super().limit(count)
        self.order = self.order[self.order < self.count]

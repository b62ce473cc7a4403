"""Which training samples make up which batch, a function of the seed and the epoch alone; and the order of an evaluation's captions."""
import itertools
import random
from collections import Counter, defaultdict

import torch
from torch.utils.data import Sampler

from datasets.joined import validate_dataset_shares
from utils import comm
from utils.errors import UserError, unknown
from utils.seeding import derive_seed


class BatchSampler:
    """Yields an epoch's batches as lists of ``(index, sample seed)``. The sample seed follows from (seed, epoch, index)
    and from how often the index was drawn before in the epoch.

    ``set_epoch`` chooses the epoch; without it the first pass is epoch 1 and each further one the next. ``len()`` is
    the number of all the epoch's batches.

    Of ``share``, (number of this process, number of processes), it yields this process's rows of each batch, as many as another's or one
    more or less; a batch with fewer rows than there are processes is empty for some.
    """
    share = 0, 1

    def __init__(self, pids, batch_size, seed=1):
        if batch_size > len(pids):
            raise UserError(f'--batch_size {batch_size} is larger than the training set of {len(pids)} captions')
        self.size, self.batch_size, self.seed = len(pids), batch_size, seed
        self.set_epoch(1)

    def set_epoch(self, epoch, first_step=0):
        """Iterate epoch ``epoch`` (from 1) next, without its first ``first_step`` batches."""
        self.epoch, self.first_step, self.has_started = epoch, first_step, False
        self.batches = self.plan(random.Random(derive_seed(self.seed, epoch)))

    def plan(self, rng):
        """The epoch's batches as lists of indices."""
        raise NotImplementedError

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.has_started:
            self.set_epoch(self.epoch + 1)
        self.has_started = True
        epoch, batches, first_step, drawn = self.epoch, self.batches, self.first_step, Counter()
        for step, batch in enumerate(batches):
            seeded = []
            for index in batch:
                if step >= first_step:
                    seeded.append((index, derive_seed(self.seed, epoch, index, drawn[index])))
                drawn[index] += 1
            if step >= first_step:
                yield seeded[shard_slice(len(seeded), *self.shard)]


def shard_slice(count, number, processes):
    """The slice of ``count`` rows that is one process's.

    >>> [shard_slice(10, number, 4) for number in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    each, rest = divmod(count, processes)
    start = number * each + min(number, rest)
    return slice(start, start + each + (number < rest))


class RandomBatches(BatchSampler):
    """Every caption once, in random order; the last batch may be smaller, or is left out with ``drop_last``."""

    def __init__(self, pids, batch_size, seed=1, drop_last=False):
        self.drop_last = drop_last
        super().__init__(pids, batch_size, seed)

    def plan(self, rng):
        order = rng.sample(range(self.size), self.size)
        end = self.size - self.size % self.batch_size if self.drop_last else self.size
        return [order[start:start + self.batch_size] for start in range(0, end, self.batch_size)]


class WeightedBatches(BatchSampler):
    """As many captions an epoch as there are, of several datasets by ``shares``: of one with too few captions some come again, each as
    often as any other up to one; of one with too many some are left out.

    ``sizes``: captions of each dataset, which come in this order.
    """

    def __init__(self, pids, batch_size, seed, sizes, shares, drop_last=False):
        ends = [sum(sizes[:number + 1]) for number in range(len(sizes))]
        self.parts = [range(end - size, end) for size, end in zip(sizes, ends)]
        whole = [round(len(pids) * sum(shares[:number + 1]) / sum(shares)) for number in range(len(shares))]
        self.counts = [after - before for before, after in zip([0, *whole], whole)]
        self.drop_last = drop_last
        super().__init__(pids, batch_size, seed)

    def plan(self, rng):
        order = [index for part, count in zip(self.parts, self.counts) for index in self.drawn(part, count, rng)]
        rng.shuffle(order)
        end = self.size - self.size % self.batch_size if self.drop_last else self.size
        return [order[start:start + self.batch_size] for start in range(0, end, self.batch_size)]

    @staticmethod
    def drawn(part, count, rng):
        times, rest = divmod(count, len(part))
        return [*part] * times + rng.sample(part, rest)


class IdentityBatches(BatchSampler):
    """``batch_size // num_instance`` identities a batch, ``num_instance`` captions of each.

    Each identity's captions are shuffled and cut into groups, the remainder dropped; one with fewer captions than a
    group draws them with replacement. Batches are made of one group each of random identities, until too few identities
    have any left.
    """

    def __init__(self, pids, batch_size, num_instance, seed=1):
        if num_instance > batch_size or batch_size % num_instance:
            raise UserError(f'--batch_size {batch_size} is no multiple of --num_instance {num_instance}')
        self.num_instance, self.identities_per_batch = num_instance, batch_size // num_instance
        self.captions = defaultdict(list)   # {pid: indices}
        for index, pid in enumerate(pids):
            self.captions[pid].append(index)
        if len(self.captions) < self.identities_per_batch:
            raise UserError(f'a batch of {batch_size} with --num_instance {num_instance} needs {self.identities_per_batch} '
                            f'identities, and the training set has {len(self.captions)}: lower --batch_size or raise '
                            '--num_instance')
        super().__init__(pids, batch_size, seed)

    def group_size(self, rng):
        return self.num_instance

    def groups(self, indices, rng):
        size = self.group_size(rng)
        if len(indices) < size:
            return [rng.choices(indices, k=size)]
        order = rng.sample(indices, len(indices))
        return [order[start:start + size] for start in range(0, len(order) - size + 1, size)]

    def plan(self, rng):
        groups = {pid: self.groups(indices, rng) for pid, indices in self.captions.items()}
        left, batches = list(groups), []
        while len(left) >= self.identities_per_batch:
            chosen = rng.sample(left, self.identities_per_batch)
            batches.append([index for pid in chosen for index in groups[pid].pop()])
            left = [pid for pid in left if groups[pid]]
        return batches


class RandomSizeIdentityBatches(IdentityBatches):
    """As :class:`IdentityBatches`, but each identity's groups have a size of 1 to ``num_instance``, drawn for the
    epoch; so batches are of up to ``batch_size`` captions."""

    def group_size(self, rng):
        return rng.randint(1, self.num_instance)


SAMPLERS = {'random': RandomBatches, 'identity': IdentityBatches, 'idrannum': RandomSizeIdentityBatches}


def build_batch_sampler(args, pids, sizes=None):
    """The batch sampler that ``args.sampler`` names, over training samples with these pids, with this process's share of their batches.
    ``sizes``: of each of several datasets."""
    sampler = create_batch_sampler(args, pids, sizes)
    sampler.shard = comm.get_rank(), comm.get_world_size()
    return sampler


def create_batch_sampler(args, pids, sizes):
    if args.sampler not in SAMPLERS:
        raise unknown('sampler', args.sampler, SAMPLERS)
    if getattr(args, 'dataset_shares', None):
        validate_dataset_shares(args.dataset_shares, sizes, args)
        return WeightedBatches(pids, args.batch_size, args.seed, sizes, args.dataset_shares, getattr(args, 'drop_last', False))
    if args.sampler == 'random':
        return RandomBatches(pids, args.batch_size, args.seed, getattr(args, 'drop_last', False))
    return SAMPLERS[args.sampler](pids, args.batch_size, args.num_instance, args.seed)


def split_into_batches(samples, batch_size, number=0, processes=1):
    """Every batch of ``samples``, or, where ``processes`` take batches by turns, those of one of them.

    >>> split_into_batches(range(10), 4)
    [range(0, 4), range(4, 8), range(8, 10)]
    >>> split_into_batches(range(10), 4, number=0, processes=2)
    [range(0, 4), range(8, 10)]
    """
    return [samples[start:start + batch_size] for start in range(number * batch_size, len(samples), processes * batch_size)]


class SplitSampler(Sampler):
    """A split's samples in the annotation's order.

    Attributes:
        turn: (the loader's batch size, this process's number, how many there are) while processes take batches by turns: then the samples
            of its batches come, and the loader makes of them the batches that a single process would make.
    """
    turn = None

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        samples = self.samples()
        return itertools.chain(*split_into_batches(samples, *self.shard)) if self.shard else iter(samples)

    def samples(self):
        """All of them, in the order in which they come."""
        return range(self.count)


class CaptionSampler(SplitSampler):
    """A split's captions in the annotation's order, or, while ``by_length`` is set, the longest first: then batches hold little padding,
    and the one that takes most memory comes at once.

    Args:
        lengths: [S] tokens of each caption.

    Attributes:
        order: [S] the captions by falling length, equal ones in the annotation's order.
    """

    def __init__(self, lengths):
        super().__init__(len(lengths))
        self.order = torch.as_tensor(lengths).argsort(descending=True, stable=True)
        self.sorts_by_length = False

    def samples(self):
        return self.order.tolist() if self.sorts_by_length else super().samples()

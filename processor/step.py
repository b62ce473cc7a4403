"""The one way of a batch, from top to bottom: host batch -> device -> finished images -> encoders -> heads -> gradient.

A whole batch is one piece. ``--micro_batch`` makes several, and several processes have a part of the batch each; losses still compare the
whole batch (GradCache: Gao et al., RepL4NLP 2021, arXiv 2101.06983). Evaluation takes the same way as far as the finished images.
"""
import contextlib
from functools import partial

import torch

from datasets.device_augmentation import augment_on_device
from model.build import Encoded, add_results, total_loss
from model.heads import describe_head
from processor.parallel import alone, synchronised
from utils import comm, precision
from utils import pixels as known_pixels
from utils.errors import UserError
from utils.batch_shard import WHOLE_BATCH
from utils.seeding import derive_seed


class Step:
    """Training steps of a model: ``Step(model, optimizer)(batch)`` learns from a loader's batch and returns the model's results,
    scalars on its device: ``{'temperature', 'sdm_loss', 'img_acc', ...}``.

    Args:
        model: a :class:`~model.build.RetrievalModel` on its device.
        optimizer: of its parameters.
        micro_batch: how many samples' activations are held at a time; None: the whole batch's.
        shard: whether each of several processes holds a part of the parameters and of the optimizer's state alone. Raises UserError where
            it cannot (:func:`processor.sharding.refuse_shard`), or with ``micro_batch``.

    In fp16 the gradient is scaled, and a step whose gradient overflowed is left out (``scaler``, a ``torch.amp.GradScaler``).
    """

    def __init__(self, model, optimizer, micro_batch=None, shard=False):
        self.model, self.optimizer, self.micro_batch = model, optimizer, micro_batch
        shard = shard and comm.get_world_size() > 1
        if shard and micro_batch:
            raise UserError('--shard and --micro_batch: processes would have different numbers of pieces; --grad_checkpoint saves memory')
        self.passes = sharded(model, optimizer) if shard else synchronised(model)
        device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.amp_dtype(model.amp, device) is torch.float16)

    def __call__(self, batch, shard=WHOLE_BATCH):
        """``shard``: the processes that have the batch's other rows (:func:`utils.batch_shard.sync_batch_shards`)."""
        self.optimizer.zero_grad(set_to_none=True)
        results = backward(self.model, batch, self.micro_batch, self.scaler.scale, shard, self.passes)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for head in self.model.heads:
            head.after_step(self.model)
        return results

    def whole(self):
        """``with step.whole():`` this process has all of the model, whoever else holds parts of it."""
        return getattr(self.passes, 'whole', contextlib.nullcontext)()


def sharded(model, optimizer):
    from processor.sharding import Sharded    # half a second of PyTorch, for those who ask for it
    return Sharded(model, optimizer)


def ready(batch, device, cut=None, pixels=known_pixels.CLIP):
    """A loader's batch on ``device``, as the encoders read it; with a dataset's ``pids, caption_ids, images, ...`` or some of them.

    Images of the image cache (uint8) are augmented by their own ``augmentation_params`` and normalised there. ``cut``: what shortens captions while
    they are on the host, where reading their lengths is free. ``pixels``: the images' mean and standard deviation, if the
    batch does not have each sample's own (``image_stats``).
    """
    if cut is not None and 'caption_ids' in batch:
        batch = {**batch, 'caption_ids': cut(batch['caption_ids'])}
    batch = moved(batch, device)
    statistics = batch.pop('image_stats', None)
    for which in ('', 'second_'):
        images = batch.get(f'{which}images')
        if images is not None and images.dtype == torch.uint8:
            batch[f'{which}images'] = augment_on_device(images, batch.pop(f'{which}augmentation_params', None), pixels, statistics)
    return batch


def pixels_of(loader, model):
    """The :class:`~utils.pixels.Pixels` of a loader's images; those of the model for a loader that has none."""
    own = getattr(getattr(loader, 'dataset', None), 'pixels', None)
    return own or getattr(model, 'pixels', known_pixels.CLIP)


def moved(batch, device):
    on_cuda = torch.device(device).type == 'cuda'   # elsewhere the host's memory might be gone before it is copied
    return {name: value.to(device, non_blocking=on_cuda) for name, value in batch.items()}


def backward(model, batch, size=None, scale=lambda loss: loss, shard=WHOLE_BATCH, passes=alone):
    """Add the gradient of ``scale(total loss)`` to the parameters', and return the results without gradient.

    1. Every piece is embedded.
    2. Heads that read embeddings alone get those of the whole batch, of all processes. Their losses give a gradient at the embeddings.
    3. Each piece takes its rows of that gradient back through its encoders, and its share of the losses of heads that read tokens
       (:attr:`~model.heads.Head.micro_batch_weight`).

    A batch in one piece passes the encoders once. Several pieces pass them twice, first without gradient: then activations are held of
    ``size`` samples at a time. What is random in a piece (dropout, hidden patches) follows from PyTorch's seed and the piece's number,
    and is the same both times; so it is drawn otherwise than for the whole batch.

    The processes' gradients are averaged while the last piece's are computed. For the sum, which is the batch's, each gives its part of
    the gradient as often as there are processes; the losses in 2. are the same on all.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        batch: a loader's, on the CPU or where the model is: the rows of this process.
        size: samples a piece; None: all.
        scale: what multiplies losses before their gradient, as a ``GradScaler`` does.
        shard: the processes that have the other rows.
        passes: how passes through the model are called (:func:`processor.parallel.synchronised`).
    """
    return Backward(model, *in_pieces(model, batch, size, shard, passes), scale, shard, passes).run()


class Backward:
    """One call of :func:`backward`."""

    def __init__(self, model, whole, pieces, scale, shard, passes):
        self.model, self.whole, self.pieces, self.scale, self.shard, self.passes = model, whole, pieces, scale, shard, passes
        self.seed = torch.initial_seed() if len(pieces) > 1 or shard.world_size > 1 else None
        self.results = {}      # {head: its results}
        self.leaves = []       # the whole batch's embeddings of images and of captions, where the heads' gradient is left

    def run(self):
        if len(self.pieces) > 1:
            first = [self.passes(partial(embed, self.model, piece, self.seed, number, self.shard))
                     for number, piece in enumerate(self.pieces)]
            self.passes(partial(self.learn_together, first))
        start = self.shard.local_slice.start or 0
        for number, piece in enumerate(self.pieces):
            loss = self.passes(partial(self.loss_of, number, start), learns=True, last=number == len(self.pieces) - 1)
            loss.backward()
            start += len(piece['pids'])
        return in_order(self.model, self.results, self.shard)

    def learn_together(self, pieces):
        """The heads that read embeddings alone, on those of this process's ``pieces`` and of the others'."""
        rows = [torch.cat([getattr(piece, side).detach() for piece in pieces]) for side in SIDES]
        self.leaves = [self.shard.all_gather(of_side).requires_grad_() for of_side in rows]
        model = self.model
        encoded = Encoded(*self.leaves, encoder=model.backbone.encoder, embed_image=model.embed_image, embed_text=model.embed_text,
                          shard=self.shard)
        self.results.update(learn_together(model, encoded, self.whole, self.scale))

    def loss_of(self, number, start):
        """What piece ``number``, whose rows of the batch begin at ``start``, takes back through its encoders."""
        model, piece, shard, rows = self.model, self.pieces[number], self.shard, self.shard.micro_batch_size(self.pieces[number])
        with seeded(self.seed, number, shard, apart=not self.leaves), model.autocast():
            encoded = model.encode(piece)
        if not self.leaves:     # the only piece
            encoded.shard = shard
            self.learn_together([encoded])
        at_embeddings = [(getattr(encoded, side)[:rows], leaf.grad[start:start + rows] * shard.world_size)
                         for side, leaf in zip(SIDES, self.leaves) if leaf.grad is not None]
        return piece_loss(model, encoded, piece, self.whole, at_embeddings, self.results, self.scale, shard)


SIDES = ('image', 'text')


def in_pieces(model, batch, size, shard=WHOLE_BATCH, passes=alone):
    """``(whole batch, this process's pieces)`` on the model's device, ready for encoders and heads, with what heads look up on the host.
    Of a whole batch that lies with several processes, this one has its rows of the images (:class:`Whole`)."""
    device, count = next(model.parameters()).device, len(batch['pids'])
    size = min(size or count, count)
    longest = comm.all_reduce_max(model.without_padding(batch['caption_ids']).shape[1])
    shared = of_first({name: value for name, value in batch.items() if is_shared(name)})
    batch = {**batch, 'caption_ids': batch['caption_ids'][:, :longest], **shared}
    own = passes(partial(model.rewritten, ready(batch, device, pixels=model.pixels), shard))
    pieces = []
    for start in range(0, count, size):
        on_host, on_device = ({name: value if is_shared(name) else value[start:start + size] for name, value in fields.items()}
                              for fields in (batch, own))
        pieces.append({**on_device, **moved(model.looked_up(on_host), device)})
    if shard is not WHOLE_BATCH:
        shared, images = ({name: value for name, value in own.items() if which(name)} for which in (is_shared, is_image))
        rows = {name: value for name, value in own.items() if not is_shared(name) and not is_image(name)}
        return Whole({**shared, **shard.all_gather_fields(rows)}, images), pieces
    if len(pieces) == 1:
        return pieces[0], pieces
    return {**own, **moved(model.looked_up(batch), device)}, pieces


def is_shared(name):
    """Whether a field of a batch is no sample's: prompts go into each piece."""
    return name.startswith('prompt_')


def of_first(fields):
    """The first process's, where there are any: what is drawn for a batch is drawn by its first sample."""
    return comm.broadcast_object(fields) if fields else fields


def is_image(name):
    return name.endswith('images')


class Whole(dict):
    """A whole batch that lies with several processes: all of its fields but images, of which ``images`` are this process's rows."""

    def __init__(self, fields, images, head=None):
        super().__init__(fields)
        self.images, self.head = images, head

    def seen_by(self, head):
        """It, as a head is given it that reads embeddings alone."""
        return {**self, **self.images} if head.uses_all_gather else Whole(self, self.images, head)

    def __missing__(self, name):
        if name not in self.images:
            raise KeyError(name)
        raise UserError(f"{describe_head(self.head)} reads batch['{name}'], and each of several processes has its rows alone: a head that gathers "
                        'what it makes of them (encoded.shard.all_gather) says so (uses_all_gather = True)')


def embed(model, piece, seed, number, shard):
    """The embeddings of one of several pieces."""
    with seeded(seed, number, shard, apart=True), torch.no_grad(), model.autocast():
        return Encoded(image=model.embed_image(piece['images']), text=model.embed_text(piece['caption_ids']))


@contextlib.contextmanager
def seeded(seed, number, shard, apart):
    """PyTorch's generators begin anew for a piece; nothing happens without a ``seed``. ``apart``: what is drawn meanwhile is each process's
    own, and behind it all processes draw alike."""
    if seed is None:
        yield
        return
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus, enabled=apart and shard.world_size > 1):
        torch.manual_seed(derive_seed(seed, number, shard.rank) if shard.world_size > 1 else derive_seed(seed, number))
        yield


def learn_together(model, encoded, whole, scale):
    """``{head: results}`` of the heads that read embeddings alone; their gradient stays with ``encoded``'s."""
    results = {}
    with model.autocast():
        for head in model.heads:
            if not head.uses_tokens:
                results[head] = head(encoded, whole.seen_by(head) if isinstance(whole, Whole) else whole)
    loss = sum(map(total_loss, results.values()))
    if isinstance(loss, torch.Tensor):
        scale(loss).backward()
    return results


def piece_loss(model, encoded, piece, whole, at_embeddings, results, scale, shard):
    """What a piece takes back through its encoders: the gradient at its embeddings, and its share of the losses of heads that read tokens,
    whose results are added to ``results``."""
    loss, rows = 0, shard.micro_batch_size(piece)
    with model.autocast():
        for head in model.heads:
            if head.uses_tokens:
                of_piece = head(encoded, piece)
                if piece is not whole and of_piece:
                    share = head.compute_micro_batch_weight(piece, whole) if rows else 0    # a stand-in has none
                    of_piece = {name: share * value for name, value in of_piece.items()}
                loss = loss + shard.world_size * total_loss(of_piece)
                sums = results.setdefault(head, {})
                sums.update({name: sums.get(name, 0) + value.detach() for name, value in of_piece.items()})
    loss = scale(loss) if isinstance(loss, torch.Tensor) else loss
    # The inner product with a constant has that constant as its gradient.
    return loss + sum((embedding * gradient).sum() for embedding, gradient in at_embeddings)


def in_order(model, by_head, shard):
    """All results, without gradient, in the order of ``--loss_names``: those of heads that read tokens are the sums over all processes."""
    shares = [value for head in model.heads if head.uses_tokens for value in by_head[head].values()]
    sums = iter(shard.all_reduce_sum(torch.stack([value.float() for value in shares])).unbind()) if shard is not WHOLE_BATCH and shares else iter(shares)
    results = {'temperature': torch.full((), model.temperature)}
    for head in model.heads:
        add_results(results, head, {name: next(sums) if head.uses_tokens else value.detach() for name, value in by_head[head].items()})
    return results

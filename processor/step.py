"""A training step: host batch -> device -> augmented images -> encoders -> heads -> gradients -> optimizer.

The batch is one micro batch, unless ``--micro_batch`` splits it. With several processes, each rank has a shard of the
global batch. In both cases the losses compare all samples of the global batch (GradCache: Gao et al., RepL4NLP 2021,
arXiv 2101.06983). Evaluation prepares its batches with the same functions.
"""
import contextlib
from functools import partial

import torch

from datasets.device_augmentation import augment_on_device
from model.build import EncodedBatch, add_results, total_loss
from model.heads import HasTrainingOnlyParts, UsesAllGather, describe_head
from processor.parallel import build_ddp_runner, run_locally
from utils import comm, precision
from utils.batch_shard import WHOLE_BATCH
from utils.errors import UserError
from utils.image_stats import CLIP_STATS
from utils.seeding import derive_seed

SIDES = ('image', 'text')


class Step:
    """Training steps of a model: ``Step(model, optimizer)(batch)`` trains on a loader's batch.

    A call returns the model's results, scalars on its device: ``{'temperature', 'sdm_loss', 'img_acc', ...}``. With
    fp16, ``scaler`` (``torch.amp.GradScaler``) scales the loss and skips a step whose gradient overflows.

    Args:
        model: a :class:`~model.build.RetrievalModel` on its device.
        optimizer: the optimizer of the model's parameters.
        micro_batch: the number of samples whose activations are in memory at once; None: the whole batch.
        shard_parameters: whether the parameters and the optimizer state are sharded across ranks (``--shard``).

    Raises:
        UserError: the model cannot be sharded (:func:`processor.sharding.validate_sharding`), or ``micro_batch`` is
            also given.
    """

    def __init__(self, model, optimizer, micro_batch=None, shard_parameters=False):
        self.model, self.optimizer, self.micro_batch = model, optimizer, micro_batch
        shard_parameters = shard_parameters and comm.get_world_size() > 1
        if shard_parameters and micro_batch:
            raise UserError('--shard cannot be combined with --micro_batch, because the number of micro batches may '
                            'differ between ranks: leave out one of them; --grad_checkpoint also saves memory')
        self.runner = build_sharded_runner(model, optimizer) if shard_parameters else build_ddp_runner(model)
        device = next(model.parameters()).device
        uses_fp16 = precision.amp_dtype(model.amp, device) is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=uses_fp16)

    def __call__(self, batch, shard=WHOLE_BATCH):
        """Train on this rank's rows of a batch; ``shard`` describes them (:mod:`utils.batch_shard`)."""
        self.optimizer.zero_grad(set_to_none=True)
        results = compute_gradients(self.model, batch, self.micro_batch, self.scaler.scale, shard, self.runner)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for head in self.model.heads_with(HasTrainingOnlyParts):
            head.after_step(self.model)
        return results

    def unsharded(self):
        """Return a context manager. Inside it, every rank has all parameters of the model."""
        return getattr(self.runner, 'unsharded', contextlib.nullcontext)()


def build_sharded_runner(model, optimizer):
    from processor.sharding import ShardedRunner    # the import takes 0.5 s; only --shard needs it
    return ShardedRunner(model, optimizer)


def prepare_batch(batch, device, trim_padding=None, image_stats=CLIP_STATS):
    """Move a loader's batch to a device and prepare its images for the encoders.

    Images of the image cache (uint8) are augmented with the batch's ``augmentation_params`` and normalized.

    Args:
        batch: ``{name: tensor}`` with ``pids``, ``caption_ids``, ``images``, ... or some of them.
        device: the target device.
        trim_padding: a function that removes the padding of captions [B, L]. It runs on the host, where it need not
            wait for a GPU.
        image_stats: mean and standard deviation of the images, unless the batch has its own for each sample
            (``image_stats``).
    """
    if trim_padding is not None and 'caption_ids' in batch:
        batch = {**batch, 'caption_ids': trim_padding(batch['caption_ids'])}
    batch = to_device(batch, device)
    stats_per_sample = batch.pop('image_stats', None)
    for prefix in ('', 'second_'):
        images = batch.get(f'{prefix}images')
        if images is not None and images.dtype == torch.uint8:
            params = batch.pop(f'{prefix}augmentation_params', None)
            batch[f'{prefix}images'] = augment_on_device(images, params, image_stats, stats_per_sample)
    return batch


def get_image_stats(loader, model):
    """Return the :class:`~utils.image_stats.ImageStats` of a loader's images, else the model's."""
    image_stats = getattr(getattr(loader, 'dataset', None), 'image_stats', None)
    return image_stats or getattr(model, 'image_stats', CLIP_STATS)


def to_device(batch, device):
    """Move the tensors of a batch to a device, without waiting for a GPU."""
    # Other devices may copy after the host has freed the memory.
    non_blocking = torch.device(device).type == 'cuda'
    return {name: value.to(device, non_blocking=non_blocking) for name, value in batch.items()}


def compute_gradients(model, batch, micro_batch_size=None, scale_loss=lambda loss: loss, shard=WHOLE_BATCH,
                      runner=run_locally):
    """Add the gradient of the total loss to the parameters' gradients, and return the results without gradient.

    1. Embed every micro batch.
    2. Give the embeddings of the global batch to the heads that read only embeddings. Their losses have a gradient with
       respect to these embeddings.
    3. For each micro batch, backpropagate its rows of that gradient through the encoders. Add its weighted part of the
       losses of heads that read tokens (:class:`~model.heads.TrainsInMicroBatches`).

    One micro batch passes the encoders once. Several micro batches pass them twice, first without gradient, so that the
    activations of only one are in memory. Random numbers of a micro batch (dropout, hidden patches) follow from
    PyTorch's seed and the micro batch's number: they are equal in both passes, but not those of one whole batch.

    DistributedDataParallel averages the gradients over ranks, but the gradient of the global batch is a sum. Therefore
    each rank multiplies its part by the world size. The losses of step 2 are the same on all ranks.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        batch: this rank's rows of a loader's batch, on the CPU or on the model's device.
        micro_batch_size: the number of samples of a micro batch; None: all.
        scale_loss: a function that scales a loss before its backward pass, such as ``GradScaler.scale``.
        shard: this rank's rows of the global batch (:mod:`utils.batch_shard`).
        runner: how passes through the model run (:func:`processor.parallel.build_ddp_runner`).
    """
    global_batch, micro_batches = split_into_micro_batches(model, batch, micro_batch_size, shard, runner)
    return GradientComputation(model, global_batch, micro_batches, scale_loss, shard, runner).run()


class GradientComputation:
    """One call of :func:`compute_gradients`.

    Attributes:
        results: ``{head: its results}``.
        embeddings: the global batch's image and text embeddings. They are leaves of the graph and hold the gradient of
            step 2.
    """

    def __init__(self, model, global_batch, micro_batches, scale_loss, shard, runner):
        self.model, self.global_batch, self.micro_batches = model, global_batch, micro_batches
        self.scale_loss, self.shard, self.runner = scale_loss, shard, runner
        self.seed = torch.initial_seed() if len(micro_batches) > 1 or shard.world_size > 1 else None
        self.results, self.embeddings = {}, []

    def run(self):
        if len(self.micro_batches) > 1:
            encoded = [self.runner(partial(embed_micro_batch, self.model, micro_batch, self.seed, number, self.shard))
                       for number, micro_batch in enumerate(self.micro_batches)]
            self.runner(partial(self.backward_embedding_losses, encoded))
        start, last = self.shard.local_slice.start or 0, len(self.micro_batches) - 1
        for number, micro_batch in enumerate(self.micro_batches):
            loss = self.runner(partial(self.compute_loss, number, start), is_last=number == last)
            loss.backward()
            start += len(micro_batch['pids'])
        return collect_results(self.model, self.results, self.shard)

    def backward_embedding_losses(self, encoded_micro_batches):
        """Run the heads that read only embeddings, on the embeddings of all micro batches and ranks."""
        rows = [torch.cat([getattr(encoded, side).detach() for encoded in encoded_micro_batches]) for side in SIDES]
        self.embeddings = [self.shard.all_gather(local).requires_grad_() for local in rows]
        model = self.model
        encoded = EncodedBatch(*self.embeddings, encoder=model.backbone.encoder, embed_image=model.embed_image,
                               embed_text=model.embed_text, shard=self.shard)
        self.results.update(backward_embedding_losses(model, encoded, self.global_batch, self.scale_loss))

    def compute_loss(self, number, start):
        """Compute the loss of a micro batch for its backward pass; ``start`` is its first row in the global batch."""
        model, micro_batch, shard = self.model, self.micro_batches[number], self.shard
        size = shard.micro_batch_size(micro_batch)
        with seeded_rng(self.seed, number, shard, per_rank=not self.embeddings), model.autocast():
            encoded = model.encode(micro_batch)
        if not self.embeddings:     # the only micro batch
            encoded.shard = shard
            self.backward_embedding_losses([encoded])
        gradients = [(getattr(encoded, side)[:size], embeddings.grad[start:start + size] * shard.world_size)
                     for side, embeddings in zip(SIDES, self.embeddings) if embeddings.grad is not None]
        return compute_micro_batch_loss(model, encoded, micro_batch, self.global_batch, gradients, self.results,
                                        self.scale_loss, shard)


def split_into_micro_batches(model, batch, micro_batch_size, shard=WHOLE_BATCH, runner=run_locally):
    """Prepare a batch for encoders and heads and split it.

    Returns:
        ``(global batch, list of this rank's micro batches)`` on the model's device. With several ranks, the global
        batch is a :class:`GlobalBatch`.
    """
    device, count = next(model.parameters()).device, len(batch['pids'])
    size = min(micro_batch_size or count, count)
    length = comm.all_reduce_max(model.trim_padding(batch['caption_ids']).shape[1])
    shared = broadcast_fields({name: value for name, value in batch.items() if is_shared_field(name)})
    batch = {**batch, 'caption_ids': batch['caption_ids'][:, :length], **shared}
    local = prepare_batch(batch, device, image_stats=model.image_stats)
    local = runner(partial(model.transform_batch, local, shard))
    micro_batches = []
    for start in range(0, count, size):
        on_host, on_device = ({name: value if is_shared_field(name) else value[start:start + size]
                               for name, value in fields.items()} for fields in (batch, local))
        micro_batches.append({**on_device, **to_device(model.prepare_on_host(on_host), device)})
    if shard is not WHOLE_BATCH:
        shared = {name: value for name, value in local.items() if is_shared_field(name)}
        images = {name: value for name, value in local.items() if is_image_field(name)}
        rows = {name: value for name, value in local.items() if name not in shared and name not in images}
        return GlobalBatch({**shared, **shard.all_gather_fields(rows)}, images), micro_batches
    if len(micro_batches) == 1:
        return micro_batches[0], micro_batches
    return {**local, **to_device(model.prepare_on_host(batch), device)}, micro_batches


def is_shared_field(name):
    """Whether a field belongs to the whole batch instead of to its samples. Every micro batch has all of it."""
    return name.startswith('prompt_')


def is_image_field(name):
    return name.endswith('images')


def broadcast_fields(fields):
    """Return the main process's fields on all ranks, because each rank samples them with another seed."""
    return comm.broadcast_object(fields) if fields else fields


class GlobalBatch(dict):
    """The global batch, sharded across ranks. Every rank holds all fields except images; images are local.

    Args:
        fields: ``{name: [B, ...]}``, all fields except images.
        images: ``{name: [b, ...]}``, this rank's rows.
        head: the head that reads this batch, for the error message.
    """

    def __init__(self, fields, images, head=None):
        super().__init__(fields)
        self.images, self.head = images, head

    def view_for_head(self, head):
        """Return the batch for a head that reads only embeddings; without images unless it gathers rows itself."""
        return {**self, **self.images} if isinstance(head, UsesAllGather) else GlobalBatch(self, self.images, head)

    def __missing__(self, name):
        if name not in self.images:
            raise KeyError(name)
        raise UserError(f"{describe_head(self.head)} reads batch['{name}'], but each of several processes holds only "
                        'its own rows of it: call encoded.shard.all_gather on what the head computes from them, and '
                        'add UsesAllGather to the base classes of the head')


def embed_micro_batch(model, micro_batch, seed, number, shard):
    """Embed one of several micro batches, without gradient."""
    with seeded_rng(seed, number, shard, per_rank=True), torch.no_grad(), model.autocast():
        return EncodedBatch(image=model.embed_image(micro_batch['images']),
                            text=model.embed_text(micro_batch['caption_ids']))


@contextlib.contextmanager
def seeded_rng(seed, number, shard, per_rank):
    """Seed PyTorch for a micro batch inside the ``with`` block; do nothing if ``seed`` is None.

    Args:
        seed: the seed of the step.
        number: the micro batch's number.
        shard: this rank's rows of the global batch.
        per_rank: whether the random numbers inside the block are this rank's own. After the block, the random state is
            the same on all ranks again.
    """
    if seed is None:
        yield
        return
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus, enabled=per_rank and shard.world_size > 1):
        torch.manual_seed(derive_seed(seed, number, *([shard.rank] if shard.world_size > 1 else ())))
        yield


def backward_embedding_losses(model, encoded, global_batch, scale_loss):
    """Run the heads that read only embeddings, and backpropagate their losses to the embeddings.

    Returns:
        ``{head: results}``.
    """
    results = {}
    is_sharded = isinstance(global_batch, GlobalBatch)
    with model.autocast():
        for head in model.heads:
            if not head.uses_tokens:
                results[head] = head(encoded, global_batch.view_for_head(head) if is_sharded else global_batch)
    loss = sum(map(total_loss, results.values()))
    if isinstance(loss, torch.Tensor):
        scale_loss(loss).backward()
    return results


def compute_micro_batch_loss(model, encoded, micro_batch, global_batch, gradients, results, scale_loss, shard):
    """Compute the loss whose backward pass goes through the encoders of a micro batch.

    It is the sum of the losses of heads that read tokens and of a term that has the given gradients at the embeddings.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        encoded: the encoded micro batch.
        micro_batch: its fields.
        global_batch: the fields of the global batch.
        gradients: pairs of (embeddings of the micro batch, their gradient), [b, D] each.
        results: ``{head: results}``; the results of heads that read tokens are added here.
        scale_loss: see :func:`compute_gradients`.
        shard: see :func:`compute_gradients`.
    """
    loss, is_placeholder = 0, not shard.micro_batch_size(micro_batch)
    with model.autocast():
        for head in model.heads:
            if head.uses_tokens:
                head_results = head(encoded, micro_batch)
                if micro_batch is not global_batch and head_results:
                    weight = 0 if is_placeholder else head.micro_batch_weight(micro_batch, global_batch)
                    head_results = {name: weight * value for name, value in head_results.items()}
                loss = loss + shard.world_size * total_loss(head_results)
                sums = results.setdefault(head, {})
                sums.update({name: sums.get(name, 0) + value.detach() for name, value in head_results.items()})
    loss = scale_loss(loss) if isinstance(loss, torch.Tensor) else loss
    # The gradient of the inner product with a constant is that constant.
    return loss + sum((embeddings * gradient).sum() for embeddings, gradient in gradients)


def collect_results(model, head_results, shard):
    """Return all results without gradient, in the order of ``--loss_names``.

    The results of heads that read tokens are summed over ranks.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        head_results: ``{head: {name: scalar}}``.
        shard: see :func:`compute_gradients`.
    """
    values = [value for head in model.heads if head.uses_tokens for value in head_results[head].values()]
    if shard is not WHOLE_BATCH and values:
        values = shard.all_reduce_sum(torch.stack([value.float() for value in values])).unbind()
    sums = iter(values)
    results = {'temperature': torch.full((), model.temperature)}
    for head in model.heads:
        add_results(results, head, {name: next(sums) if head.uses_tokens else value.detach()
                                    for name, value in head_results[head].items()})
    return results

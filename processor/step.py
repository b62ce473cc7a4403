"""A training step: prepare the batch on the host, move it to the device, augment, model(batch), backward, optimizer.

``--micro_batch`` and ``--shard`` are subclasses of :class:`Step`: :mod:`processor.grad_cache`,
:mod:`processor.sharding`. Evaluation prepares its batches with the same functions.
"""
import contextlib
import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.device_augmentation import augment_on_device
from model.build import total_loss
from model.heads import HasTrainingOnlyParts
from utils import comm, precision
from utils.batch_shard import WHOLE_BATCH, is_shared_field
from utils.errors import UserError
from utils.image_stats import CLIP_STATS


class Step:
    """Training steps of a model: ``Step(model, optimizer)(batch)`` trains on a loader's batch.

    With several processes, each rank has some rows of the global batch, and the losses compare all of them. All ranks
    compute the same loss of the global batch. Operations across ranks (:mod:`utils.batch_shard`) sum their gradients
    over ranks, and DistributedDataParallel averages the gradients of the parameters. So the parameters get the gradient
    that one process with the global batch computes.

    Args:
        model: a :class:`~model.build.RetrievalModel` on its device.
        optimizer: the optimizer of the model's parameters.
        clip_grad_norm: the largest L2 norm of all gradients together; None: gradients are not clipped.
        accumulate: the number of batches for an update of the parameters. Their gradients are averaged.

    Attributes:
        accumulated_batches: the number of batches since the last update.
        wrapped_model: the model; with several processes, the model in DistributedDataParallel.
        scaler: with fp16, scales the loss and skips a step whose gradient overflows (``torch.amp.GradScaler``).
    """

    def __init__(self, model, optimizer, clip_grad_norm=None, accumulate=1):
        self.model, self.optimizer = model, optimizer
        self.clip_grad_norm, self.accumulate, self.accumulated_batches = clip_grad_norm, accumulate, 0
        self.device = next(model.parameters()).device
        self.wrapped_model = self.wrap_model()
        uses_fp16 = precision.amp_dtype(model.amp, self.device) is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=uses_fp16)

    def wrap_model(self):
        return self.model if comm.get_world_size() == 1 else wrap_in_ddp(self.model)

    def __call__(self, batch, shard=WHOLE_BATCH):
        """Train on a batch.

        Args:
            batch: ``{name: tensor}``, this rank's rows of a loader's batch, on the CPU.
            shard: where these rows are in the global batch (:mod:`utils.batch_shard`).

        Returns:
            The results of the global batch without gradient: ``{'temperature', 'sdm_loss', 'img_acc', ...}``. They are
            scalars on the device; the temperature is on the CPU.
        """
        if not self.accumulated_batches:
            self.optimizer.zero_grad(set_to_none=True)
            for part in self.model.parts_with(HasTrainingOnlyParts):
                part.before_forward(self.model)
        results = self.forward_backward(batch, shard)
        self.accumulated_batches += 1
        if self.accumulated_batches == self.accumulate:
            self.update()
        return results

    def update(self):
        """Update the parameters with the mean gradient of the batches since the last update, if there are any."""
        if not self.accumulated_batches:
            return
        self.prepare_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.accumulated_batches = 0
        for part in self.model.parts_with(HasTrainingOnlyParts):
            part.after_step(self.model)

    def prepare_gradients(self):
        """Average the gradients over the accumulated batches and clip them. They are equal on all ranks before."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        if all(parameter.grad is None for parameter in parameters):
            raise UserError('no loss depends on a parameter that trains: change --freeze, --tuning or --loss_names')
        if self.accumulated_batches > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= self.accumulated_batches
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)

    def forward_backward(self, batch, shard):
        """Add the gradient of the total loss to the parameters' gradients, and return the results."""
        batch = trim_and_broadcast(batch, self.model)
        batch = {**batch, **self.model.prepare_on_host(batch)}
        batch = augment(to_device(batch, self.device), self.model.image_stats)
        results = self.wrapped_model(batch, shard)
        loss = self.scaler.scale(total_loss(results))
        if loss.requires_grad:      # else prepare_gradients reports that no loss depends on a trained parameter
            loss.backward()
        return {name: value.detach() for name, value in results.items()}

    def unsharded(self):
        """Return a context manager. Inside it, every rank has all parameters of the model."""
        return contextlib.nullcontext()


def wrap_in_ddp(model):
    """Wrap a model in DistributedDataParallel. A step may use only a part of the parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)    # newer PyTorch versions rename broadcast_buffers
        return DistributedDataParallel(ModelWithUnusedParameter(model), broadcast_buffers=False,
                                       find_unused_parameters=True)


class ModelWithUnusedParameter(nn.Module):
    """Adds an unused parameter: DistributedDataParallel with find_unused_parameters warns if all are used."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, batch, shard):
        return self.model(batch, shard)


def trim_and_broadcast(batch, model):
    """Trim captions to the longest one of all ranks, and broadcast the main process's ``prompt_`` fields.

    This reads values, so it runs while the batch is on the CPU. Each rank samples other prompts.
    """
    lengths = trimmed_lengths(batch, model)
    shared = {name: value for name, value in batch.items() if is_shared_field(name)}
    if shared:
        shared = comm.broadcast_object(shared)
    return {**batch, **shared, **{name: batch[name][:, :length] for name, length in lengths.items()}}


def trimmed_lengths(batch, model):
    """Compute the lengths of trimmed fields: ``{name: number of tokens}``, the same on all ranks.

    If the backbone ``trims_to_longest``, all fields of a caption are trimmed: ``attributes_mask`` as ``caption_ids``,
    and the fields of the pair's own caption as ``own_caption_ids``.
    """
    lengths = {'caption_ids': comm.all_reduce_max(model.trim_padding(batch['caption_ids']).shape[1])}
    if not model.backbone.trims_to_longest:
        return lengths
    if 'attributes_mask' in batch:
        lengths['attributes_mask'] = lengths['caption_ids']
    own_fields = [name for name in batch if name.startswith('own_')]
    if own_fields:
        length = comm.all_reduce_max(model.trim_padding(batch['own_caption_ids']).shape[1])
        lengths.update(dict.fromkeys(own_fields, length))
    return lengths


def to_device(batch, device):
    """Move the tensors of a batch to a device, without waiting for a GPU."""
    # Other devices may copy after the host has freed the memory.
    non_blocking = torch.device(device).type == 'cuda'
    return {name: value.to(device, non_blocking=non_blocking) for name, value in batch.items()}


def augment(batch, image_stats=CLIP_STATS):
    """Augment and normalize images of the image cache, uint8 [B, 3, H, W]. Other images are ready.

    Args:
        batch: ``{name: tensor}`` with ``images``, ``second_images`` or neither, and their ``augmentation_params``.
        image_stats: mean and standard deviation of the images, unless the batch has its own for each sample
            (``image_stats``).
    """
    batch = dict(batch)
    stats_per_sample = batch.pop('image_stats', None)
    for prefix in ('', 'second_'):
        images = batch.get(f'{prefix}images')
        if images is not None and images.dtype == torch.uint8:
            params = batch.pop(f'{prefix}augmentation_params', None)
            batch[f'{prefix}images'] = augment_on_device(images, params, image_stats, stats_per_sample)
    return batch


def prepare_batch(batch, device, trim_padding=None, image_stats=CLIP_STATS):
    """Prepare images or captions for an evaluation, as a training step does.

    Args:
        batch: ``{'images': ...}`` or ``{'caption_ids': [B, L]}``.
        device: the target device.
        trim_padding: a function that removes the padding of captions.
        image_stats: see :func:`augment`.
    """
    if trim_padding is not None and 'caption_ids' in batch:
        batch = {**batch, 'caption_ids': trim_padding(batch['caption_ids'])}
    return augment(to_device(batch, device), image_stats)


def get_image_stats(loader, model):
    """Return the :class:`~utils.image_stats.ImageStats` of a loader's images, else the model's."""
    image_stats = getattr(getattr(loader, 'dataset', None), 'image_stats', None)
    return image_stats or getattr(model, 'image_stats', CLIP_STATS)

"""``--micro_batch``: a training step that has the activations of only one micro batch in memory.

The gradient is that of the whole batch (GradCache: Gao et al., RepL4NLP 2021, arXiv 2101.06983).
"""
import torch
import torch.distributed as dist

from model.build import total_loss
from processor.step import Step, augment, to_device, trim_and_broadcast
from utils import comm
from utils.batch_shard import WHOLE_BATCH, is_shared_field
from utils.seeding import derive_seed


class GradCacheStep(Step):
    """A training step in micro batches. See :class:`processor.step.Step` for its arguments and results.

    1. Embed every micro batch, without gradient. The routing of ``--tuning`` is treated like an embedding.
    2. Give the embeddings of the global batch to the heads that read only embeddings. Their losses have a gradient with
       respect to these embeddings.
    3. Embed every micro batch again, with gradient. Backpropagate its rows of that gradient through the encoders. Add
       its weighted part of the losses of heads that read tokens
       (:class:`~model.heads.TrainsInMicroBatches`).

    Random numbers of a micro batch (dropout, hidden patches) are equal in both passes, because they follow from
    PyTorch's seed and the micro batch's number. They differ from those of one whole batch.

    Args:
        micro_batch: the number of samples whose activations are in memory at once.
    """

    def __init__(self, model, optimizer, micro_batch, **settings):
        super().__init__(model, optimizer, **settings)
        self.micro_batch = micro_batch

    def wrap_model(self):
        """Return the model. DistributedDataParallel expects one backward pass, so this class averages gradients."""
        if comm.get_world_size() > 1:
            for value in self.model.state_dict().values():
                dist.broadcast(value, src=0)
        return self.model

    def forward_backward(self, batch, shard):
        largest = len(batch['pids']) if shard is WHOLE_BATCH else max(shard.counts)
        if largest <= self.micro_batch:    # one micro batch on each rank
            results = super().forward_backward(batch, shard)
        else:
            micro_batches, global_batch = self.split_into_micro_batches(batch, shard)
            results = self.compute_gradients(micro_batches, global_batch, shard)
        if shard is not WHOLE_BATCH:
            average_gradients(self.model)
        return results

    def split_into_micro_batches(self, batch, shard):
        """Prepare a batch as :class:`Step` does and split it: ``(list of micro batches, global batch)``."""
        batch = trim_and_broadcast(batch, self.model)
        local = augment(to_device(batch, self.device), self.model.image_stats)
        local = self.model.transform_batch(local, shard)
        micro_batches = []
        for start in range(0, len(batch['pids']), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            on_host, on_device = ({name: value if is_shared_field(name) else value[rows]
                                   for name, value in fields.items()} for fields in (batch, local))
            host_inputs = to_device(self.model.prepare_on_host(on_host), self.device)
            micro_batches.append({**on_device, **host_inputs})
        if shard is WHOLE_BATCH:    # else the global batch has no such fields
            local.update(to_device(self.model.prepare_on_host(batch), self.device))
        return micro_batches, shard.global_batch(local)

    def compute_gradients(self, micro_batches, global_batch, shard):
        """Add the gradient of the total loss to the parameters' gradients, and return the results.

        :func:`average_gradients` averages over ranks, but a rank's rows are a part of a sum over ranks. Therefore their
        losses and gradients are multiplied by the number of ranks.
        """
        model, seed = self.model, torch.initial_seed()      # the trainer seeds PyTorch before each step
        fields = self.embed_micro_batches(micro_batches, seed, shard)
        with model.autocast():
            results = model.compute_embedding_losses(model.build_embedding_batch(fields, shard), global_batch)
        loss = sum(map(total_loss, results.values()))
        if isinstance(loss, torch.Tensor):      # some head reads only embeddings
            self.scaler.scale(loss).backward()
        results = {head: detach(values) for head, values in results.items()}

        start = shard.local_slice.start
        for number, micro_batch in enumerate(micro_batches):
            seed_micro_batch(seed, number, shard)
            with model.autocast():
                # encoded.shard stays WHOLE_BATCH, because ranks with other numbers of micro batches cannot gather.
                encoded = model.encode(micro_batch)
                token_results = model.compute_token_losses(encoded, micro_batch, global_batch, shard)
            loss = sum(map(total_loss, token_results.values()))
            loss = self.scaler.scale(loss) if isinstance(loss, torch.Tensor) else 0
            size = shard.local_size(micro_batch)
            for name, local in encoded.embedding_fields().items():
                if fields[name].grad is not None:
                    # The gradient of the inner product with a constant is that constant.
                    loss = loss + (local[:size] * fields[name].grad[start:start + size]).sum()
            if isinstance(loss, torch.Tensor) and loss.requires_grad:   # else nothing in the encoders trains
                (shard.world_size * loss).backward()
            for head, values in token_results.items():
                sums = results.setdefault(head, {})
                sums.update({name: sums.get(name, 0) + value for name, value in detach(values).items()})
            start += size
        return model.collect_results(results, shard)

    @torch.no_grad()
    def embed_micro_batches(self, micro_batches, seed, shard):
        """Embed all micro batches of all ranks.

        Returns:
            ``{name: [B, ...]}``, :meth:`~model.encoded_batch.EncodedBatch.embedding_fields` of the global batch. They
            are leaves of the graph.
        """
        parts = []
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(gpus, enabled=shard.world_size > 1), self.model.autocast():
            for number, micro_batch in enumerate(micro_batches):
                seed_micro_batch(seed, number, shard)
                parts.append(self.model.encode_without_tokens(micro_batch).embedding_fields())
        return {name: shard.all_gather(torch.cat([part[name] for part in parts])).requires_grad_()
                for name in parts[0]}


def seed_micro_batch(seed, number, shard):
    """Seed PyTorch for a micro batch, differently on each rank."""
    torch.manual_seed(derive_seed(seed, number, *([shard.rank] if shard.world_size > 1 else ())))


def average_gradients(model):
    """Average the gradients of the parameters over ranks."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= comm.get_world_size()


def detach(results):
    return {name: value.detach() for name, value in results.items()}

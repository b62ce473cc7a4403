"""Build the training step that the options describe."""
from processor.grad_cache import GradCacheStep
from processor.step import Step
from utils import comm
from utils.errors import UserError


def build_step(model, optimizer, micro_batch=None, shard_parameters=False, **settings):
    """Build the training step of a run.

    Args:
        model: a :class:`~model.build.RetrievalModel` on its device.
        optimizer: the optimizer of the model's parameters.
        micro_batch: the number of samples whose activations are in memory at once; None: the whole batch.
        shard_parameters: whether parameters and optimizer state are sharded across ranks (``--shard``).
        settings: ``clip_grad_norm`` and ``accumulate`` of :class:`~processor.step.Step`.

    Raises:
        UserError: the model cannot be sharded, or ``micro_batch`` is also given.
    """
    shard_parameters = shard_parameters and comm.get_world_size() > 1
    if shard_parameters and micro_batch:
        raise UserError('--shard cannot be combined with --micro_batch, because the number of micro batches may differ '
                        'between ranks: leave out one of them; --grad_checkpoint also saves memory')
    if shard_parameters:
        from processor.sharding import ShardedStep    # here, because the import takes 0.5 s
        return ShardedStep(model, optimizer, **settings)
    if micro_batch:
        return GradCacheStep(model, optimizer, micro_batch, **settings)
    return Step(model, optimizer, **settings)

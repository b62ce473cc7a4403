"""Switch off single optimizations of Pedestal's training step. None of them changes the results.

Each function takes a :class:`~run_scripts.benchmark.workload.TrainingSteps`.
"""
import functools

from model.clip_model import MLP, Attention, QuickGELU, attention_weights
from run_scripts.benchmark import reference


def score_all_positions(training):
    """Compute the scores of the masked language model at all positions. Its loss ignores tokens that are not masked."""
    for head in training.model.heads:
        if 'mlm' in head.names:
            head.forward = functools.partial(mlm_at_all_positions, head)


def mlm_at_all_positions(head, encoded, batch):
    labels = batch['mlm_labels'].flatten()                                                 # [B L]
    tokens = head.cross(encoded.masked_text_tokens, encoded.image_tokens)                  # [B, L, D]
    scores = head.mlm_head(tokens).float().flatten(0, 1)                                   # [B L, V]
    return {'mlm_loss': head.weight * reference.mlm_loss_at_all_positions(scores, labels),
            'mlm_acc': reference.masked_token_accuracy(scores, labels)}


def encode_text_twice(training):
    """Encode the masked captions once for retrieval and once more for the masked language model."""
    training.model.transform_batch = lambda batch, shard: {**batch, 'mlm_ids': batch['caption_ids']}


def materialize_attention(training):
    """Compute the attention maps instead of calling the fused kernel."""
    for module in training.model.modules():
        if isinstance(module, Attention):
            module.forward = functools.partial(attention_from_map, module)


def attention_from_map(attention, query, keys=None, values=None, causal=False, need_map=False):
    q, k, v = (attention._split(x) for x in attention._project(query, keys, values))    # [B, H, L, D/H] each
    out = attention_weights(q, k, causal).to(v.dtype) @ v
    return attention.out_proj(out.transpose(1, 2).flatten(2)), None


def use_group_per_parameter(training):
    """Use an optimizer that is not fused and has one parameter group per parameter."""
    training.step.optimizer = reference.build_optimizer(training.args, training.model)


def save_activations(training):
    """Save the activations between the two linear layers of a block instead of recomputing them for the gradient."""
    for module in training.model.modules():
        if isinstance(module, MLP):
            module.lean = False


def multiply_sigmoid(training):
    """Compute QuickGELU as the product that defines it, which also saves the activations."""
    save_activations(training)
    for module in training.model.modules():
        if isinstance(module, QuickGELU):
            module.forward = functools.partial(reference.QuickGELU.forward, module)


def find_tokens_on_device(training):
    """Find masked tokens on the device instead of on the host, which makes the host wait for the device."""
    training.model.prepare_on_host = lambda batch: {}


def read_each_step(training):
    """Read the loss and synchronize in each step."""
    flush_metrics = training.flush_metrics

    def synchronize_and_flush():
        reference.read_and_synchronize(training.pending_metrics[-1][0])
        flush_metrics()
    training.flush_period, training.flush_metrics = 1, synchronize_and_flush

"""Optimisations, each taken out of one of our trainers again. None of them changes a number."""
import functools

from torch import nn

from model.clip_model import MLP, Attention, QuickGELU, attention_weights
from run_scripts.benchmark import released_way


def score_all_positions(trainer):
    """mlm's scores at all positions; its loss then ignores those where no word was chosen."""
    for head in trainer.model.heads:
        if 'mlm' in head.names:
            head.forward = functools.partial(mlm_everywhere, head)


def mlm_everywhere(head, encoded, batch):
    labels = batch['mlm_labels'].flatten()                                                                        # [B L]
    scores = head.mlm_head(head.cross(encoded.masked_text_tokens, encoded.image_tokens)).float().flatten(0, 1)    # [B L, V]
    return {'mlm_loss': head.weight * released_way.scored_everywhere(scores, labels),
            'mlm_acc': released_way.accuracy_of_chosen(scores, labels)}


def pass_twice(trainer):
    """A text pass for mlm beside the one for retrieval, although both read the same masked captions."""
    prepare = trainer.model.prepare

    def with_mlm_ids(batch):
        batch = prepare(batch)
        return {**batch, 'mlm_ids': batch['caption_ids']}
    trainer.model.prepare = with_mlm_ids


def attend_by_maps(trainer):
    for part in trainer.model.modules():
        if isinstance(part, Attention):
            part.forward = functools.partial(attention_by_map, part)


def attention_by_map(attention, query, keys=None, values=None, causal=False, need_map=False):
    q, k, v = (attention._split(x) for x in attention._project(query, keys, values))    # [B, H, L, D/H] each
    out = attention_weights(q, k, causal).to(v.dtype) @ v
    return attention.out_proj(out.transpose(1, 2).flatten(2)), None


def group_each_parameter(trainer):
    trainer.optimizer = released_way.build_optimizer(trainer.args, trainer.model)


def keep_activations(trainer):
    """What is between a block's two linear layers is kept for the gradient instead of being computed again."""
    for part in trainer.model.modules():
        if isinstance(part, MLP):
            part.forward = functools.partial(nn.Sequential.forward, part)


def multiply_sigmoid(trainer):
    """QuickGELU as it is written, which has to keep what is between the linear layers."""
    keep_activations(trainer)
    for part in trainer.model.modules():
        if isinstance(part, QuickGELU):
            part.forward = functools.partial(released_way.QuickGELU.forward, part)


def prepare_nothing(trainer):
    """What could be looked up on the host is found on the device, which has to be waited for."""
    trainer.model.prepare = lambda batch: batch


def read_each_step(trainer):
    train_step = trainer.train_step

    def then_read(batch):
        train_step(batch)
        *_, values = trainer.unseen[-1]
        released_way.read_and_wait(values[0])
    trainer.train_step = then_read

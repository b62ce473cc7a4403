"""Optimisations, each taken out of one of our trainers again. None of them changes a number."""
import functools

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
    trainer.model.rewritten = lambda batch, shard: {**batch, 'mlm_ids': batch['caption_ids']}


def attend_by_maps(trainer):
    for part in trainer.model.modules():
        if isinstance(part, Attention):
            part.forward = functools.partial(attention_by_map, part)


def attention_by_map(attention, query, keys=None, values=None, causal=False, need_map=False):
    q, k, v = (attention._split(x) for x in attention._project(query, keys, values))    # [B, H, L, D/H] each
    out = attention_weights(q, k, causal).to(v.dtype) @ v
    return attention.out_proj(out.transpose(1, 2).flatten(2)), None


def group_each_parameter(trainer):
    trainer.step.optimizer = released_way.build_optimizer(trainer.args, trainer.model)


def keep_activations(trainer):
    """What is between a block's two linear layers is kept for the gradient instead of being computed again."""
    for part in trainer.model.modules():
        if isinstance(part, MLP):
            part.lean = False


def multiply_sigmoid(trainer):
    """QuickGELU as it is written, which has to keep what is between the linear layers."""
    keep_activations(trainer)
    for part in trainer.model.modules():
        if isinstance(part, QuickGELU):
            part.forward = functools.partial(released_way.QuickGELU.forward, part)


def look_nothing_up(trainer):
    """What could be looked up on the host is found on the device, which has to be waited for."""
    trainer.model.looked_up = lambda batch: {}


def read_each_step(trainer):
    look = trainer.look

    def wait_and_look():
        released_way.read_and_wait(trainer.unseen[-1][0])
        look()
    trainer.look_every, trainer.look = 1, wait_and_look

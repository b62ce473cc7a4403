"""Errors for a backbone and heads that do not fit together, or cannot split a batch."""
from model.heads import HasPairState, RefinesEmbedding, describe_head
from utils.errors import UserError


def validate_needs(head, backbone):
    """Raise UserError if a Head class needs what the backbone does not provide."""
    loss, name = f"the loss '{head.names[0] if head.names else head.__name__}'", backbone.name
    missing = [need for need in head.needs if need not in backbone.provides]
    if missing:
        why = backbone.missing_reasons.get(missing[0], f'the backbone {name} has none')
        need = missing[0].replace('_', ' ')
        raise UserError(f'{loss} reads {need} and {why}: leave it out of --loss_names or use {backbone.alternative}')
    reads_tokens = bool(head.needs) or issubclass(head, RefinesEmbedding)
    has_one_width = backbone.image_width == backbone.text_width == backbone.embed_dim
    if reads_tokens and not head.accepts_any_width and not has_one_width:
        raise UserError(f"{loss} reads tokens in the embeddings' space and the backbone {name} has image tokens "
                        f'{backbone.image_width}, text tokens {backbone.text_width} and embeddings '
                        f'{backbone.embed_dim} wide: leave it out of --loss_names or use {backbone.alternative}')


def validate_micro_batch(backbone, heads):
    """Raise UserError if ``--micro_batch`` cannot split a batch."""
    reasons = {head: 'it updates values of the pairs from the whole batch' if isinstance(head, HasPairState) else
               head.micro_batch_unsupported() for head in heads}
    refuse_unsupported('--micro_batch', backbone, reasons, ' (--grad_checkpoint saves memory with every loss)')


def validate_distributed(backbone, heads):
    """Raise UserError if several processes cannot train the heads together."""
    reasons = {head: head.distributed_unsupported() for head in heads}
    refuse_unsupported('training with several processes', backbone, reasons)


def refuse_unsupported(feature, backbone, reasons, alternative=''):
    """Raise UserError if the backbone or a head cannot split a batch.

    Args:
        feature: the words for the error message.
        backbone: the backbone.
        reasons: {head: why it cannot split a batch, or None}.
        alternative: an addition to the message.
    """
    reason = backbone.micro_batch_unsupported()
    if reason:
        raise UserError(f'{feature} cannot split a batch for {reason}')
    for head, reason in reasons.items():
        if reason:
            name = f"the loss '{head.names[0]}'" if head.names else describe_head(head)
            raise UserError(f'{feature} cannot split a batch for {name}: {reason}; leave it out{alternative}')

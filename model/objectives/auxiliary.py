"""Losses that compare no embeddings."""
from model.objectives.common import full_precision


@full_precision
def restoration(restored, target, mask):
    """Mean squared error over the patches that ``mask`` selects (SEN, 2024).

    Args:
        restored: [B, P, C] predicted pixels of P patches.
        target: [B, P, C].
        mask: [B, P], 1 for patches that count and 0 for others.

    Example:
        >>> import torch
        >>> restored, target = torch.zeros(1, 2, 3), torch.tensor([[[1., 1., 1.], [9., 9., 9.]]])
        >>> restoration(restored, target, torch.tensor([[1, 0]]))
        tensor(1.)
    """
    return ((restored - target).square().mean(dim=-1) * mask).sum() / mask.sum()


@full_precision
def load_balance(gate_logits, selection):
    """Load-balancing loss of a mixture of E experts (PHP, 2025-26; Shazeer et al., ICLR 2017).

    For each expert, the gate's mean probability is multiplied by the fraction of tokens that select the expert. The
    loss is the sum over experts.

    Args:
        gate_logits: [..., E].
        selection: [..., E], 1 for the experts that a token selects and 0 for others.

    Example:
        >>> import torch
        >>> selection = torch.tensor([[1., 0.], [0., 1.]])
        >>> load_balance(torch.zeros(2, 2), selection), load_balance(torch.zeros(2, 2), torch.ones(2, 2))
        (tensor(0.5000), tensor(1.))
    """
    probability = gate_logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)    # [E]
    return (probability * selection.flatten(0, -2).mean(dim=0)).sum()

"""Matching of noisy pairs by optimal transport."""
import torch
import torch.nn.functional as F

from model.objectives.common import cosine_similarity, full_precision

EPS = 1e-8              # against a division by 0 and the logarithm of 0
STOP_THRESHOLD = 1e-9   # L2 norm of the difference between the masses of the columns and 1/N, as in POT
MASKED_LOGIT = -1e4     # of a pair that does not count: its probability is exactly 0, and its logarithm is finite


@torch.no_grad()
def transport_plan(cost, is_member, *, regularization=0.07, rounds=1000):
    """Entropic optimal transport with uniform masses (Sinkhorn's algorithm: Cuturi, NeurIPS 2013).

    As POT's ``ot.sinkhorn``, it stops if the masses of the columns agree to 1e-9, and after ``rounds`` at the latest.
    If costs differ clearly, the plan has not converged after ``rounds``, and depends on their number. On a GPU it
    always runs all rounds, because the test would make the host wait; the plan is then more exact by 1e-9.

    Args:
        cost: [B, B] of image i and caption j.
        is_member: bool [B]: the pairs that take part, N of them.
        regularization: weight of the entropy.
        rounds: largest number of updates of both scalings.

    Returns:
        [B, B]: rows and columns of members sum to 1/N. All other entries are 0.

    Example:
        >>> cost = torch.tensor([[0., 1., 5.], [1., 0., 5.], [5., 5., 5.]])
        >>> transport_plan(cost, torch.tensor([True, True, False]), regularization=1.0).round(decimals=3)
        tensor([[0.3660, 0.1340, 0.0000],
                [0.1340, 0.3660, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    members = is_member[:, None] & is_member[None, :]                                      # [B, B]
    mass = 1 / is_member.sum().clamp(min=1)
    # Other pairs are transported to themselves, so that no shape depends on N, which a GPU would have to report.
    kernel = torch.where(members, torch.exp(cost / -regularization), torch.eye(len(cost), device=cost.device))
    if cost.device.type in ('cpu', 'cuda'):     # other devices may lack float64
        kernel, mass = kernel.double(), mass.double()
    image_scaling = mass.expand(len(cost))
    for number in range(rounds):
        text_scaling = mass / (image_scaling @ kernel)
        image_scaling = mass / (kernel @ text_scaling)
        if cost.device.type == 'cpu' and number % 10 == 0:
            if (text_scaling * (image_scaling @ kernel) - mass).norm() < STOP_THRESHOLD:
                break
    return (image_scaling[:, None] * kernel * text_scaling * members).to(cost.dtype)


def transport_cost(cosine, weight, bias):
    """Cost of matching image i with caption j: relu(``weight`` cosine + ``bias``), [B, B] -> [B, B]."""
    return F.relu(weight * cosine + bias)


@full_precision
def rematching(image_embedding, text_embedding, is_noisy, cost_weight, cost_bias, *, temperature=0.07,
               transposed=False, rounds=1000):
    """Matching of the noisy pairs' images and captions as in an optimal transport (CONQUER, ICASSP 2026).

    The plan of :func:`transport_plan` has no gradient. The softmax of the cosines follows it: the sum of the
    Kullback-Leibler divergences in both ways, for the rows of images and for those of captions, divided by N.

    The reference implementation compares entry [image i, caption j] of the plan that is normalized by column with
    entry [caption i, image j] of the captions' softmax. This matters only if the plan is not symmetric.

    Args:
        image_embedding: [B, D].
        text_embedding: [B, D].
        is_noisy: bool [B]: the pairs that take part, N of them. If N is 0 or 1, the loss is 0.
        cost_weight: scalar tensor, the weight of the cosine in :func:`transport_cost` (CONQUER starts from -1).
        cost_bias: scalar tensor (CONQUER starts from 1).
        temperature: softmax temperature of the cosines.
        transposed: whether captions are compared with the transposed plan, entry by entry.
        rounds: see :func:`transport_plan`.

    Example:
        >>> image, cost = torch.eye(3), (torch.tensor(-1.), torch.tensor(1.))
        >>> text = image + 0.7 * image.roll(1, dims=0)        # similar to two images
        >>> round(rematching(image, text, torch.tensor([True, True, True]), *cost).item(), 3)
        0.475
    """
    cosine = cosine_similarity(image_embedding, text_embedding)                            # [B images, B captions]
    plan = transport_plan(transport_cost(cosine.detach(), cost_weight, cost_bias), is_noisy, rounds=rounds)
    by_image, by_text = (plan / (plan.sum(dim=dim, keepdim=True) + EPS) for dim in (1, 0))
    if transposed:
        by_text = by_text.t()
    members = is_noisy[:, None] & is_noisy[None, :]
    logits = (cosine / temperature).masked_fill(~members, MASKED_LOGIT)
    divergences = (symmetric_divergence(by_image, F.log_softmax(logits, dim=1))
                   + symmetric_divergence(by_text, F.log_softmax(logits.t(), dim=1)))      # [B, B]
    return (divergences * members).sum() / is_noisy.sum().clamp(min=1)


def symmetric_divergence(plan, log_p):
    """Terms of KL(plan || p) + KL(p || plan): [B, B], [B, B] -> [B, B]."""
    to_p = torch.xlogy(plan, plan) - plan * log_p
    from_p = log_p.exp() * (log_p - torch.log(plan + EPS))
    return to_p + from_p

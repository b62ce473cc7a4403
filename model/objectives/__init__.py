"""Losses as pure functions of tensors, one file per family. ``from model import objectives; objectives.sdm``.

Shapes: ``image_embedding`` and ``text_embedding`` are [B, D], and row i of both is one pair. ``pids`` is [B].
``scale`` is 1 / temperature. Every loss returns a scalar, or one number per pair, [B], with ``reduction='none'``.
All losses compute in float32 under any autocast, and normalize embeddings themselves if their equation does.
"""
# ruff: noqa: F401
from model.objectives.attributes import (
    attribute_binary_cross_entropy, attribute_contrast, attribute_matching, smoothed_cross_entropy, true_prompts,
)
from model.objectives.auxiliary import load_balance, restoration
from model.objectives.classification import (
    accuracy, identity, image_text_matching, masked_language_modeling, negative_probabilities, sample_hard_negatives,
    summed_cross_entropy,
)
from model.objectives.common import cosine_similarity, full_precision, identity_targets, same_identity_mask
from model.objectives.contrastive import (
    a_sdm, citc, clamped_scale, cmpm, cmt, complementary_contrast, itc, itc_by_identity, momentum_contrast, nitc, ritc,
    sdm, simclr,
)
from model.objectives.distillation import distilled_contrast, distilled_mlm
from model.objectives.token_alignment import (
    explicit_alignment, group_patches_by_word, patch_weights, token_similarity, token_triplet_loss,
)
from model.objectives.transport import rematching, transport_cost, transport_plan
from model.objectives.triplet import detail, reduce_clean_pairs, tal, tri, trl

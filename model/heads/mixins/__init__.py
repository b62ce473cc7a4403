"""The further abilities of a head, one class per file: ``from model.heads import AddsEmbedding, Head``.

A head names them before :class:`~model.heads.Head` in its class line: ``class TSE(AddsEmbedding, Head)``. No file of
this folder imports PyTorch.
"""
# ruff: noqa: F401
from model.heads.mixins.adds_embedding import AddsEmbedding
from model.heads.mixins.draws_attention_maps import DrawsAttentionMaps
from model.heads.mixins.enabled_by_options import EnabledByOptions
from model.heads.mixins.has_pair_losses import HasPairLosses
from model.heads.mixins.has_pair_state import HasPairState, PairState
from model.heads.mixins.has_reference_names import HasReferenceNames
from model.heads.mixins.has_report import BarPanels, HasReport, HeadReport, ImageTable
from model.heads.mixins.has_schedule import HasSchedule
from model.heads.mixins.has_training_only_parts import HasTrainingOnlyParts
from model.heads.mixins.predicts_attributes import PredictsAttributes
from model.heads.mixins.prepares_on_host import PreparesOnHost
from model.heads.mixins.refines_embedding import RefinesEmbedding
from model.heads.mixins.scores_pairs import ClassifiesPairs, ScoresPairs
from model.heads.mixins.selects_clean_pairs import SelectsCleanPairs
from model.heads.mixins.trains_in_micro_batches import TrainsInMicroBatches
from model.heads.mixins.transforms_batch import TransformsBatch
from model.heads.mixins.uses_all_gather import UsesAllGather

MIXINS = (AddsEmbedding, ClassifiesPairs, DrawsAttentionMaps, EnabledByOptions, HasPairLosses, HasPairState,
          HasReferenceNames, HasReport, HasSchedule, HasTrainingOnlyParts, PredictsAttributes, PreparesOnHost,
          RefinesEmbedding, ScoresPairs, SelectsCleanPairs, TrainsInMicroBatches, TransformsBatch, UsesAllGather)

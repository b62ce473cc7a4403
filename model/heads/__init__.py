"""Heads: training objectives, one per class, selected by name in ``--loss_names``.

To add a method, add a file with a :class:`Head` to this folder; no other file changes. ``docs/adding_a_method.md``
explains a complete example. Importing this package does not import PyTorch (:mod:`utils.declarations`).

:mod:`model.head_registry` finds the files, :mod:`model.loss_names` parses ``--loss_names``, and
:mod:`model.head_options` adds the heads' options to the parser.
"""
from model.heads.mixins import (  # noqa: F401
    AddsEmbedding, BarPanels, ClassifiesPairs, DrawsAttentionMaps, EnabledByOptions, HasPairLosses, HasPairState,
    HasReferenceNames, HasReport, HasSchedule, HasTrainingOnlyParts, HeadReport, ImageTable, PairState,
    PredictsAttributes, PreparesOnHost, RefinesEmbedding, ScoresPairs, SelectsCleanPairs, TrainsInMicroBatches,
    TransformsBatch, UsesAllGather,
)
from utils.declarations import lazy_attributes

EXPORTED = dict.fromkeys(('Head', 'head_error_context', 'describe_head'), 'model.heads.head')
__getattr__ = lazy_attributes(__name__, EXPORTED)

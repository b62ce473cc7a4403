"""What a head can do besides a loss: one class per file. ``from model.heads import AddsEmbedding, Head``.

A head names them before :class:`~model.heads.Head` in its class line: ``class TSE(AddsEmbedding, Head)``.
"""

"""synthpedes: procedural pedestrians with sentences about them, on disk in the layout of a real dataset.

``python -m datasets.synthpedes --out data --ids 2000`` writes ``data/synthpedes``; ``--help`` tells the rest. It is no
substitute for photographs, but an honest task: held-out identities, other words in every caption, another view in every
image, and two baselines without learning (:func:`baseline_similarities`) that say how far color words alone get.
"""
from datasets.synthpedes.baselines import baseline_scores, baseline_similarities, sample_galleries  # noqa: F401
from datasets.synthpedes.writing import generate, is_synthetic  # noqa: F401

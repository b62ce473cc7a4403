"""synthpedes: procedural pedestrians with captions, on disk in the layout of a real dataset.

``python -m datasets.synthpedes --out data --ids 2000`` writes ``data/synthpedes``; ``--help`` lists the options. The
images do not replace photographs, but the task is a fair test: test identities do not occur in training, every caption
has other words, every image another view. Two baselines without learning (:func:`baseline_similarities`) show how far
color words alone get.
"""
from datasets.synthpedes.baselines import baseline_scores, baseline_similarities, sample_galleries  # noqa: F401
from datasets.synthpedes.writing import generate, is_synthetic  # noqa: F401

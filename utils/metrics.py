"""IRRA's path of ``Evaluator`` and ``rank``, for scripts of its users.

This module is above ``processor``, although IRRA's path puts it into ``utils``. No other module imports it.
"""
from processor.evaluation import Evaluator  # noqa: F401
from utils.retrieval_metrics import rank  # noqa: F401

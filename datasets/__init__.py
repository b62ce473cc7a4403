"""Datasets. ``from datasets import build_dataloader`` works as in IRRA; the package itself does not import PyTorch."""
from utils.declarations import lazy_attributes

__getattr__ = lazy_attributes(__name__, {'build_dataloader': 'datasets.build'})

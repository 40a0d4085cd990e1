"""Measures of a model: accuracy, retrieval, and the linear probe of its features."""

from minilib.metrics.probe import LinearProbe, sweep_C
from minilib.metrics.retrieval import accuracy, recall_at_k

__all__ = ["LinearProbe", "accuracy", "recall_at_k", "sweep_C"]

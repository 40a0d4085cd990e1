"""Measures of a model: accuracy, retrieval, segmentation, and the linear probe
of its features."""

from minilib.metrics.probe import LinearProbe, sweep_C
from minilib.metrics.retrieval import accuracy, recall_at_k
from minilib.metrics.segmentation import EpisodeScore, SegmentationScore
from minilib.metrics.thresholds import ThresholdSweep

__all__ = [
    "EpisodeScore",
    "LinearProbe",
    "SegmentationScore",
    "ThresholdSweep",
    "accuracy",
    "recall_at_k",
    "sweep_C",
]

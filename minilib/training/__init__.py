"""Training: the one loop, its checkpoints, and several processes."""

from minilib.training.journal import CHECKPOINT, METRICS
from minilib.training.loop import (
    History,
    NonFiniteLoss,
    TrainConfig,
    Training,
    fit,
    learning_rate,
    make_optimizer,
)

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "History",
    "NonFiniteLoss",
    "TrainConfig",
    "Training",
    "fit",
    "learning_rate",
    "make_optimizer",
]

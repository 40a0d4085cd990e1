"""CounTX's training and evaluation, on scenes and on photographs."""

from __future__ import annotations

import math


def paper_learning_rate(
    epoch: float, lr: float = 6.25e-6, warmup: float = 10, epochs: float = 1000, least: float = 0.0
) -> float:
    """Return the authors' learning rate at a fractional ``epoch``: linear from 0, then half a cosine to ``least``."""
    if epoch < warmup:
        return lr * epoch / warmup
    return least + (lr - least) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))

"""From images in [0, 1] to the pixels that a model sees: here and only here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def standardise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (image - mean) / std per RGB channel; images (..., 3, H, W) in [0, 1]."""
    centre, spread = (image.new_tensor(v)[:, None, None] for v in (mean, std))
    return (image - centre) / spread

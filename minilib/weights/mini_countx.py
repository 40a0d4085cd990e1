"""An earlier way to ``weights.load("mini-countx")``, for the notebooks that use it."""

from __future__ import annotations

import torch
from torch import nn

from minilib.weights import load


def load_countx(device: torch.device | str = "cpu") -> nn.Module:
    """Return the mini CounTX that ships, in evaluation mode and float32."""
    return load("mini-countx", device)

"""How DenseCLIP's segmentation is evaluated (section 4.1): by sliding windows."""

from __future__ import annotations

import torch
from torch import Tensor

from minilib.layers.sliding import slide
from minilib.models.denseclip.model import DenseCLIP


@torch.no_grad()
def sliding_logits(
    model: DenseCLIP, pixels: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Return logits (B, K, R, R') averaged over windows, as the paper evaluates (512
    with stride 341).

    Windows at the border are moved inwards; images smaller than a window make one
    window. Checked by parity with mmsegmentation, not run here.
    """
    return slide(lambda crop: model(crop).full(), pixels, window, stride)

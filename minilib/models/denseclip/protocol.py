"""How DenseCLIP's segmentation is evaluated (section 4.1): by sliding windows."""

from __future__ import annotations

import torch
from torch import Tensor

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
    height, width = pixels.shape[-2:]
    total = pixels.new_zeros(len(pixels), model.classes, height, width)
    visits = pixels.new_zeros(height, width)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            total[..., *place] += model(pixels[..., *place]).full()
            visits[place] += 1
    return total / visits


def _starts(length: int, window: int, stride: int) -> list[int]:
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(count)]

"""How DenseCLIP's segmentation is evaluated (section 4.1): windows that slide, and images of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.models.denseclip.model import DenseCLIP


@torch.no_grad()
def sliding_logits(model: DenseCLIP, pixels: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return logits (B, K, R, R') averaged over windows, as the paper evaluates (512 with stride 341).

    Windows at the border are moved inwards; images smaller than a window make one window.
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


@torch.no_grad()
def multi_scale_probabilities(
    model: DenseCLIP, pixels: Tensor, scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip: bool = True
) -> Tensor:
    """Return class probabilities (B, K, R, R') averaged over sizes of the image and its mirror image."""
    size = tuple(pixels.shape[-2:])
    total = pixels.new_zeros(len(pixels), model.classes, *size)
    for scale in scales:
        resized = F.interpolate(
            pixels, tuple(max(1, round(side * scale)) for side in size), mode="bilinear", align_corners=False
        )
        for mirrored in (False, True)[: 1 + flip]:
            logits = model(resized.flip(-1) if mirrored else resized).full()
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            total += (logits.flip(-1) if mirrored else logits).softmax(dim=1)
    return total / (len(scales) * (1 + flip))
